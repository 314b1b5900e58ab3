"""MAS: a LoRA held back where its answers are sensitive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from clbench.method import Method, Search, Workbench
from clbench.methods._gradients import evaluating, flat, row_gradients
from clbench.methods._memory import seen_mask
from clbench.model import Classifier
from clbench.strategy import Plugin, Strategy

_CHUNK = 32
"""Samples whose gradients are taken at once."""


def sensitivity(model: Classifier, inputs: Tensor, seen: Tensor) -> Tensor:
    """Mean over samples of |∂|F(x)|² / ∂θ| `[numbers]` for what is trained; F: logits of `seen` `[classes]` bool.

    The absolute value is of each sample's gradient: those of different samples must not cancel.
    """

    def squared_length(logits: Tensor) -> Tensor:
        return (logits.square() * seen).sum()

    rows = inputs[:, None].split(_CHUNK)
    total = sum(row_gradients(model, squared_length, batch).abs().sum(0) for batch in rows)
    return torch.as_tensor(total) / len(inputs)


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
        """Add the sensitivity on some of the task's samples; their labels are not used."""
        draws = self.bench.generator("samples", strategy.task_index)
        picks = torch.randperm(len(strategy.examples), generator=draws)[: self.method.samples]
        inputs, _ = strategy.examples.batch(picks, strategy.device)
        with evaluating(strategy.model):
            found = sensitivity(strategy.model, inputs, seen_mask(strategy))
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

    Departures. Ω is taken over `samples` of the task's samples, not all.
    """

    name = "mas"
    paper = "Aljundi et al. 2018"

    penalty_weight: Annotated[float, Search(0.01, 100)] = Field(default=1.0, ge=0, description="λ")
    samples: int = Field(default=256, ge=1, description="samples of a task that Ω is taken over")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its consolidation."""
        bench.lora()
        return [_Consolidation(self, bench)]
