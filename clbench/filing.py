"""Filing: the record of a cell, and in words why one failed."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from clbench import shortage
from clbench.errors import ClbenchError
from clbench.origin import origin
from clbench.plan import Cell
from clbench.record import Record
from clbench.state import State
from clbench.stream import Stream


def record_of(
    cell: Cell, stream: Stream, device: torch.device, state: State, processes: int = 1, **facts: Any
) -> Record:
    """The record of a cell that so many processes taught together; `stream` as it was examined."""
    return Record(
        key=cell.key,
        suite=cell.suite.name,
        method=cell.method.name,
        variant=cell.variant,
        params=cell.method.model_dump(mode="json"),
        recipe=cell.suite.recipe.facts(),
        seed=cell.seed,
        order_seed=cell.order_seed,
        fingerprint=cell.fingerprint,
        protocol=cell.protocol.model_dump(mode="json"),
        suite_protocol=cell.suite_protocol.model_dump(mode="json"),
        protocol_hash=cell.protocol.hash,
        suite_hash=cell.suite_protocol.suite_hash,
        tasks=tuple(task.name for task in stream),
        test_sizes=tuple(len(task.test) for task in stream),
        score_name=cell.suite.score,
        origin=origin(device, cell.suite.recipe.precision, state.started, cell.again, processes),
        **facts,
    )


def failure(error: Exception, cell: Cell, shortages: Sequence[shortage.Facts]) -> dict[str, Any]:
    """What the record of a failed cell says of its error; `shortages` are those of memory."""
    if shortage.is_one(error) and shortages:
        return {"reason": shortage.reason(shortages), "notes": {"out_of_memory": list(shortages)}}
    return {"reason": reason(error, cell)}


def reason(error: Exception, cell: Cell) -> str:
    """One line that says what failed and where in the method's module, if anywhere."""
    if isinstance(error, ClbenchError):
        return str(error)
    message = next((line for line in str(error).splitlines() if line.strip()), "no message")
    if shortage.is_one(error):
        return f"out of memory; {shortage.ADVICE}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    places = list(traceback.walk_tb(error.__traceback__))
    home = [place for place in places if place[0].f_globals.get("__name__") == type(cell.method).__module__]
    frame, line = (home or places)[-1]
    return f"{type(error).__name__} at {Path(frame.f_code.co_filename).name}:{line}: {message}"
