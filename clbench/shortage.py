"""Shortage: what is written down where a device's memory runs out, and with how much less at a time a cell goes on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from typing import Any, Literal

import torch

from clbench.plan import Cell
from clbench.recipe import Recipe
from clbench.stream import Stream

MIB = 2**20
ADVICE = "lower recipe.batch_size or recipe.eval_batch_size, or free the device of other programs."
Doing = Literal["learning", "scoring"]
Facts = dict[str, Any]
"""Of one shortage, plain values: `task` (from 1), `while` (a `Doing`), `micro_batch` and `eval_batch_size` (samples at
a time), `peak_mib` and `device_mib` (None on a CPU), `forecast_mib` (None where nothing can be told from shapes), and
`then`: fields of the recipe with which the cell went on."""


def is_one(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the processor."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def noted(cell: Cell, stream: Stream, recipe: Recipe, device: torch.device, task: int, doing: Doing) -> Facts:
    """The facts of a shortage in task `task` (from 0), met while it was taught by `recipe`; without `then`."""
    on_gpu = device.type == "cuda"
    return {
        "task": task + 1,
        "while": doing,
        "micro_batch": _at_once(recipe),
        "eval_batch_size": recipe.eval_batch_size,
        "peak_mib": round(torch.cuda.max_memory_allocated(device) / MIB, 1) if on_gpu else None,
        "device_mib": round(torch.cuda.get_device_properties(device).total_memory / MIB, 1) if on_gpu else None,
        "forecast_mib": _forecast_mib(cell, stream, recipe),
    }


def _at_once(recipe: Recipe) -> int:
    return min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)


def _forecast_mib(cell: Cell, stream: Stream, recipe: Recipe) -> float | None:
    """What learning was forecast to need, from shapes alone, see `clbench.memory`."""
    from clbench import memory  # builds the model once more, without its numbers

    with contextlib.suppress(Exception):  # whatever a method may raise where there are none
        return round(memory.forecast(cell.suite, cell.method, recipe, lambda: stream.classes).together / MIB, 1)
    return None


def less(cell: Cell, recipe: Recipe, doing: Doing) -> dict[str, int]:
    """Fields of the recipe by which half as much is needed; {} where there is no half.

    While learning a pass takes half the samples, so that a batch takes twice as many passes; it stays the same batch.
    Scoring is halved as well, since methods look over their data between tasks by that number.
    """
    half = {"eval_batch_size": recipe.eval_batch_size // 2} if recipe.eval_batch_size > 1 else {}
    if doing == "scoring" or cell.method.schedule == "none":
        return half
    return {**half, "micro_batch": _at_once(recipe) // 2} if _at_once(recipe) > 1 else {}


def freed(device: torch.device) -> None:
    """Give back what a failed attempt held; nothing of it may be referenced any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reason(met: Sequence[Facts]) -> str:
    """Why the cell failed, `met` being all its shortages."""
    last = met[-1]
    known = {"forecast": last["forecast_mib"], "at most taken": last["peak_mib"], "the device's": last["device_mib"]}
    numbers = ", ".join(f"{name} {mib:,.0f} MiB" for name, mib in known.items() if mib is not None)
    tried = f", though only {last['micro_batch']} samples went through it at a time" if len(met) > 1 else ""
    where = f" while {last['while']} task {last['task']}{tried}{f' ({numbers})' if numbers else ''}"
    retry = "" if len(met) > 1 else " Or pass --retry-oom N: go on with half as many samples at a time, up to N times."
    return f"out of memory{where}; {ADVICE}{retry}"


def marks(cell: Cell, met: Sequence[Facts], own_terms: bool) -> tuple[str, ...]:
    """What must stand beside a run that went on after shortages.

    The mean over a batch is the weighted one over its passes, whatever their sizes; but a term that the method adds to
    the loss (`own_terms`) is made of one pass at a time, which is not the same where it compares samples to each other.
    """
    said, batch = list[str](), cell.suite.recipe.batch_size
    taught = next((facts for facts in reversed(met) if "micro_batch" in facts.get("then", {})), None)
    if taught is not None:
        size = taught["then"]["micro_batch"]
        since = f"out of memory: from task {taught['task']} on {size} samples at a time"
        kept = _kept(cell.method.resources().replay_batch, size, batch)
        own = "; terms of the method's own see one pass at a time" if own_terms else ""
        said.append(f"{since}{kept}, gradients added up over {batch}{own}")
    elif met:
        said.append(f"out of memory: from task {met[-1]['task']} on fewer samples at a time are scored")
    return tuple(said)


def _kept(replay_batch: int, size: int, batch: int) -> str:
    """Kept samples come whole to each pass, so that a batch may see more of them than it would at once."""
    each = -(-replay_batch * size // batch)
    exact = each * batch == replay_batch * size
    return "" if exact else f" with {each} kept ones (of {replay_batch} to a batch)"
