"""Memory: kept samples by task, a reservoir with logits, and how they join a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clbench import padding
from clbench.errors import BadValue
from clbench.methods._buffer import distinct, too_few
from clbench.strategy import Strategy
from clbench.stream import Examples


def seen_mask(strategy: Strategy) -> Tensor:
    """The classes seen so far, `[classes]` bool: what kept samples may be taken for."""
    seen = torch.zeros(strategy.model.classes, dtype=torch.bool, device=strategy.device)
    seen[strategy.seen_classes] = True
    return seen


def share(count: int, strategy: Strategy, whole: int) -> int:
    """How many of `count` kept samples belong to the coming pass, when a batch of `whole` is taken in several."""
    return -(-count * len(strategy.mb_y) // whole)


def join(strategy: Strategy, *inputs: Tensor) -> None:
    """At `before_forward`: let the coming pass see `inputs` behind the batch, so that one pass serves all."""
    strategy.mbatch = [padding.join([strategy.mb_x, *inputs]), *strategy.mbatch[1:]]


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
        tasks = len(self.targets) + 1
        shortage = too_few("buffer_samples", self.size, tasks, "tasks")
        if shortage:
            raise BadValue(f"{shortage}.")
        quota = self.size // tasks
        rows = distinct(examples)
        picks = rows[torch.randperm(len(rows), generator=generator)[:quota]]
        inputs, targets = examples.batch(picks, torch.device("cpu"))
        self.inputs = [*(kept[:quota] for kept in self.inputs), inputs]
        self.targets = [*(kept[:quota] for kept in self.targets), targets]

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs `[tasks, most, …]`, targets and which are present `[tasks, most]`; `most`: of any one task.

        On the CPU. A task that has fewer repeats its own, marked as not present.
        """
        most = torch.arange(max(len(targets) for targets in self.targets))
        inputs = padding.stack([kept[most % len(kept)] for kept in self.inputs])
        targets = padding.stack([kept[most % len(kept)] for kept in self.targets])
        present = torch.stack([most < len(kept) for kept in self.targets])
        return inputs, targets, present

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"inputs": self.inputs, "targets": self.targets}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.inputs, self.targets = state["inputs"], state["targets"]


class LogitReservoir:
    """A reservoir (Vitter 1985) of `size` samples with the logits that they had when they came in.

    `rows` has a column for each tensor of a batch, `[size, …]`, such as `inputs`, `targets` and `logits`. Columns
    of text differ in width from batch to batch: they end together in the last dimension, and the narrower are
    padded on the left. Rows from `len(self)` on are empty. What is replaced is decided on the CPU from counts
    alone, so that adding a batch never waits for the device.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.passed = 0
        """Samples offered so far."""
        self.rows: dict[str, Tensor] = {}
        self.widths: dict[str, Tensor] = {}
        """How wide each sample's batch was, `[size]`, for the columns that have a width."""

    def __len__(self) -> int:
        return min(self.size, self.passed)

    def add(self, generator: torch.Generator, **batch: Tensor) -> None:
        """Offer a batch, one tensor for each column, all on the device."""
        count = len(batch["targets"])
        for name, values in batch.items():
            self._make_room(name, values)
        order = self.passed + torch.arange(count)
        draws = (torch.rand(count, generator=generator, dtype=torch.float64) * (order + 1)).long()
        places = torch.where(order < self.size, order, draws).tolist()
        taken = {place: row for row, place in enumerate(places) if place < self.size}  # the last one stays
        self.passed += count
        if not taken:
            return
        slots, rows = torch.tensor(list(taken)), torch.tensor(list(taken.values()))
        there, these = (part.to(self.device, non_blocking=True) for part in (slots, rows))
        for name, values in batch.items():
            column = self.rows[name]
            column[there] = _widened(values[these], column, name)
            if values.ndim > 1:
                self.widths[name][slots] = values.shape[-1]

    def _make_room(self, name: str, values: Tensor) -> None:
        """A column that is as wide as `values` at least."""
        if name not in self.rows:
            self.rows[name] = values.new_full((self.size, *values.shape[1:]), _empty(name))
            if values.ndim > 1:
                self.widths[name] = torch.full((self.size,), values.shape[-1])
        elif values.ndim > 1:
            self.rows[name] = _widened(self.rows[name], values, name)

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`count` rows at random without repetition, by column; all of them where there are fewer."""
        picks = torch.randperm(len(self), generator=generator)[:count]
        there = picks.to(self.device, non_blocking=True)
        drawn = {name: values[there] for name, values in self.rows.items()}
        return {name: self._narrowed(name, values, picks) for name, values in drawn.items()}

    def _narrowed(self, name: str, values: Tensor, picks: Tensor) -> Tensor:
        """Without the columns that are padding in all of `picks`."""
        if name not in self.widths or not len(picks):
            return values
        return values[..., values.shape[-1] - int(self.widths[name][picks].max()) :]

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        kept = {"rows": {name: values[: len(self)] for name, values in self.rows.items()}, "passed": self.passed}
        varied = any((self.widths[name] != self.rows[name].shape[-1]).any() for name in self.widths)
        return {**kept, "widths": self.widths} if varied else kept

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.passed = state["passed"]
        self.rows, self.widths = {}, {}
        for name, values in state["rows"].items():
            self._make_room(name, values.to(self.device))
            self.rows[name][: len(values)] = values.to(self.device)
        self.widths.update(state.get("widths", {}))


def _empty(name: str) -> int:
    """What stands where a row of text has nothing."""
    return padding.IGNORED if name == "targets" else 0


def _widened(values: Tensor, like: Tensor, name: str) -> Tensor:
    """`values`, padded on the left where `like` is wider."""
    if values.ndim < 2 or values.shape[-1] >= like.shape[-1]:
        return values
    return F.pad(values, (like.shape[-1] - values.shape[-1], 0), value=_empty(name))
