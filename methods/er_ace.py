"""ER-ACE: replay in which new samples compete among the new classes only, so that old ones are left in peace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from clbench.method import Method, Resources, Workbench
from clbench.methods._buffer import Buffer
from clbench.methods._memory import join, part, seen_mask
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream


class _Rehearsal(Plugin):
    def __init__(self, method: ERACE, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.buffer = Buffer(method.buffer_samples, method.policy)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draws depend on seed and task alone; kept samples see the logits of all classes so far."""
        self.draws = self.bench.generator("draws", strategy.task_index)
        self.seen = seen_mask(strategy)

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Kept samples go through the model with the batch."""
        if len(self.buffer):
            inputs, self.targets = self.buffer.draw(self.method.replay_batch, self.draws, strategy.device)
            join(strategy, inputs)

    def after_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take their logits off the batch's."""
        if len(self.buffer):
            (self.logits,) = part(strategy, len(self.targets))

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add their own mean."""
        if len(self.buffer):
            strategy.loss += strategy.model.losses(self.logits, self.targets, self.seen).mean()

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the task into the buffer."""
        self.buffer.add(strategy.examples, self.bench.generator("buffer", strategy.task_index))

    def kept_samples(self) -> int:
        """Samples in the buffer."""
        return len(self.buffer)

    def state(self) -> dict[str, Any]:
        """The buffer."""
        return self.buffer.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The buffer."""
        self.buffer.load_state(state)


class ERACE(Method):
    """Caccia et al., ICLR 2022: CE(batch, over its own classes) + CE(kept samples, over all classes seen).

    The sum of two means, so that the kept samples weigh as much as the batch however many there are; with
    `head_masking="seen"` it is replay with that weighting.

    Departures. The batch's own classes are the task's, not those that happen to be in the batch. The
    buffer is filled after each task and balanced by class, where the paper's is a reservoir
    (`policy="reservoir"`) that takes in each batch, so that kept samples are of past tasks.
    Text is declined: its tasks share one vocabulary, so no logits are new ones.
    """

    name = "er-ace"
    paper = "Caccia et al. 2022"

    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    replay_batch: int = Field(default=32, ge=1, description="kept samples joined to each batch")
    policy: Literal["class", "reservoir"] = Field(default="class", description="how the buffer chooses")

    def resources(self) -> Resources:
        """The buffer."""
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
