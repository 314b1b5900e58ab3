"""DER++: a LoRA that must give kept samples the logits that it once gave them, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._memory import LogitReservoir, join, masked_cross_entropy, part, seen_mask
from clbench.strategy import Plugin, Strategy
from clbench.terms import HeadMasking


def logit_distance(logits: Tensor, kept: Tensor, known: Tensor) -> Tensor:
    """Mean squared difference of `[batch, classes]` logits over the `known` ones of each sample, then over samples."""
    squares = (logits - kept).square() * known
    return (squares.sum(1) / known.sum(1)).mean()


class _Rehearsal(Plugin):
    def __init__(self, method: DERpp, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.reservoir = LogitReservoir(method.buffer_samples, bench.device)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draws depend on seed and task alone; kept samples see the logits of all classes so far."""
        self.draws = self.bench.generator("draws", strategy.task_index)
        self.seen = seen_mask(strategy)

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draw for the logits and, independently, for the labels; they go through the model with the batch."""
        wanted = (self.method.logit_weight, self.method.label_weight)
        count = self.method.replay_batch if len(self.reservoir) else 0
        self.kept = [self.reservoir.draw(count, self.draws) if count and weight else None for weight in wanted]
        if any(self.kept):
            join(strategy, *(rows["inputs"] for rows in self.kept if rows))

    def after_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the kept samples' logits off the batch's."""
        sizes = [len(rows["targets"]) if rows else 0 for rows in self.kept]
        self.logits = part(strategy, *sizes)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add α times the distance of the logits and β times the loss of the labels."""
        for_logits, for_labels = self.kept
        if for_logits:
            distance = logit_distance(self.logits[0], for_logits["logits"], for_logits["known"])
            strategy.loss += self.method.logit_weight * distance
        if for_labels:
            loss = masked_cross_entropy(self.logits[1], for_labels["targets"], self.seen)
            strategy.loss += self.method.label_weight * loss

    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Offer the batch to the reservoir, with the logits that the step's own pass gave."""
        logits = strategy.mb_output.detach()
        self.reservoir.add(
            self.draws,
            inputs=strategy.mb_x,
            targets=strategy.mb_y,
            logits=logits,
            known=self.seen.expand(len(logits), -1),
        )

    def kept_samples(self) -> int:
        """Samples in the reservoir."""
        return len(self.reservoir)

    def state(self) -> dict[str, Any]:
        """The reservoir."""
        return self.reservoir.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The reservoir."""
        self.reservoir.load_state(state)


class DERpp(Method):
    """Buzzega et al., NeurIPS 2020: L + α mean|h(x') - z'|² + β CE(x'', y''), two draws from a reservoir.

    z' are the logits that x' had when it came in; they are never renewed. The reservoir takes in every
    step's batch, also in a later pass over a task, so that samples of the current task are among those kept.

    Departures. The logits of classes not seen when a sample came in are left out of the distance: the
    released code compares a head of fixed width, whose unseen columns hold noise. Both draws go through
    the model with the batch, in one pass.
    """

    name = "derpp"
    paper = "Buzzega et al. 2020 (DER++)"

    head_masking: HeadMasking = Field(default="seen", description="of the current samples; kept ones see all classes")
    logit_weight: Annotated[float, Search(0.01, 1.0)] = Field(default=0.1, ge=0, description="α")
    label_weight: Annotated[float, Search(0.1, 2.0)] = Field(default=0.5, ge=0, description="β")
    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    replay_batch: int = Field(default=32, ge=1, description="kept samples of each of the two draws of a step")

    def resources(self) -> Resources:
        """The reservoir, with a row of logits for each sample."""
        draws = (self.logit_weight > 0) + (self.label_weight > 0)
        return Resources(
            buffer_samples=self.buffer_samples, replay_batch=draws * self.replay_batch, stored_mib_per_task=256.0
        )

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the rehearsal."""
        bench.lora()
        return [_Rehearsal(self, bench)]
