"""DER++: a LoRA that must give kept samples the logits that it once gave them, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._answers import answered
from clbench.methods._memory import LogitReservoir, join, part, seen_mask, share
from clbench.strategy import Plugin, Strategy
from clbench.terms import HeadMasking


def logit_distance(logits: Tensor, kept: Tensor, known: Tensor) -> Tensor:
    """Mean squared difference of `[batch, classes]` logits over the `known` ones of each sample, then over samples."""
    squares = (logits - kept).square() * known
    return (squares.sum(1) / known.sum(1)).mean()


def largest(logits: Tensor, targets: Tensor, count: int) -> dict[str, Tensor]:
    """What is kept of the logits of text `[batch, span, classes]`: of each of an answer's tokens the largest.

    `logits` and `places` `[batch, count, answer]`: the `count` largest and which they are; `total`
    `[batch, answer]`: the logarithm of the sum of all exponentials. What varies in width stands last.
    """
    at, _ = answered(logits, targets)
    best = at.topk(min(count, at.shape[-1]), dim=-1)
    return {"logits": best.values.mT, "places": best.indices.mT, "total": at.logsumexp(-1)}


def distance_of_largest(logits: Tensor, targets: Tensor, kept: dict[str, Tensor]) -> Tensor:
    """Mean squared difference from what `largest` kept: over its numbers, an answer's tokens and the samples."""
    at, shares = answered(logits, targets)
    own = at.gather(-1, kept["places"].mT)
    squares = (own - kept["logits"].mT).square().sum(-1) + (at.logsumexp(-1) - kept["total"]).square()
    return (squares / (own.shape[-1] + 1) * shares).sum(1).mean()


class _Rehearsal(Plugin):
    def __init__(self, method: DERpp, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.reservoir = LogitReservoir(method.buffer_samples, bench.device)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draws depend on seed and task alone; kept samples see the logits of all classes so far."""
        self.draws = self.bench.generator("draws", strategy.task_index)
        self.seen = seen_mask(strategy)

    def before_training_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """A batch may be taken in several passes."""
        self.whole, self.offers = len(strategy.mb_y), list[dict[str, Tensor]]()

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draw for the logits and, independently, for the labels; they go through the model with the batch."""
        self.own = strategy.mb_x
        wanted = (self.method.logit_weight, self.method.label_weight)
        count = share(self.method.replay_batch, strategy, self.whole) if len(self.reservoir) else 0
        self.kept = [self.reservoir.draw(count, self.draws) if count and weight else None for weight in wanted]
        if any(self.kept):
            join(strategy, *(rows["inputs"] for rows in self.kept if rows))

    def after_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the kept samples' logits off the batch's."""
        sizes = [len(rows["targets"]) if rows else 0 for rows in self.kept]
        self.logits = part(strategy, *sizes)
        logits, targets = strategy.mb_output.detach(), strategy.mb_y
        if targets.ndim > 1:
            memory = largest(logits, targets, self.method.kept_logits)
        else:
            memory = {"logits": logits, "known": self.seen.expand(len(logits), -1)}
        self.offers.append({"inputs": self.own, "targets": targets, **memory})

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add α times the distance of the logits and β times the loss of the labels."""
        for_logits, for_labels = self.kept
        if for_logits:
            if "known" in for_logits:
                distance = logit_distance(self.logits[0], for_logits["logits"], for_logits["known"])
            else:
                distance = distance_of_largest(self.logits[0], for_logits["targets"], for_logits)
            strategy.loss += self.method.logit_weight * distance
        if for_labels:
            losses = strategy.model.losses(self.logits[1], for_labels["targets"], self.seen)
            strategy.loss += self.method.label_weight * losses.mean()

    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Offer the batch to the reservoir, with the logits that the step's own pass gave."""
        for offer in self.offers:
            self.reservoir.add(self.draws, **offer)

    def kept_samples(self) -> int:
        """Samples in the reservoir."""
        return len(self.reservoir)

    def marks(self) -> list[str]:
        """What is compared of text."""
        if "total" not in self.reservoir.rows:
            return []
        return [f"DER++ compares the {self.method.kept_logits} largest logits of a token and their logsumexp, not all"]

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
    the model with the batch, in one pass. Samples are kept as the step saw them, augmented where the suite augments:
    the original keeps x before the augmentation, with the logits of the augmented x.

    Of text, whose logits would take more than the data, the `kept_logits` largest of each of an answer's tokens
    are kept with the logarithm of the sum of all exponentials, and the distance is taken over those; a mark in
    every table says so.
    """

    name = "derpp"
    paper = "Buzzega et al. 2020 (DER++)"

    head_masking: HeadMasking = Field(default="seen", description="of the current samples; kept ones see all classes")
    logit_weight: Annotated[float, Search(0.01, 1.0)] = Field(default=0.1, ge=0, description="α")
    label_weight: Annotated[float, Search(0.1, 2.0)] = Field(default=0.5, ge=0, description="β")
    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    replay_batch: int = Field(default=32, ge=1, description="kept samples of each of the two draws of a step")

    kept_logits: int = Field(default=32, ge=1, description="largest logits kept of each token of an answer, for text")

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
