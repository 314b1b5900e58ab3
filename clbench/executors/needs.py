"""Needs: how much of a GPU's memory cells will take, from what was measured before or from shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from clbench import memory
from clbench.plan import Cell, alike
from clbench.record import Record
from clbench.stream import Stream


def needs(cells: Sequence[Cell], stream: Stream, records: Iterable[Record]) -> dict[str, int | None]:
    """Key -> bytes; None where the row was never measured on a GPU and nothing can be told of it before it runs.

    Measured: the greatest peak of records of the same row, model and data.
    """
    measured = [record for record in records if record.status == "done" and record.origin.device_kind == "cuda"]
    forecasts = dict[str, int | None]()
    found = dict[str, int | None]()
    for cell in cells:
        peaks = [cost.peak_memory_mib for record in measured if alike(record, cell) for cost in record.costs]
        if peaks:
            found[cell.key] = round(max(peaks) * memory.MIB)
            continue
        row = replace(cell, seed=0).key
        if row not in forecasts:
            forecasts[row] = _forecast(cell, stream)
        found[cell.key] = forecasts[row]
    return found


def _forecast(cell: Cell, stream: Stream) -> int | None:
    try:
        told = memory.forecast(cell.suite, cell.method, cell.suite.recipe, lambda: stream.classes)
    except Exception:  # whatever a method may raise where there are no numbers
        return None
    return max(told.together, told.together - told.activations + told.answering)
