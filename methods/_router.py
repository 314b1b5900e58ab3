"""Router: infers the task of a sample from the untouched backbone's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.model import Head
from clbench.seeding import generator


class Router(nn.Module):
    """A residual network and a linear layer over all classes; the task is that of the likeliest seen class.

    HiDe-Prompt's task-identity inference (Wang et al., NeurIPS 2023): `width` to twice `width` and
    back, layer norm, then the classifier. It stands beside the model: the method's training never
    touches it, and it never sees an adapted feature.
    """

    task_of_class: Tensor

    def __init__(self, width: int, classes: int, seed: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, classes, seed)
        self.register_buffer("task_of_class", torch.full((classes,), -1))
        draws = generator(seed, "router")
        with torch.no_grad():
            for layer in (self.up, self.down):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=draws) * layer.in_features**-0.5)
                layer.bias.zero_()

    def adapted(self, features: Tensor) -> Tensor:
        """What the linear layer sees, `[batch, width]`."""
        normed: Tensor = self.norm(features + self.down(F.gelu(self.up(features))))
        return normed

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[batch, classes]`."""
        logits: Tensor = self.head(self.adapted(features))
        return logits

    def tasks(self, features: Tensor) -> Tensor:
        """The inferred task of each row of `features` `[batch, width]`, `[batch]` int64."""
        seen = self.task_of_class >= 0
        return self.task_of_class[self(features).masked_fill(~seen, float("-inf")).argmax(1)]

    def learn(
        self, features: Tensor, targets: Tensor, task: int, *, epochs: int, batch: int, rate: float, seed: int
    ) -> None:
        """Adam on one task's features with cross-entropy over its classes; remembers whose they are."""
        classes = targets.unique()
        self.task_of_class[classes] = task
        allowed = torch.zeros_like(self.task_of_class, dtype=torch.bool)
        allowed[classes] = True
        optimizer = torch.optim.Adam(self.parameters(), lr=rate, fused=True)
        draws = generator(seed, "router order")
        for _ in range(epochs):
            for rows in torch.randperm(len(targets), generator=draws).to(features.device).split(batch):
                logits = self(features[rows]).masked_fill(~allowed, float("-inf"))
                optimizer.zero_grad()
                F.cross_entropy(logits, targets[rows]).backward()
                optimizer.step()
