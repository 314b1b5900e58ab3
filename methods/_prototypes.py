"""Prototypes: what answering by class means of a frozen network needs, under one adapter or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.bottleneck import Bottlenecks, Use
from clbench.strategy import Strategy
from clbench.stream import Stream


def open_answers(stream: Stream) -> str | None:
    """Why there can be no prototypes of `stream`; None where there can."""
    return "answers are open: there are no classes to keep means or covariances of" if stream.is_text else None


class CosineHead(nn.Module):
    """Cosines to trained rows, times a trained scale: the classifier that an adapter is trained with.

    rows: `[classes, width]`, where it starts from.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows.detach().clone())
        self.scale = nn.Parameter(rows.new_ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[batch, classes]`."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


class Views:
    """A sample's features under several adapters, the last of them being the live one.

    While an answer is asked for, the model's own forward pass gives the last view and a plugin the earlier
    ones, by `look` before that pass and `forget` after it.
    """

    def __init__(self, adapters: Bottlenecks, earlier: Sequence[Use] = ()) -> None:
        self.adapters = adapters
        self.earlier: tuple[Use, ...] = tuple(earlier)
        self._beside: Tensor | None = None

    def _under(self, strategy: Strategy, inputs: Tensor, uses: Sequence[Use]) -> Tensor:
        found = []
        for use in uses:
            with self.adapters.using(use), strategy.autocast():
                found.append(strategy.model.features(inputs).float())
        return torch.stack(found)

    @torch.no_grad()
    def of_task(self, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Features `[views, n, width]` and targets `[n]` of the task's training data, in the loader's order."""
        strategy.model.eval()
        uses: tuple[Use, ...] = (*self.earlier, "live")
        found = [(self._under(strategy, inputs, uses), targets) for inputs, targets, *_ in strategy.dataloader]
        return torch.cat([features for features, _ in found], dim=1), torch.cat([targets for _, targets in found])

    @torch.no_grad()
    def look(self, strategy: Strategy) -> None:
        """Take the earlier views of the batch that is asked about."""
        self._beside = self._under(strategy, strategy.mb_x, self.earlier) if self.earlier else None

    def forget(self) -> None:
        """The batch has been answered."""
        self._beside = None

    def joined(self, features: Tensor) -> Tensor:
        """All views `[views, batch, width]`, of which `features` is the last."""
        last = features.float()[None]
        return last if self._beside is None else torch.cat([self._beside, last])


class Answering(nn.Module, ABC):
    """A classifier that learns from a task's features in one look."""

    holds_class_statistics = True

    @abstractmethod
    def learn(self, features: Tensor, targets: Tensor) -> None:
        """Take in `features` `[views, n, width]` of `targets` `[n]`."""


def class_sums(features: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums `[classes, views, width]` in double precision and counts `[classes]`.

    `features` `[views, n, width]`, `targets` `[n]`.
    """
    sums = features.new_zeros(classes, len(features), features.shape[-1], dtype=torch.float64)
    sums.index_add_(0, targets, features.transpose(0, 1).double())
    return sums, torch.bincount(targets, minlength=classes)
