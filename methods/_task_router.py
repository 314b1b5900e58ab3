"""Task router: infers the task of a question from where those of each task lie among untouched features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clbench.methods._statistics import kmeans

RIDGE = 0.01
"""Added to the variances, in units of their mean: there are more features than questions to learn them from."""


class TaskRouter:
    """A mixture of Gaussians for each task, one covariance for all; the likeliest task is inferred.

    For answers that have no classes, where HiDe's classifier has nothing to learn from [ours]. A task's
    Gaussians stand at the k-means centroids of its questions' features and weigh as much as they have members;
    the covariance is that of all tasks' features about their own centroids, with a ridge of `RIDGE` times its
    mean variance. Computed in double precision, so that no answer hangs on the batch it is asked in.

    `means` `[tasks, centroids, width]`, `shares` `[tasks, centroids]` (0: no member), `scatter` `[width, width]`
    and `count`: the summed products of the deviations of so many features.
    """

    holds_class_statistics = True

    def __init__(self, width: int, device: torch.device, centroids: int = 10) -> None:
        self.centroids = centroids
        self.means = torch.empty(0, centroids, width, dtype=torch.float64, device=device)
        self.shares = torch.empty(0, centroids, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.count = 0
        self._ready: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.means)

    @torch.no_grad()
    def add(self, features: Tensor, seed: int) -> None:
        """Take in the next task by the `features` `[n, width]` of its questions; `seed` is the clustering's."""
        rows = features.double()
        member = torch.nn.functional.one_hot(kmeans(features, self.centroids, seed), self.centroids).double()
        sizes = member.sum(0)
        means = member.T @ rows / sizes.clamp(min=1)[:, None]
        deviations = rows - member @ means
        self.scatter = self.scatter + deviations.T @ deviations
        self.count += len(rows)
        self.means = torch.cat([self.means, means[None]])
        self.shares = torch.cat([self.shares, (sizes / len(rows))[None]])
        self._ready = None

    @torch.no_grad()
    def likelihoods(self, features: Tensor) -> Tensor:
        """log p(x | task) `[n, tasks]` of `features` `[n, width]`, but for what is the same for all tasks.

        With L L' the covariance and w = L⁻¹x, m = L⁻¹μ: log Σ_k π_k exp(w·m_k - m_k·m_k / 2).
        """
        if self._ready is None:
            self._ready = self._prepared()
        factor, whitened, offsets = self._ready
        points = torch.linalg.solve_triangular(factor, features.double().T, upper=False).T
        each: Tensor = (points @ whitened.T + offsets).unflatten(1, self.shares.shape)
        return each.logsumexp(2)

    def _prepared(self) -> tuple[Tensor, Tensor, Tensor]:
        """L, the whitened means `[tasks * centroids, width]`, and log π - m·m / 2 of each."""
        covariance = self.scatter / self.count
        ridge = RIDGE * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(covariance))
        whitened = torch.linalg.solve_triangular(factor, self.means.flatten(0, 1).T, upper=False).T
        return factor, whitened, self.shares.flatten().log() - whitened.square().sum(1) / 2

    def tasks(self, features: Tensor) -> Tensor:
        """The inferred task of each row of `features` `[n, width]`, `[n]` int64."""
        return self.likelihoods(features).argmax(1)

    def state(self) -> dict[str, Any]:
        """All that `add` has changed."""
        return {"means": self.means, "shares": self.shares, "scatter": self.scatter, "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        device = self.means.device
        self.means, self.shares = state["means"].to(device), state["shares"].to(device)
        self.scatter, self.count, self._ready = state["scatter"].to(device), state["count"], None
