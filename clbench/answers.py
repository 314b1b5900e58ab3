"""Answers: what was said to test examples in one scoring pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clbench.errors import BadValue
from clbench.padding import join
from clbench.peers import Peers


@dataclass(frozen=True)
class Answers:
    """What was answered to `n` examples, in their order and on the CPU."""

    predictions: Tensor
    """Classes among those seen, `[n]`; of text the tokens, `[n, length]`."""
    margins: Tensor
    """How far the best logit lies above the next, `[n]`; of text where they were nearest."""
    tasks: Tensor | None
    """The task inferred for each example, int64 `[n]`, as indices in the stream's order; None where none was."""
    words: list[str] | None = None
    """The answers' text, where they are text."""


@dataclass(frozen=True)
class _Batch:
    """What was said to one batch."""

    answers: Tensor
    margins: Tensor
    inferred: Tensor | None

    def cpu(self) -> _Batch:
        """The same in the processor's memory."""
        return _Batch(self.answers.cpu(), self.margins.cpu(), None if self.inferred is None else self.inferred.cpu())


class Sheet:
    """The answers of a pass while it lasts, batch by batch and on the device."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []

    def note(self, answers: Tensor, margins: Tensor, inferred: object) -> None:
        """Keep a batch; of its inferred tasks only what can be checked without waiting for the device is.

        Raises BadValue where `inferred` is neither None nor a task index for each example.
        """
        size = len(margins)
        if inferred is None or (
            isinstance(inferred, Tensor) and inferred.dtype == torch.int64 and inferred.shape == (size,)
        ):
            self._batches.append(_Batch(answers, margins, inferred))
            return
        shown = f"{inferred.dtype} {list(inferred.shape)}" if isinstance(inferred, Tensor) else repr(inferred)
        raise BadValue(
            f"a plugin set 'inferred' to {shown[:80]} for a batch of {size}; set it to the task index of each "
            f"example, torch.int64 [{size}], or leave it None."
        )

    def closed(self, words: Callable[[Tensor], list[str] | None], last_task: int, peers: Peers) -> Answers:
        """The whole pass, of which `peers` may each have had a part; tasks are told up to number `last_task`."""
        batches = self._batches
        if peers.size > 1:
            batches = peers.woven([batch.cpu() for batch in batches])
        answers = join([batch.answers for batch in batches]).cpu()
        margins = torch.cat([batch.margins for batch in batches]).cpu()
        return Answers(answers, margins, _tasks([batch.inferred for batch in batches], last_task), words(answers))


def _tasks(inferred: list[Tensor | None], last: int) -> Tensor | None:
    """The tasks inferred in a pass, `[n]`. Raises BadValue where some batches lack them, or one is above `last`."""
    told = [tasks for tasks in inferred if tasks is not None]
    if not told:
        return None
    if len(told) < len(inferred):
        raise BadValue(
            f"a plugin set 'inferred' in {len(told)} of {len(inferred)} batches of a scoring pass; "
            "set it in every batch, or in none."
        )
    tasks = torch.cat(told).cpu()
    wrong = tasks[(tasks < 0) | (tasks > last)]
    if len(wrong):
        raise BadValue(
            f"a plugin inferred task {int(wrong[0])}, and tasks 0 to {last} have been taught; set "
            "'inferred' to indices of those, in the stream's order."
        )
    return tasks
