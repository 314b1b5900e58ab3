"""NCM: nearest class mean on the features of the untouched backbone (SimpleCIL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.method import Method, Resources, Workbench
from clbench.methods._prototypes import open_answers
from clbench.methods._untouched import untouched
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream
from clbench.terms import Schedule


class PrototypeHead(nn.Module):
    """Cosine similarity to the mean feature of each class; sums and counts are exact in any order."""

    holds_class_statistics = True

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(classes, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Take `[batch, width]` features of `[batch]` targets into the means."""
        self.sums.index_add_(0, targets, features.to(torch.float64))
        self.counts += torch.bincount(targets, minlength=len(self.counts))

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, classes]` cosines; 0 for a class never seen."""
        means = (self.sums / self.counts.clamp(min=1)[:, None]).to(features.dtype)
        return F.normalize(features, dim=-1) @ F.normalize(means, dim=-1).T


class _Means(Plugin):
    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        self.head = head

    @torch.no_grad()
    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """One pass over the task in evaluation mode."""
        strategy.model.eval()
        for inputs, targets, _ in strategy.dataloader:
            self.head.add(untouched(strategy, inputs), targets)


class NCM(Method):
    """Zhou et al., IJCV 2024 (SimpleCIL): class means of frozen features, answer by largest cosine.

    Nothing is trained, and the order of the tasks changes nothing.
    """

    name = "ncm"
    paper = "Zhou et al. 2024 (SimpleCIL)"
    schedule: ClassVar[Schedule] = "none"

    def resources(self) -> Resources:
        """One mean a class, allocated at the start."""
        return Resources(class_statistics=True, stored_mib_per_task=0.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Open answers."""
        return open_answers(stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Replace the linear head by the prototypes."""
        head = PrototypeHead(bench.model.width, bench.model.classes).to(bench.device)
        bench.model.head = head
        return [_Means(head)]
