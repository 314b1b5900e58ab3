"""CIFAR's pickles: all forms of the published files are read, and nothing that means harm."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clbench.data import cifar
from clbench.errors import BadValue

Shelf, Make = Any, Any


def test_pickles_of_old_numpy_are_read(tmp_path: Path) -> None:
    """Its names for the parts of an array, and a number for the flag `align`: the published files have both."""
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    text = pickle.dumps({"data": array}, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    flags = text.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
    assert flags != text
    (tmp_path / "train").write_bytes(flags)
    np.testing.assert_array_equal(cifar.load(tmp_path / "train")["data"], array)


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """As the published files are: every text and the bytes of an array are strings of Python 2."""

    def said(text: bytes) -> bytes:
        return b"T" + len(text).to_bytes(4, "little") + text

    rows = bytes(range(256)) * 24
    kind = (
        b"cnumpy\ndtype\n("
        + said(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + said(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + said(b"b") + b"tR"
    array = empty + b"(K\x01(K\x02M\x00\x0ct" + kind + b"\x89" + said(rows) + b"tb"
    labels = said(b"fine_labels") + b"](K\x01K\x00e"
    (tmp_path / "train").write_bytes(b"\x80\x02}(" + said(b"data") + array + labels + b"u.")
    content = cifar.load(tmp_path / "train")
    assert (content["data"].dtype, content["data"].shape) == (np.uint8, (2, 3072))
    assert content["data"].tobytes() == rows
    assert content["fine_labels"] == [1, 0]


class Harm:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_that_would_run_a_program_is_refused_by_name(shelf: Shelf, make: Make, tmp_path: Path) -> None:
    made = make["cifar100"]()
    made.files["cifar-100-python/train"] = pickle.dumps({"data": Harm(tmp_path / "harm"), "fine_labels": []})
    shelf.add("cifar100", made)
    archive = made.archive(tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(BadValue, match=r"cifar-100-python\.tar\.gz': .*'posix\.system'"):
        shelf.prepare("cifar100", archive)
    assert not (tmp_path / "harm").exists()


def word(text: bytes) -> bytes:
    """A text, as a pickle writes it."""
    return b"X" + len(text).to_bytes(4, "little") + text


def kind(name: bytes) -> bytes:
    return b"cnumpy\ndtype\n(" + word(name) + b"I0\nI1\ntR"


def array(of: bytes, content: bytes) -> bytes:
    """An array of one element, made of bytes."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + word(b"b") + b"tR"
    held = b"c_codecs\nencode\n(" + word(content) + word(b"latin1") + b"tR"
    return empty + b"(I1\n(I1\nt" + of + b"I00\n" + held + b"tb"


ADDRESS = kind(b"V8") + (
    b"(I3\n" + word(b"|") + b"N(" + word(b"a") + b"t}" + word(b"a") + b"(" + kind(b"O8") + b"I0\ntsI8\nI1\nI1\ntb"
)
"""A type of eight bytes that says of itself to hold an object, where an array's bytes are taken for its address."""
NAMES = (b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n")
ATTACKS = {
    "bytes as addresses": array(ADDRESS, b"A" * 8),
    "bytes as an object": array(kind(b"O"), b"A" * 8),
    "fields": array(kind(b"u1,u1"), b"AA"),
    "a type that is changed": kind(b"u1") + b"(I3\nI7\ntb",
    "an array that is filled with a text": array(kind(b"u1"), b"A").replace(b"c_codecs\nencode\n(", b"(("),
    **{
        f"{name.split()[-1].decode()} is changed": name + b"(N}" + word(b"__defaults__") + b"(I1\nI2\ntstb"
        for name in NAMES
    },
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_can_neither_forge_an_array_nor_change_how_it_is_read(attack: str, tmp_path: Path) -> None:
    """NumPy's own array, told such a type, would follow the bytes as an address: the interpreter would crash."""
    (tmp_path / "train").write_bytes(b"\x80\x02}" + word(b"data") + ATTACKS[attack] + b"s.")
    with pytest.raises(BadValue, match=r"is refused|'train' is damaged"):
        cifar.load(tmp_path / "train")
    (tmp_path / "train").write_bytes(b"\x80\x02}" + word(b"data") + array(kind(b"u1"), b"A") + b"s.")
    assert cifar.load(tmp_path / "train")["data"].tolist() == [65]


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q", b"noise", pickle.dumps([1])])
def test_a_damaged_pickle_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "meta").write_bytes(content)
    with pytest.raises(BadValue, match="'meta'"):
        cifar.load(tmp_path / "meta")
