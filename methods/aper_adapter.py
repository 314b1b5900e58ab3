"""APER: class means of plain and first-task-adapted features side by side, the form with bottleneck adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.adapters import bottleneck
from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._first_session import FirstSession
from clbench.methods._prototypes import Answering, Views, class_sums, open_answers
from clbench.strategy import Plugin
from clbench.stream import Stream
from clbench.terms import Schedule


class PrototypeHead(Answering):
    """Cosine to the mean of each class's views put end to end."""

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int, classes: int, views: Views) -> None:
        super().__init__()
        self.views = views
        self.register_buffer("sums", torch.zeros(classes, 2, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    @torch.no_grad()
    def learn(self, features: Tensor, targets: Tensor) -> None:
        """Add `features` `[2, n, width]` of `targets` `[n]` to the sums."""
        sums, counts = class_sums(features, targets, len(self.counts))
        self.sums += sums
        self.counts += counts

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, classes]` cosines; 0 for a class never seen."""
        with torch.autocast(features.device.type, enabled=False):
            joined = self.views.joined(features).transpose(0, 1).flatten(1)  # [batch, 2 * width]
            means = (self.sums / self.counts.clamp(min=1)[:, None, None]).float().flatten(1)
            return F.linear(F.normalize(joined, dim=-1), F.normalize(means, dim=-1))


class APERAdapter(Method):
    """Zhou et al., IJCV 2024 (APER, first called ADAM), with the adapter of AdaptFormer (Chen et al. 2022).

    The adapter is trained in the first task, with a cosine classifier. Then all is frozen, features are
    [f(x); f_adapted(x)], and the answer is the nearest class mean by cosine, also for the first task's classes.
    Scoring takes two passes of the backbone.

    Departures: optimiser, passes and batch are the recipe's (the released code: SGD, a cosine, 20 epochs).
    Means are of training images as they are, never augmented.
    """

    name = "aper-adapter"
    paper = "Zhou et al. 2024 (APER)"
    schedule: ClassVar[Schedule] = "first"

    hidden: int = Field(default=64, ge=1, description="units of an adapter")
    scale: Annotated[float, Search(0.01, 1)] = Field(default=0.1, gt=0, description="what adapters are multiplied by")

    def resources(self) -> Resources:
        """One mean a class, allocated at the start."""
        return Resources(class_statistics=True, stored_mib_per_task=0.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Open answers."""
        return open_answers(stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """The adapter, and the means of what it and the untouched backbone see."""
        model = bench.model
        views = Views(bottleneck.attach(model, self.hidden, self.scale, bench.generator("adapter")), ["none"])
        return [FirstSession(bench, views, PrototypeHead(model.width, model.classes, views))]
