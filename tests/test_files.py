from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from clbench import files
from clbench.errors import StoreError
from clbench.files import explain, set_aside, sweep, write_atomically


def test_writes_and_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "fdopen"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(StoreError, match=f"no space left to write '{path}'"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = files.os.open

    def refuse(path: Path | str, *args: int) -> int:
        if Path(path) == tmp_path:
            raise OSError(errno.EINVAL, "no sync here")
        return opened(path, *args)

    monkeypatch.setattr(files.os, "open", refuse)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="needs a folder where a file stands"):
        write_atomically(tmp_path / "file" / "below", b"new")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "no space left to write 'p'; free some room or choose another place, then run again."),
        (errno.EROFS, "'p' is not writable; change its permissions or choose another place."),
        (errno.EACCES, "'p' is not writable; change its permissions or choose another place."),
        (errno.ENOTDIR, "'p' needs a folder where a file stands; move the file or choose another place."),
        (errno.EIO, "'p' could not be written: Input/output error."),
    ],
)
def test_system_errors_in_words(code: int, sentence: str) -> None:
    assert explain(OSError(code, os.strerror(code)), Path("p")) == sentence


def test_what_is_set_aside_is_kept_under_a_new_name(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    names = []
    for content in ("one", "two"):
        path.write_text(content)
        names.append(set_aside(path).name)
    assert names == ["record.json.aside-1", "record.json.aside-2"]
    assert [(tmp_path / name).read_text() for name in names] == ["one", "two"]
    with pytest.raises(StoreError, match="could not be written"):
        set_aside(path)


def test_sweeping_takes_only_our_temporary_files(tmp_path: Path) -> None:
    kept = [tmp_path / "notes.tmp", tmp_path / ".hidden", tmp_path / "below" / "record.json"]
    left = [tmp_path / ".record.json.x1.tmp", tmp_path / "below" / ".state.safetensors.y2.tmp"]
    for path in kept + left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    sweep(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
