"""Origin facts: what this process runs on and was made from."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from clbench import __version__
from clbench.record import Origin

_PACKAGES = ("torch", "avalanche-lib", "timm", "transformers", "peft", "numpy")


def origin(device: torch.device, precision: Literal["float32", "bfloat16"], started: str) -> Origin:
    """The facts of a run on `device` that began at `started` (UTC, ISO 8601) and ends now."""
    commit, dirty = _checkout()
    return Origin(
        clbench=__version__,
        commit=commit,
        dirty=dirty,
        versions=versions(),
        device=device_name(device),
        device_kind="cuda" if device.type == "cuda" else "cpu",
        precision=precision,
        threads=torch.get_num_threads(),
        started=started,
        command=" ".join(["clbench", *sys.argv[1:]]),
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


@cache
def device_name(device: torch.device) -> str:
    """The device's own name: 'NVIDIA H200', or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
