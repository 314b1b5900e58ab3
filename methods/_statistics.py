"""Class statistics: what is kept of a class's features so that samples of it can be drawn later."""

from __future__ import annotations

import warnings
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["centroids", "variance", "covariance"]

RIDGE = 1e-4
"""Added to every variance, so that a class of equal features can be drawn from."""


class ClassStatistics:
    """Gaussians of each class's features (HiDe-Prompt, NeurIPS 2023; SLCA, ICCV 2023).

    `kind`: `centroids`, k-means with a diagonal variance each (HiDe's multi-centroid form); `variance`,
    one mean with a diagonal variance; `covariance`, one mean with a full covariance. A class with
    fewer different features than `centroids` has as many centroids as different features; a centroid
    of equal features is drawn from too, where the released code passes over it.

    `classes` `[known]`, `means` `[known, slots, width]`, `used` `[known, slots]` (False: empty slot),
    `spreads`: standard deviations `[known, slots, width]`, or Cholesky factors `[known, 1, width, width]`.
    """

    holds_class_statistics = True

    def __init__(self, width: int, device: torch.device, kind: Kind = "centroids", centroids: int = 10) -> None:
        self.kind = kind
        self.slots = centroids if kind == "centroids" else 1
        spread = (width, width) if kind == "covariance" else (width,)
        self.classes = torch.empty(0, dtype=torch.int64, device=device)
        self.means = torch.empty(0, self.slots, width, device=device)
        self.used = torch.empty(0, self.slots, dtype=torch.bool, device=device)
        self.spreads = torch.empty(0, self.slots, *spread, device=device)

    def __len__(self) -> int:
        return len(self.classes)

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor, seed: int) -> None:
        """Take in classes not known yet: `features` `[n, width]` of `targets` `[n]`; `seed` is the clustering's."""
        for c in targets.unique().tolist():
            rows = features[targets == c].float()
            means, used, spreads = self._clustered(rows, seed) if self.kind == "centroids" else self._single(rows)
            self.classes = torch.cat([self.classes, torch.tensor([c], device=self.classes.device)])
            self.means = torch.cat([self.means, means[None]])
            self.used = torch.cat([self.used, used[None]])
            self.spreads = torch.cat([self.spreads, spreads[None]])

    def _single(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, freedom = rows.mean(0, keepdim=True), max(1, len(rows) - 1)
        centred = (rows - mean).double()
        if self.kind == "variance":
            spread = (centred.square().sum(0, keepdim=True) / freedom + RIDGE).sqrt()
        else:
            ridge = RIDGE * torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
            spread = torch.linalg.cholesky(centred.T @ centred / freedom + ridge)[None]
        return mean, torch.ones_like(mean[:, 0], dtype=torch.bool), spread.float()

    def _clustered(self, rows: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        labels = kmeans(rows, self.slots, seed)
        means = rows.new_zeros(self.slots, rows.shape[1])
        used, spreads = torch.zeros_like(means[:, 0], dtype=torch.bool), means.clone()
        for slot in labels.unique().tolist():
            members = rows[labels == slot]
            means[slot], used[slot] = members.mean(0), True
            spreads[slot] = (members.var(0, correction=0) + RIDGE).sqrt()
        return means, used, spreads

    def centroids(self) -> Tensor:
        """The means of all classes that are in use, `[centroids, width]`."""
        return self.means[self.used]

    @torch.no_grad()
    def sample(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features `[known * per_class, width]` and the place in `classes` of each one's class.

        Every centroid of a class is as likely. `generator` is a CPU generator: the same numbers on every device.
        """
        known, device = len(self), self.means.device
        likely = self.used.float().cpu()
        slots = torch.multinomial(likely, per_class, replacement=True, generator=generator).to(device)
        places = torch.arange(known, device=device)[:, None].expand_as(slots)  # [known, per_class] both
        noise = torch.randn(known, per_class, self.means.shape[-1], generator=generator).to(device)
        if self.kind == "covariance":
            noise = torch.einsum("kij,knj->kni", self.spreads[:, 0], noise)
        else:
            noise *= self.spreads[places, slots]
        return (self.means[places, slots] + noise).flatten(0, 1), places.flatten()

    def state(self) -> dict[str, Any]:
        """All tensors."""
        return {"classes": self.classes, "means": self.means, "used": self.used, "spreads": self.spreads}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        device = self.classes.device
        self.classes, self.means = state["classes"].to(device), state["means"].to(device)
        self.used, self.spreads = state["used"].to(device), state["spreads"].to(device)


def kmeans(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster of each of `rows` `[n, width]`, `[n]` int64 below `clusters`, of which some may have no row."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(clusters, len(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters: some stay empty
        # In double precision, because its threads add up in any order, and a label must not hang on their rounding.
        found = KMeans(count, n_init=1, random_state=seed % 2**32).fit(rows.double().cpu().numpy())
    return torch.from_numpy(found.labels_).to(rows.device).long()
