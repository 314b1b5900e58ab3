"""Memory: kept samples by task, a reservoir with logits, and how they join a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.errors import BadValue
from clbench.strategy import Strategy
from clbench.stream import Examples


def seen_mask(strategy: Strategy) -> Tensor:
    """The classes seen so far, `[classes]` bool: what kept samples may be taken for."""
    seen = torch.zeros(strategy.model.classes, dtype=torch.bool, device=strategy.device)
    seen[strategy.seen_classes] = True
    return seen


def masked_cross_entropy(logits: Tensor, targets: Tensor, allowed: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of `[batch, classes]` logits over the `allowed` classes."""
    return F.cross_entropy(logits.masked_fill(~allowed, float("-inf")), targets, reduction=reduction)


def join(strategy: Strategy, *inputs: Tensor) -> None:
    """At `before_forward`: let the coming pass see `inputs` behind the batch, so that one pass serves all."""
    strategy.mbatch = [torch.cat([strategy.mb_x, *inputs]), *strategy.mbatch[1:]]


def part(strategy: Strategy, *sizes: int) -> Sequence[Tensor]:
    """At `after_forward`: undo `join`; returns the logits of what was joined, in parts of `sizes` rows."""
    own = len(strategy.mb_y)
    pieces: Sequence[Tensor] = strategy.mb_output.split([own, *sizes])
    strategy.mb_output, strategy.mbatch = pieces[0], [strategy.mb_x[:own], *strategy.mbatch[1:]]
    return pieces[1:]


class TaskMemory:
    """At most `size` samples, of every past task as many: `size // tasks`, drawn at random from it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.inputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(targets) for targets in self.targets)

    def add(self, examples: Examples, generator: torch.Generator) -> None:
        """Take in a task that has been learned. Raises BadValue where not one sample of each task fits."""
        quota = self.size // (len(self.targets) + 1)
        if not quota:
            raise BadValue(
                f"buffer_samples is {self.size}, less than one for each of {len(self.targets) + 1} tasks; "
                "give at least as many as the stream has tasks."
            )
        picks = torch.randperm(len(examples), generator=generator)[:quota]
        inputs, targets = examples.batch(picks, torch.device("cpu"))
        self.inputs = [*(kept[:quota] for kept in self.inputs), inputs]
        self.targets = [*(kept[:quota] for kept in self.targets), targets]

    def stacked(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs `[tasks, most, …]`, targets and which are present `[tasks, most]`; `most`: of any one task.

        A task that has fewer repeats its own, marked as not present.
        """
        most = torch.arange(max(len(targets) for targets in self.targets))
        inputs = torch.stack([kept[most % len(kept)] for kept in self.inputs])
        targets = torch.stack([kept[most % len(kept)] for kept in self.targets])
        present = torch.stack([most < len(kept) for kept in self.targets])
        return inputs.to(device), targets.to(device), present.to(device)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"inputs": self.inputs, "targets": self.targets}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.inputs, self.targets = state["inputs"], state["targets"]


class LogitReservoir:
    """A reservoir (Vitter 1985) of `size` samples with the logits that they had when they came in.

    `inputs` `[size, …]`, `targets` `[size]`, `logits` and `known` `[size, classes]`; `known` are the classes
    that had been seen by then: the logits of others are noise. Rows from `len(self)` on are empty. What is
    replaced is decided on the CPU from counts alone, so that adding a batch never waits for the device.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.passed = 0
        """Samples offered so far."""
        self.rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.size, self.passed)

    def add(self, generator: torch.Generator, **batch: Tensor) -> None:
        """Offer a batch, one tensor for each column, all on the device."""
        count = len(batch["targets"])
        if not self.rows:
            self.rows = {name: values.new_zeros(self.size, *values.shape[1:]) for name, values in batch.items()}
        order = self.passed + torch.arange(count)
        draws = (torch.rand(count, generator=generator, dtype=torch.float64) * (order + 1)).long()
        places = torch.where(order < self.size, order, draws).tolist()
        taken = {place: row for row, place in enumerate(places) if place < self.size}  # the last one stays
        self.passed += count
        if not taken:
            return
        slots, rows = (torch.tensor(list(part)).to(self.device, non_blocking=True) for part in (taken, taken.values()))
        for name, values in batch.items():
            self.rows[name][slots] = values[rows]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` rows at random without repetition, by column; all of them where there are fewer."""
        picks = torch.randperm(len(self), generator=generator)[:count].to(self.device, non_blocking=True)
        return {name: values[picks] for name, values in self.rows.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"rows": {name: values[: len(self)] for name, values in self.rows.items()}, "passed": self.passed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.passed = state["passed"]
        self.rows = {}
        for name, values in state["rows"].items():
            self.rows[name] = torch.zeros(self.size, *values.shape[1:], dtype=values.dtype, device=self.device)
            self.rows[name][: len(values)] = values.to(self.device)
