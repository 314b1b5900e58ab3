"""Buffer: a bounded set of past training samples, kept by class or by reservoir."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from clbench.stream import Examples


class Buffer:
    """At most `size` samples.

    `class`: every class seen has the same quota, `size // classes`; a quota that shrinks drops the
    samples that came last in the class's random order. `reservoir`: every sample of the stream is
    kept with equal probability size / n (Vitter 1985).
    """

    def __init__(self, size: int, policy: Literal["class", "reservoir"]) -> None:
        self.size, self.policy = size, policy
        self.inputs: Tensor | None = None
        self.targets = torch.empty(0, dtype=torch.int64)
        self.passed = 0
        """Samples of the stream so far."""

    def __len__(self) -> int:
        return len(self.targets)

    def add(self, examples: Examples, generator: torch.Generator) -> None:
        """Take in a task that has been learned."""
        count = len(examples)
        if self.policy == "class":
            offered = torch.randperm(count, generator=generator)
        else:
            offered = self._reservoir(count, generator)
        inputs, targets = examples.batch(offered, torch.device("cpu"))
        if self.inputs is not None:
            inputs, targets = torch.cat([self.inputs, inputs]), torch.cat([self.targets, targets])
        if self.policy == "class":
            keep = self._balanced(targets)
            inputs, targets = inputs[keep], targets[keep]
        self.inputs, self.targets = inputs, targets
        self.passed += count

    def _balanced(self, targets: Tensor) -> Tensor:
        classes = targets.unique()
        quota = self.size // len(classes)
        kept = [(targets == c).nonzero().flatten()[:quota] for c in classes]
        return torch.cat(kept).sort().values

    def _reservoir(self, count: int, generator: torch.Generator) -> Tensor:
        """Drops what is replaced; returns which of the `count` new samples come in."""
        draws = torch.rand(count, generator=generator, dtype=torch.float64)
        slots: list[int] = list(range(len(self)))  # ≥ 0: an old sample's place; < 0: -1 - index of a new one
        for index, draw in enumerate(draws.tolist()):
            if len(slots) < self.size:
                slots.append(-1 - index)
                continue
            place = int(draw * (self.passed + index + 1))
            if place < self.size:
                slots[place] = -1 - index
        old = torch.tensor([slot for slot in slots if slot >= 0], dtype=torch.int64)
        if self.inputs is not None:
            self.inputs, self.targets = self.inputs[old], self.targets[old]
        return torch.tensor([-1 - slot for slot in slots if slot < 0], dtype=torch.int64)

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
        """`count` samples at random without repetition; all of them where there are fewer."""
        assert self.inputs is not None
        picks = torch.randperm(len(self), generator=generator)[:count]
        return self.inputs[picks].to(device, non_blocking=True), self.targets[picks].to(device, non_blocking=True)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"inputs": self.inputs, "targets": self.targets, "passed": self.passed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.inputs, self.targets, self.passed = state["inputs"], state["targets"], state["passed"]
