"""Origin facts: what this process runs on and was made from."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from clbench import __version__, determinism
from clbench.record import Origin

_PACKAGES = ("torch", "avalanche-lib", "timm", "transformers", "peft", "numpy")


def origin(
    device: torch.device, precision: Literal["float32", "bfloat16"], started: str, again: str = "", processes: int = 1
) -> Origin:
    """The facts of a run on `device` that began at `started` (UTC, ISO 8601) and ends now.

    `again`: the command that makes it again; `processes`: how many taught it together, with a device each.
    """
    commit, dirty = _checkout()
    return Origin(
        clbench=__version__,
        commit=commit,
        dirty=dirty,
        versions=versions(),
        device=device_name(device, processes),
        device_kind="cuda" if device.type == "cuda" else "cpu",
        precision=precision,
        threads=torch.get_num_threads(),
        started=started,
        command=shlex.join(["clbench", *sys.argv[1:]]),
        again=again,
        cpu=f"{device_name(torch.device('cpu'))}, {_cores()} cores",
        driver=_driver() if device.type == "cuda" else "",
        determinism=determinism.flags(),
        processes=processes,
    )


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the packages that may change a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device, processes: int = 1) -> str:
    """The device's own name, 'NVIDIA H200' or the processor's model, and how many of them share the work."""
    return f"{processes} x {_name(device)}" if processes > 1 else _name(device)


@cache
def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def identity(device: torch.device) -> str:
    """What tells a device from the others of this machine, however a process numbers those that it sees.

    >>> identity(torch.device("cpu"))
    'cpu'
    """
    if device.type == "cpu":
        return "cpu"
    return f"cuda {torch.cuda.get_device_properties(device).uuid}"


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_DRIVER = Path("/proc/driver/nvidia/version")


@cache
def _driver() -> str:
    """Versions of NVIDIA's kernel module, CUDA and cuDNN, those that are known."""
    try:
        module = re.search(r"Module.*?(\d+\.\d+[.\d]*)", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        module = None
    known = {
        "NVIDIA": module and module[1],
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


@cache
def _checkout() -> tuple[str | None, bool | None]:
    """The commit of the checkout that this code lies in and whether it was changed; Nones outside one.

    Asked once a process: what runs is what was imported.
    """
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return commit, None if status is None else bool(status)


def _git(*words: str) -> str | None:
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
