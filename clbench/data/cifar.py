"""CIFAR's pickles: arrays and labels from files that could hold programs, and are not let."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clbench.data.contents import DataSet
from clbench.data.fetch import verify_member
from clbench.data.found import Found, PictureRows, locate
from clbench.errors import BadValue

FILES = ("train", "test", "meta")
SHAPE = (3, 32, 32)


def read(root: Path, data: DataSet, lists: Mapping[str, Path]) -> Found:
    """The training images, then the test images, in the files' order; classes in the order of `meta`.

    The published format (https://www.cs.toronto.edu/~kriz/cifar.html): pickled dictionaries with `data`, uint8
    [n, 3072], and `fine_labels`. BadValue where a file is not so.
    """
    folder = locate(root, lambda path: all((path / name).is_file() for name in FILES), "the files train, test and meta")
    for name, md5 in data.members.items():
        verify_member(folder / name, md5, data)
    names = load(folder / "meta").get("fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadValue("'meta' holds no list 'fine_label_names'; fetch the archive again.")
    train, train_targets = _images(folder / "train", len(names))
    test, test_targets = _images(folder / "test", len(names))
    return Found(
        pictures=PictureRows(np.concatenate([train, test])),
        targets=np.concatenate([train_targets, test_targets]),
        is_train=np.arange(len(train) + len(test)) < len(train),
        class_names=tuple(names),
        split="the published files train and test",
    )


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle file; BadValue where it asks for more than arrays and containers, or is damaged."""
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
    except BadValue:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise BadValue(f"'{path.name}' is damaged ({type(error).__name__}); fetch the archive again.") from error
    if not isinstance(content, dict):
        raise BadValue(f"'{path.name}' holds a {type(content).__name__} instead of a dictionary.")
    return {name: value.array if isinstance(value, _Array) else value for name, value in content.items()}


def _images(path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 3, 32, 32] and labels [n] of one file."""
    content = load(path)
    images, labels = content.get("data"), content.get("fine_labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (np.prod(SHAPE),):
        raise BadValue(f"'{path.name}' holds no array 'data' of bytes, {np.prod(SHAPE)} a row.")
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise BadValue(f"'{path.name}' holds no list 'fine_labels' of numbers from 0 to {classes - 1}.")
    if len(labels) != len(images):
        raise BadValue(f"'{path.name}' holds {len(images)} images and {len(labels)} labels.")
    return images.reshape(-1, *SHAPE), np.array(labels, np.int64)


class _PlainUnpickler(pickle.Unpickler):
    """Gives our own stand-ins for the few names that a pickled array needs, and no others.

    No array of NumPy is within the file's reach while it is read: one that is told its own type and flags, as pickles
    tell them, would take bytes for addresses.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What `module.name` stands for; BadValue for all but arrays."""
        known = _STAND_INS.get((module.replace("._core", ".core"), name))
        if known is None:
            raise BadValue(f"a file asks to run '{module}.{name}' when opened and is refused: it is not a data set.")
        return known


class _Plain:
    """What a pickle cannot change: without this it may set any attribute, for all files that are read later."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise BadValue("a file wants to change how it is read and is refused: it is not a data set.")


class _Callable(_Plain):
    """A function that a pickle may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)


class _Number(_Plain):
    """A type of numbers: neither objects nor texts, nor several in one."""

    __slots__ = ("dtype",)

    def __init__(self, name: str) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biuf":
            raise BadValue(f"a file holds an array of '{name[:40]}' and is refused: a data set is made of numbers.")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the rest is about types that are refused


class _Array(_Plain):
    """An array, perhaps still to be filled."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: NDArray[Any] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, by_columns, content = state
        self.fill(content, number, shape, "F" if by_columns else "C")

    def fill(self, content: bytes | str, number: _Number, shape: tuple[int, ...], order: Any) -> None:
        if isinstance(content, str):  # the published files are of Python 2, which knew no other bytes
            content = content.encode("latin1")
        self.array = np.frombuffer(content, number.dtype).reshape(shape, order=order)


def _empty(kind: object, shape: object, typecode: object) -> _Array:
    return _Array()


def _filled(content: bytes | str, number: _Number, shape: tuple[int, ...], order: Any) -> _Array:
    array = _Array()
    array.fill(content, number, shape, order)
    return array


def _number(name: object, align: object = False, copy: object = False) -> _Number:
    return _Number(str(name))


def _bytes(text: str, encoding: str) -> bytes:
    """How a pickle of protocol 2 holds bytes."""
    return text.encode("latin1")


_STAND_INS: Mapping[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _Callable(_empty),
    ("numpy.core.numeric", "_frombuffer"): _Callable(_filled),
    ("numpy", "ndarray"): "ndarray",  # an argument of the first, never called
    ("numpy", "dtype"): _Callable(_number),
    ("_codecs", "encode"): _Callable(_bytes),
}
