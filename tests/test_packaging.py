"""What an installation puts into site-packages: clbench, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import clbench

ROOT = Path(__file__).parents[1]
ROOMS = {"clbench": "clbench", "methods": "clbench/methods", "suites": "clbench/suites"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the checkout: a build leaves its folder behind, and old modules in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ROOMS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def installed_name(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).parts
    return "/".join([ROOMS[folder], *rest])


def test_the_wheel_holds_every_file_under_clbench_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    checkout = (path for folder in ROOMS for path in (ROOT / folder).rglob("*") if path.is_file())
    expected = {installed_name(path) for path in checkout if "__pycache__" not in path.parts}
    files = {name for name in wheel.namelist() if not name.startswith(f"clbench-{clbench.__version__}.dist-info/")}
    assert files == expected


def test_the_wheel_says_who_and_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"clbench-{clbench.__version__}.dist-info"
    metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"clbench = clbench.cli:main" in wheel.read(f"{info}/entry_points.txt")


@pytest.mark.parametrize("folder", ["methods", "suites"])
def test_the_bare_folders_refuse_to_be_imported(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"this folder is installed as 'clbench.{folder}'" in done.stderr
    assert "pip install -e ." in done.stderr
