from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from clbench.cli import app

Shelf = Any


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, words)])


def test_the_list_says_what_is_here(shelf: Shelf, tmp_path: Path) -> None:
    before = {line.split()[0]: line for line in ask("list").stdout.splitlines()}
    assert "missing" in before["cub200"]
    assert "1.2 GB" in before["cub200"]
    assert "non-commercial" in before["cub200"]
    made = shelf.add("cub200")
    shelf.prepare("cub200", made.unpacked(tmp_path / "unpacked"))
    after = {line.split()[0]: line for line in ask("list").stdout.splitlines()}
    assert list(after) == list(before)
    assert after["cub200"].split()[1] == "prepared"


def test_path_prints_the_folder(shelf: Shelf) -> None:
    assert ask("path", "imagenet-r").stdout == f"{shelf.root / 'imagenet-r'}\n"
    wrong = ask("path", "imagenet")
    assert wrong.exit_code == 2
    assert "no data set called 'imagenet'" in wrong.stderr


def test_prepare_tells_what_it_made(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("pacs")
    archive = made.archive(tmp_path / "downloads" / "PACS.zip")
    done = ask("prepare", "pacs", "--from", archive)
    assert done.exit_code == 0, done.output
    assert "pacs: 32 training and 16 test images of 2 classes" in done.stdout
    assert "unpacking PACS.zip …" in done.stderr
    again = ask("prepare", "pacs")
    assert (again.exit_code, again.stdout) == (0, done.stdout)


def test_a_mistake_is_one_sentence(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "PACS.zip").write_bytes(b"no zip")
    done = ask("prepare", "pacs", "--from", tmp_path)
    assert done.exit_code == 2
    assert "is damaged or no archive" in done.stderr
    assert "Traceback" not in done.output


def test_a_pipe_is_refused_at_once(shelf: Shelf) -> None:
    done = ask("prepare", "pacs", "--from", "/dev/zero")
    assert done.exit_code == 2
    assert "'/dev/zero' is a device or a pipe; --from takes PACS.zip" in done.stderr


def test_another_set_in_the_place_of_one_is_not_listed_as_prepared(shelf: Shelf, tmp_path: Path) -> None:
    shelf.prepare("pacs", shelf.add("pacs").unpacked(tmp_path / "unpacked"))
    shelf.home("pacs").rename(shelf.home("cub200"))
    lines = {line.split()[0]: line for line in ask("list").stdout.splitlines()}
    assert "missing" in lines["cub200"]
    assert "missing" in lines["pacs"]


def test_a_part_of_a_set_is_not_looked_for_in_the_internet(shelf: Shelf) -> None:
    done = ask("prepare", "cifar100-subset")
    assert done.exit_code == 2
    assert (
        "cifar-100-python-subset.tar.xz is published nowhere: it is a part of a set, of your own making" in done.stderr
    )


def test_help_loads_nothing_heavy() -> None:
    program = "import sys, clbench.cli; assert not {'numpy', 'PIL', 'rich.progress'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
