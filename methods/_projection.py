"""Projection: a correction of every step, so that it keeps to what past tasks allow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from clbench.methods._gradients import flat, flat_gradient, parts
from clbench.strategy import Plugin, Strategy

Projected: TypeAlias = Literal["update", "gradient"]


class Projection(Plugin, ABC):
    """Adds `correction(direction)` to the direction u of a step: θ goes to θ - u - correction.

    `update`: u is what the optimiser has just applied, whatever it is, so that what is promised of the
    direction holds of the step. `gradient`: u is the gradient, before the optimiser, as papers write it;
    the promise then holds under SGD without momentum and weight decay only, because Adam scales every
    number on its own. Under that SGD both are the same where the correction of c·u is c times that of u.
    """

    def __init__(self, projected: Projected) -> None:
        super().__init__()
        self.projected = projected

    @abstractmethod
    def prepare(self, strategy: Strategy) -> bool:
        """Take in what the correction needs at the weights before the step; False where there is no past."""

    @abstractmethod
    def correction(self, direction: Tensor) -> Tensor | None:
        """What is added to `direction` `[numbers]`; None for nothing."""

    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Correct the gradient, or remember the weights."""
        self.before: Tensor | None = None
        if not self.prepare(strategy):
            return
        trained = strategy.model.trainable()
        if self.projected == "update":
            self.before = flat(trained).detach()
            return
        added = self.correction(flat_gradient(trained))
        if added is not None:
            for parameter, by in zip(trained, parts(added, trained), strict=True):
                parameter.grad = by.clone() if parameter.grad is None else parameter.grad + by

    @torch.no_grad()
    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Correct the update."""
        if self.before is None:
            return
        trained = strategy.model.trainable()
        added = self.correction(self.before - flat(trained))
        if added is not None:
            for parameter, by in zip(trained, parts(added, trained), strict=True):
                parameter -= by
