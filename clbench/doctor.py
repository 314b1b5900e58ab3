"""Doctor: what clbench needs on this machine, and whether it is there."""

from __future__ import annotations

import os
import platform
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clbench import __version__, backbones, catalog, memo
from clbench.errors import ClbenchError
from clbench.report.grid import clean

HUBS = {"Hugging Face": "https://huggingface.co", "PyTorch": "https://download.pytorch.org"}
HUB_SECONDS = 3.0
"""How long a hub may take to answer."""
_STYLES = {"ok": "green", "note": "yellow", "missing": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    state: Literal["ok", "note", "missing"]
    """note: not as it could be, and nothing needed is missing."""
    words: str


def report(store: Path) -> int:
    """Print every finding; returns 1 if something needed is missing, else 0."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "state", "found"):
        table.add_column(heading, overflow="fold")
    found = list(findings(store))
    for finding in found:
        state = Text(finding.state, style=_STYLES[finding.state])
        table.add_row(Text(finding.what), state, Text(clean(finding.words)))
    Console(highlight=False).print(table)
    return int(any(finding.state == "missing" for finding in found))


def findings(store: Path) -> Iterator[Finding]:
    """Every check in turn; one that breaks is a finding itself."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "device": _device,
        "store": lambda: _store(store),
        "fonts": _fonts,
        "weights": _weights,
        "hubs": _hubs,
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # a broken installation may raise anything
            yield Finding(name, "missing", f"{type(error).__name__}: {error}")


def _versions() -> Iterator[Finding]:
    yield Finding("clbench", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")
    for name in memo.requirements():
        try:
            yield Finding(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "missing", f"not installed; run '{Path(sys.executable).name} -m pip install {name}'")


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding(f"cuda:{index}", "ok", torch.cuda.get_device_name(index))
    else:
        yield Finding("cuda", "note", "PyTorch sees no CUDA device; everything runs on the processor")
    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads")


def _store(root: Path) -> Iterator[Finding]:
    from clbench.store import Store

    try:
        if root.exists():
            Store.create(root)
            yield Finding("store", "ok", f"'{root}' is writable")
            return
    except ClbenchError as error:
        yield Finding("store", "missing", str(error))
        return
    parent = next(folder for folder in root.absolute().parents if folder.exists())
    if parent.is_dir() and os.access(parent, os.W_OK):
        yield Finding("store", "ok", f"'{root}' will be made by the first run")
    else:
        yield Finding("store", "missing", f"'{root}' cannot be made in '{parent}'; choose another with --store")


def _fonts() -> Iterator[Finding]:
    from clbench import glyphs

    lacking = [face for face in glyphs.FACES if not glyphs.face_file(face).is_file()]
    if lacking:
        yield Finding("fonts", "missing", f"matplotlib ships no {', '.join(lacking)}; reinstall matplotlib")
    else:
        yield Finding("fonts", "ok", f"{len(glyphs.FACES)} DejaVu faces")


def _weights() -> Iterator[Finding]:
    for name in catalog.BACKBONES:
        state = backbones.weights_state(name)
        if state == "not here":
            yield Finding(name, "note", f"no weights here; 'clbench show {name}' says where they come from")
        elif state != "shipped":
            yield Finding(name, "ok", f"weights: {state}")
        else:
            try:
                backbones.build(name, 1, 0)
            except ClbenchError as error:
                yield Finding(name, "missing", str(error))
            else:
                yield Finding(name, "ok", "weights match their card")


def _hubs() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("", "0", "NO", "FALSE", "OFF"):
        yield Finding("hubs", "note", "not asked, because HF_HUB_OFFLINE is set; the embedded suites need none")
        return
    with ThreadPoolExecutor() as pool:
        yield from pool.map(_hub, HUBS, HUBS.values())


def _hub(name: str, address: str) -> Finding:
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": f"clbench/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError):
        return Finding(name, "note", f"{address} does not answer; the embedded suites and weights work without it")
    return Finding(name, "ok", f"{address} answers")
