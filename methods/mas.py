"""MAS: a LoRA held back where its answers are sensitive."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from clbench.method import Method, Search, Workbench
from clbench.methods._answers import answered
from clbench.methods._gradients import at_once, chunks, evaluating, flat, row_gradients
from clbench.methods._memory import seen_mask
from clbench.model import Classifier
from clbench.strategy import Plugin, Strategy

_CHUNK = 32
"""Samples whose gradients are taken at once."""


def sensitivity(model: Classifier, inputs: Tensor, targets: Tensor, seen: Tensor, chunk: int = _CHUNK) -> Tensor:
    """Mean over samples of |∂|F(x)|² / ∂θ| `[numbers]` for what is trained; F: logits of `seen` `[classes]` bool.

    Of text |F|² is the mean over the answer's tokens; of `targets` only their places are looked at. The absolute
    value is of each sample's gradient: those of different samples must not cancel.
    """

    def squared_length(logits: Tensor, targets: Tensor) -> Tensor:
        at, shares = answered(logits, targets)
        return (at.square() * seen * shares.unsqueeze(-1)).sum()

    batches = chunks(chunk, inputs, targets)
    sums = [row_gradients(model, squared_length, x[:, None], y[:, None]).abs().sum(0) for x, y in batches]
    return functools.reduce(torch.add, sums) / len(inputs)


class _Consolidation(Plugin):
    def __init__(self, method: MAS, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.importance: Tensor | None = None
        self.centre: Tensor | None = None

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add λ Σ Ω (θ - θ*)²."""
        if self.importance is None or self.centre is None or not self.method.penalty_weight:
            return
        away = flat(strategy.model.trainable()) - self.centre
        strategy.loss += self.method.penalty_weight * (self.importance * away.square()).sum()

    @torch.no_grad()
    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add the sensitivity on some of the task's samples; classes are not looked at."""
        draws = self.bench.generator("samples", strategy.task_index)
        picks = torch.randperm(len(strategy.examples), generator=draws)[: self.method.samples]
        inputs, targets = strategy.examples.batch(picks, strategy.device)
        chunk = at_once(strategy.recipe, inputs, _CHUNK)
        with evaluating(strategy.model), strategy.autocast(cached=False):
            found = sensitivity(strategy.model, inputs, targets, seen_mask(strategy), chunk)
        self.importance = found if self.importance is None else self.importance + found
        self.centre = flat(strategy.model.trainable())

    def state(self) -> dict[str, Any]:
        """Importance and centre of the trained parameters."""
        return {"importance": self.importance, "centre": self.centre}

    def load_state(self, state: dict[str, Any]) -> None:
        """Importance and centre."""
        device = self.bench.device
        self.importance, self.centre = state["importance"].to(device), state["centre"].to(device)


class MAS(Method):
    """Aljundi et al., ECCV 2018: L + λ Σ Ω (θ - θ*)², Ω the mean of |∂|F(x)|² / ∂θ| over samples.

    F are the logits of all classes seen so far; no label is looked at. Ω adds up over the tasks, θ* is
    where the last one left the weights. Gradients are those of single samples in evaluation mode: of a
    batch's mean, samples would cancel.

    Departures. Ω is taken over `samples` of the task's samples, not all. Of text F are the logits over the
    vocabulary at the answer's tokens, behind the true ones, and |F|² is the mean over them; so the answers
    are looked at, though not what they say of the gradient. |F|² grows with the vocabulary: λ must be tuned anew.
    """

    name = "mas"
    paper = "Aljundi et al. 2018"

    penalty_weight: Annotated[float, Search(0.01, 100)] = Field(default=1.0, ge=0, description="λ")
    samples: int = Field(default=256, ge=1, description="samples of a task that Ω is taken over")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its consolidation."""
        bench.lora()
        return [_Consolidation(self, bench)]
