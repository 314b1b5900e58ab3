"""RanPAC: ridge regression on a fixed random expansion of features that the first task has adapted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.adapters import bottleneck
from clbench.errors import Diverged
from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._first_session import FirstSession
from clbench.methods._prototypes import Answering, Views, open_answers
from clbench.strategy import Plugin
from clbench.stream import Stream
from clbench.terms import Schedule

RIDGES = tuple(10.0**power for power in range(-8, 9))


def solution(system: Tensor, ridge: float, target: Tensor) -> Tensor | None:
    """X with (system + ridge I) X = target; None where that sum is not positive definite in its precision."""
    shifted = system.clone()
    shifted.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    return None if failed else torch.cholesky_solve(target, factor)


def best_ridge(expanded: Tensor, labels: Tensor) -> float:
    """The λ of `RIDGES` that, fitted on the first 80 % of the rows, has the least squared error on the others.

    expanded: `[n, expansion]`, labels: `[n, classes]`. With fewer rows than columns the dual form is solved,
    which gives the same answers: (Φ'Φ + λI)⁻¹ Φ'Y = Φ'(ΦΦ' + λI)⁻¹ Y.
    """
    cut = int(0.8 * len(expanded))
    fit, rest = expanded[:cut], expanded[cut:]
    if cut < expanded.shape[1]:
        system, target, asked = fit @ fit.T, labels[:cut], rest @ fit.T
    else:
        system, target, asked = fit.T @ fit, fit.T @ labels[:cut], rest
    errors = {}
    for ridge in RIDGES:
        found = solution(system, ridge, target)
        if found is not None:
            errors[ridge] = float((asked @ found - labels[cut:]).square().mean())
    return min(errors, key=lambda ridge: errors[ridge], default=RIDGES[-1])


class RidgeHead(Answering):
    """φ(x) = ReLU(f(x) W) and the readout (G + λI)⁻¹ Q, with G = Σ φφ' and Q = Σ φy' over all samples so far."""

    projection: Tensor
    gram: Tensor
    products: Tensor
    readout: Tensor
    ridge: Tensor

    def __init__(self, method: RanPAC, width: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.method, size = method, method.expansion
        self.register_buffer("projection", torch.randn(width, size, generator=generator))
        self.register_buffer("gram", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(size, classes, dtype=torch.float64))
        self.register_buffer("readout", torch.zeros(classes, size))
        self.register_buffer("ridge", torch.zeros((), dtype=torch.float64))

    def expanded(self, features: Tensor) -> Tensor:
        """φ `[batch, expansion]` of features `[batch, width]`."""
        return F.relu(features.float() @ self.projection)

    @torch.no_grad()
    def learn(self, features: Tensor, targets: Tensor) -> None:
        """Take in `features` `[1, n, width]` of `targets` `[n]` and solve for the readout."""
        expanded = self.expanded(features[-1]).double()
        labels = F.one_hot(targets, self.products.shape[1]).double()
        self.gram.addmm_(expanded.T, expanded)
        self.products.addmm_(expanded.T, labels)
        self._solve(best_ridge(expanded, labels) if self.method.ridge is None else self.method.ridge)

    def _solve(self, ridge: float) -> None:
        """With the least λ from `ridge` upwards, in steps of ten, for which G + λI can be factored."""
        for larger in range(24):
            found = solution(self.gram, ridge * 10.0**larger, self.products)
            if found is not None:
                self.ridge.fill_(ridge * 10.0**larger)
                self.readout.copy_(found.T)
                return
        raise Diverged("the adapted features are not finite numbers; lower the learning rate.")

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[batch, classes]`; 0 for a class never seen."""
        with torch.autocast(features.device.type, enabled=False):
            expanded, readout = self.expanded(features), self.readout
            if self.method.compat_cosine:
                expanded, readout = F.normalize(expanded, dim=-1), F.normalize(readout, dim=-1)
            return F.linear(expanded, readout)


class _RidgeSession(FirstSession):
    answer: RidgeHead

    def notes(self) -> dict[str, Any]:
        """The λ of the last task."""
        return {"last_ridge": float(self.answer.ridge)}


class RanPAC(Method):
    """McDonnell et al., NeurIPS 2023: argmax_c φ(x)' W_c, W = (G + λI)⁻¹ Q, φ = ReLU(f(x) W_random).

    f is adapted in the first task (AdaptFormer's adapter, a cosine classifier) and frozen then, so that G and Q
    are exact sums: given λ, the order of the tasks after the first changes nothing. λ is chosen anew for each
    task on the last fifth of that task's features, in the loader's (shuffled) order, as in the released code.

    G, Q and the solution are in double precision, by Cholesky's factors; where a λ is too small for them, the
    next larger power of ten is taken. M = 10,000 needs 0.8 GB for G, and as much again twice while it is solved.

    Departures: optimiser, passes and batch of the first task are the recipe's (released: SGD, a cosine, 20
    epochs), and the adapter has one form for every stream and no dropout (released: the form is chosen for each
    data set, and training drops 10 % of the hidden units). The readout is linear as in the original; a common
    later code divides features and rows of W by their lengths: `compat_cosine`.
    """

    name = "ranpac"
    paper = "McDonnell et al. 2023"
    schedule: ClassVar[Schedule] = "first"

    expansion: int = Field(default=10_000, ge=1, description="M, random features")
    ridge: float | None = Field(default=None, gt=0, description="λ; chosen for each task when not given")
    hidden: int = Field(default=64, ge=1, description="units of an adapter")
    scale: Annotated[float, Search(0.01, 1)] = Field(default=0.1, gt=0, description="what adapters are multiplied by")
    compat_cosine: bool = Field(default=False, description="read out by cosines, as a common reimplementation does")

    def resources(self) -> Resources:
        """G, Q and W, allocated at the start."""
        return Resources(class_statistics=True, stored_mib_per_task=0.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Open answers."""
        return open_answers(stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """The adapter and the regression behind it."""
        model = bench.model
        views = Views(bottleneck.attach(model, self.hidden, self.scale, bench.generator("adapter")))
        head = RidgeHead(self, model.width, model.classes, bench.generator("projection"))
        return [_RidgeSession(bench, views, head)]
