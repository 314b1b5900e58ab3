"""Outcomes: what a run answered to every test example, as the bytes of an npz file in which nothing is pickled."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clbench.files import read_regular

MOST_BYTES = 2**30
TEXT = "said_"
"""How names begin of what is not one number an example, but the bytes of all answers."""
_UNREADABLE = (
    *(
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        RuntimeError,
        MemoryError,
        OverflowError,
        NotImplementedError,
    ),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, AttributeError, tokenize.TokenError),
)
"""What NumPy and zipfile raise over bytes that mean harm or nothing."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Outcomes: TypeAlias = "Mapping[str, NDArray[np.int32]]"


def read_outcomes(path: Path, only_last: bool = False) -> Outcomes | None:
    """The outcomes in a file, or those of its last round; None where they are missing, torn or no outcomes.

    Nothing is unpickled, and a file that would unfold to more than a gigabyte is none of ours.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_regular(path))) as file:
            members = {entry.filename.removesuffix(".npy"): entry for entry in file.infolist()}
            if sum(entry.file_size for entry in members.values()) > MOST_BYTES:
                return None
            wanted = _last(list(members)) if only_last else members
            arrays = {name: _array(file.read(members[name])) for name in wanted}
    except _UNREADABLE:
        return None
    of_examples = {array.shape for name, array in arrays.items() if not name.startswith(TEXT)}
    return arrays if len(of_examples) == 1 else None


def _array(content: bytes) -> NDArray[np.int32]:
    """The array `[n]` of numbers in an npy file of version 1, which NumPy writes; ValueError of anything else."""
    import numpy as np

    length = int.from_bytes(content[8:10], "little")
    shape, dtype = _header(content[:8], content[8 : 10 + length])
    if len(shape) != 1 or shape[0] < 0 or dtype.kind not in "biuf":
        raise ValueError(f"outcomes of shape {shape} and type {dtype}")
    array = np.frombuffer(content, dtype, offset=10 + length)
    return array.reshape(shape)


@lru_cache(256)  # runs of one suite have equal headers, and reading one takes as long as its numbers
def _header(magic: bytes, header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    import numpy as np

    if magic != np.lib.format.magic(1, 0):
        raise ValueError(f"no array: {magic!r}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    return shape, dtype


def _last(names: Sequence[str]) -> list[str]:
    """Those of the highest round, and those of no round."""
    numbers = {
        name: int(number) for name in names if (number := name.rpartition("_")[2]).isascii() and number.isdigit()
    }
    last = max(numbers.values(), default=0)
    return [name for name in names if numbers.get(name, last) == last]


def pack_outcomes(outcomes: Outcomes) -> bytes:
    """Outcomes as the bytes of an npz file."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **outcomes)  # type: ignore[arg-type]
    return buffer.getvalue()
