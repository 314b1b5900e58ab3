"""Found: one run of another system, as its files tell it."""

from __future__ import annotations

import ast
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clbench.errors import ClbenchError
from clbench.record import UNKNOWN

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One run; what its files do not tell is left empty, and nothing is guessed."""

    where: str
    """File, and line if it holds several runs."""
    tasks: tuple[str, ...]
    scores: Matrix
    """[T+1][T] in [0, 1], as in a record."""
    stated: Mapping[Literal["average", "pooled"], tuple[float, ...]] = field(default_factory=dict)
    method: str = ""
    suite: str = ""
    seed: int | None = None
    order_seed: int | None = None
    """None: unknown."""
    test_sizes: tuple[int, ...] = ()
    score: str = "accuracy"
    setting: str = ""
    """Where one system has several exams on the same data: 'class-il'."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `clbench.protocol.Protocol` that the files, or the system's code for all runs, settle."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """What tells one configuration from another."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    """Sentences that must stand beside the run."""
    started: str = UNKNOWN
    device: str = f"{UNKNOWN} device"


def malformed(path: Path, line: int | None, what: str) -> ClbenchError:
    """The error for a file that is not as its system writes it."""
    return ClbenchError(f"'{path}'{f', line {line}' if line else ''}: {what}")


def text_of(path: Path) -> str:
    """What a file says; ClbenchError where it cannot be read as text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise malformed(path, None, f"could not be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise malformed(path, None, "is no text.") from error


def json_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise malformed(path, line, "is torn or no JSON.") from error
    if not isinstance(content, dict):
        raise malformed(path, None, "holds no JSON object.")
    return content


def dict_of(text: str, path: Path, line: int) -> dict[str, Any]:
    """The entries of a Python dict literal, of which nothing is executed; UNKNOWN where a value is no literal."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise malformed(path, line, "is torn or no Python dict.") from error
    keys = [key.value for key in tree.keys if isinstance(key, ast.Constant)] if isinstance(tree, ast.Dict) else []
    if not isinstance(tree, ast.Dict) or len(keys) < len(tree.keys) or not all(isinstance(key, str) for key in keys):
        raise malformed(path, line, "is no Python dict whose keys are words.")
    return {str(key): _literal(value) for key, value in zip(keys, tree.values, strict=True)}


def _literal(node: ast.expr) -> Any:
    """The value of a literal; of `np.float64(1.5)`, as NumPy 2 writes its numbers, the number."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return _literal(node.args[0]) if name.startswith(("float", "int")) else UNKNOWN
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return UNKNOWN
    return value if is_plain(value) else UNKNOWN


def is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def share(value: Any, whole: float, path: Path, line: int | None, name: str) -> float:
    """A score out of `whole` as a fraction; ClbenchError where it is no number from 0 to `whole`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= whole * (1 + 1e-9):
        raise malformed(path, line, f"{name} is {reprlib.repr(value)}, no number from 0 to {whole:g}.")
    return min(1.0, float(value) / whole)


def matrix(rows: Sequence[Sequence[float | None]]) -> Matrix:
    """The scores of a record from those of each round, which may end early; rounds that lack a row are the first."""
    tasks = max(map(len, rows))
    unmeasured = [()] * (tasks - len(rows) + 1)
    return tuple((*row, *[None] * (tasks - len(row))) for row in (*unmeasured, *rows))
