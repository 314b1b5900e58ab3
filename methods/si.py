"""SI: a LoRA held back where past tasks' training gained the most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from clbench.method import Method, Search, Workbench
from clbench.methods._gradients import flat, flat_gradient, parts
from clbench.strategy import Plugin, Strategy


class _Path(Plugin):
    def __init__(self, method: SI, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.importance: Tensor | None = None
        self.centre: Tensor | None = None

    @torch.no_grad()
    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Begin a path."""
        self.start = flat(strategy.model.trainable())
        self.gain = torch.zeros_like(self.start)

    @torch.no_grad()
    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Note the loss's gradient, then add the penalty's, 2 c Ω (θ - θ*).

        The penalty enters here and not in the loss, because a path's gain is counted in the loss alone.
        """
        trained = strategy.model.trainable()
        self.before, self.gradient = flat(trained), flat_gradient(trained)
        if self.importance is None or self.centre is None or not self.method.penalty_weight:
            return
        pull = 2 * self.method.penalty_weight * self.importance * (self.before - self.centre)
        for parameter, by in zip(trained, parts(pull, trained), strict=True):
            parameter.grad = by.clone() if parameter.grad is None else parameter.grad + by

    @torch.no_grad()
    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add -gradient times step to the gain."""
        self.gain -= self.gradient * (flat(strategy.model.trainable()) - self.before)

    @torch.no_grad()
    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the path's gain into the past's importance."""
        here = flat(strategy.model.trainable())
        found = self.gain / ((here - self.start).square() + self.method.damping)
        self.importance = (found if self.importance is None else self.importance + found).clamp(min=0)
        self.centre = here

    def state(self) -> dict[str, Any]:
        """Importance and centre of the trained parameters."""
        return {"importance": self.importance, "centre": self.centre}

    def load_state(self, state: dict[str, Any]) -> None:
        """Importance and centre."""
        device = self.bench.device
        self.importance, self.centre = state["importance"].to(device), state["centre"].to(device)


class SI(Method):
    """Zenke et al., ICML 2017: L + c Σ Ω (θ - θ*)², Ω = Σ_tasks ω / (Δ² + ξ) (Eqs. 4, 5).

    ω is the sum over a task's steps of -gradient times step, the part of the loss's fall that a parameter
    brought about; Δ how far it went in the task; θ* where the last task left it. The gradient is the
    loss's, without the penalty; the step is the optimiser's, whichever it is.

    ξ = 0.001 is the paper's for split tasks (0.1 for permuted ones); with c = 1 the past's loss weighs
    what it brought about.

    A sum Ω below zero, which mini-batches can make, is set to zero as in the released code: it would
    drive a parameter away. The optimiser begins anew with each task, as in the paper.
    """

    name = "si"
    paper = "Zenke et al. 2017"

    penalty_weight: Annotated[float, Search(0.01, 100)] = Field(default=1.0, ge=0, description="c")
    damping: float = Field(default=1e-3, gt=0, description="ξ")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its path."""
        bench.lora()
        return [_Path(self, bench)]
