"""ER-ACE: replay in which new samples compete among the new classes only, so that old ones are left in peace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from clbench.method import Method, Resources, Workbench
from clbench.methods._memory import LogitReservoir, join, part, seen_mask, share
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream


class _Rehearsal(Plugin):
    def __init__(self, method: ERACE, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.reservoir = LogitReservoir(method.buffer_samples, bench.device)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draws depend on seed and task alone; kept samples see the logits of all classes so far."""
        self.draws = self.bench.generator("draws", strategy.task_index)
        self.seen = seen_mask(strategy)

    def before_training_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """A batch may be taken in several passes."""
        self.whole, self.offers = len(strategy.mb_y), list[tuple[Tensor, Tensor]]()

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """From the second task on, kept samples go through the model with the batch."""
        self.offers.append((strategy.mb_x, strategy.mb_y))
        count = share(self.method.replay_batch, strategy, self.whole) if strategy.task_index else 0
        self.kept = self.reservoir.draw(count, self.draws) if count else None
        if self.kept:
            join(strategy, self.kept["inputs"])

    def after_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take their logits off the batch's."""
        if self.kept:
            (self.logits,) = part(strategy, len(self.kept["targets"]))

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add their own mean."""
        if self.kept:
            strategy.loss += strategy.model.losses(self.logits, self.kept["targets"], self.seen).mean()

    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Offer the batch to the reservoir."""
        for inputs, targets in self.offers:
            self.reservoir.add(self.draws, inputs=inputs, targets=targets)

    def kept_samples(self) -> int:
        """Samples in the reservoir."""
        return len(self.reservoir)

    def state(self) -> dict[str, Any]:
        """The reservoir."""
        return self.reservoir.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The reservoir."""
        self.reservoir.load_state(state)


class ERACE(Method):
    """Caccia et al., ICLR 2022: CE(batch, over its own classes) + CE(kept samples, over all classes seen).

    The reservoir takes in every step's batch, also in a later pass over a task: only through kept samples of the
    task at hand are its classes ever held against the old ones. It is drawn from as of the second task, as in the
    released code. The sum of two means, so that the kept samples weigh as much as the batch however many there are.

    Departures. The batch's own classes are the task's, not those that happen to be in the batch. Samples are kept
    as the step saw them, augmented where the suite augments.
    Text is declined: its tasks share one vocabulary, so no logits are new ones.
    """

    name = "er-ace"
    paper = "Caccia et al. 2022"

    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    replay_batch: int = Field(default=32, ge=1, description="kept samples joined to each batch")

    def resources(self) -> Resources:
        """The reservoir."""
        return Resources(buffer_samples=self.buffer_samples, replay_batch=self.replay_batch, stored_mib_per_task=256.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Text."""
        if not stream.is_text:
            return None
        return "it keeps new classes apart from old ones, and all tasks of text share one vocabulary; use replay"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the rehearsal."""
        bench.lora()
        return [_Rehearsal(self, bench)]
