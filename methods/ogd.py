"""OGD: a LoRA whose steps are orthogonal to what would change past answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from clbench.method import Method, Resources, Workbench
from clbench.methods._answers import true_logits
from clbench.methods._gradients import at_once, chunks, evaluating, row_gradients
from clbench.methods._projection import Projected, Projection
from clbench.strategy import Plugin, Strategy

_CHUNK = 32
"""Samples whose gradients are taken at once."""
_DEPENDENT = 1e-6
"""A vector of which less than this share is left beside the basis is in its span, but for rounding."""


def extended(basis: Tensor, vectors: Tensor) -> Tensor:
    """Orthonormal rows that span `basis` `[k, numbers]`, which is orthonormal, and `vectors` `[n, numbers]`.

    Gram-Schmidt, each vector twice against all before it: once loses orthogonality to rounding where little
    is left. Vectors in the span already are dropped.
    """
    count, rows = len(basis), torch.cat([basis, torch.zeros_like(vectors)])
    for vector in vectors:
        left = vector
        for _ in range(2):
            left = left - (rows[:count] @ left) @ rows[:count]
        size = torch.linalg.vector_norm(left)
        if size > _DEPENDENT * torch.linalg.vector_norm(vector):
            rows[count] = left / size
            count += 1
    return rows[:count].clone()


class _Orthogonal(Projection):
    def __init__(self, method: OGD, bench: Workbench) -> None:
        super().__init__(method.projected)
        self.method, self.bench = method, bench
        self.basis: Tensor | None = None

    def prepare(self, strategy: Strategy) -> bool:
        """Whether there is a past."""
        return self.basis is not None

    def correction(self, direction: Tensor) -> Tensor:
        """-V'Vu: what of the direction lies in the span of the kept gradients."""
        assert self.basis is not None
        return -(self.basis @ direction) @ self.basis

    @torch.no_grad()
    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the gradients of the true classes' logits, at the weights that the task ends with."""
        draws = self.bench.generator("vectors", strategy.task_index)
        picks = torch.randperm(len(strategy.examples), generator=draws)[: self.method.vectors]
        inputs, targets = strategy.examples.batch(picks, strategy.device)
        batches = chunks(at_once(strategy.recipe, inputs, _CHUNK), inputs, targets)
        with evaluating(strategy.model), strategy.autocast(cached=False):
            found = [row_gradients(strategy.model, _output, x[:, None], y[:, None]) for x, y in batches]
        vectors = torch.cat(found)
        self.basis = extended(vectors[:0] if self.basis is None else self.basis, vectors)

    def state(self) -> dict[str, Any]:
        """The basis."""
        return {"basis": self.basis}

    def load_state(self, state: dict[str, Any]) -> None:
        """The basis."""
        self.basis = state["basis"].to(self.bench.device)

    def kept_gradients(self) -> int:
        """The vectors of the basis, at most one a gradient."""
        return 0 if self.basis is None else len(self.basis)

    def notes(self) -> dict[str, Any]:
        """How many directions are barred, of how many numbers that are trained."""
        return {} if self.basis is None else {"barred_directions": list(self.basis.shape)}


def _output(logits: Tensor, targets: Tensor) -> Tensor:
    """Of a batch of one."""
    return true_logits(logits, targets)[0]


class OGD(Method):
    """Farajtabar et al., AISTATS 2020: g̃ = g - VV'g, V an orthonormal basis of past outputs' gradients.

    Kept are the gradients of the true class's logit (the paper's OGD-GTL), not of the loss, for `vectors`
    samples of each past task, taken one sample at a time: to first order a step leaves those logits as
    they were. A step costs two products with V, so it grows with the tasks, as the method's mathematics
    has it. Of text the output is the sum of the logits of the answer's own tokens: one vector a sample.

    Departures. The applied update is projected, not the gradient, because Adam would bend a projected
    gradient back; `projected="gradient"` is the paper's, meant for SGD. Only what is trained, LoRA and
    head, is projected and kept.
    """

    name = "ogd"
    paper = "Farajtabar et al. 2020"

    vectors: int = Field(default=200, ge=1, description="samples of a task whose gradients are kept")
    projected: Projected = Field(default="update", description="the optimiser's update, or the gradient before it")

    def resources(self) -> Resources:
        """A vector as long as what is trained for each sample; declared for up to four million numbers."""
        return Resources(stored_gradients=self.vectors, stored_mib_per_task=16.0 * self.vectors)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the projection."""
        bench.lora()
        return [_Orthogonal(self, bench)]
