"""Loaders: how a task's examples come to a strategy, ours and Avalanche's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports reports missing or retired solvers that we do not use
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset
    from avalanche.benchmarks.utils.flat_data import ConstantSequence

from clbench.imagestore import PixelExamples, ahead
from clbench.seeding import generator
from clbench.stream import Examples, Union


class Loader:
    """Batches `[inputs, targets, task indices]` in an order that depends on seed and epoch alone.

    Each pass gives every sample once, in the order given where there is no seed. Whoever trains sets `epoch`
    and `augmented`, so that a plugin may read the loader too without changing what follows, and reads the
    samples as they are; of such batches `note` is told, the inputs and their places. `part` (i, n) gives every n-th
    batch alone, from number i on.
    """

    def __init__(
        self,
        examples: Examples,
        task_of: Tensor,
        batch_size: int,
        device: torch.device,
        seed: int | None,
        part: tuple[int, int] = (0, 1),
        note: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self.examples, self.task_of, self.batch_size = examples, task_of.to(device), batch_size
        self.device, self.seed, self.epoch, self.augmented = device, seed, 0, False
        self.first, self.step = part
        self.note = note

    def __len__(self) -> int:
        return len(range(self.first, -(-len(self.examples) // self.batch_size), self.step))

    def __iter__(self) -> Iterator[list[Tensor]]:
        batches = self._batches()
        return ahead(batches) if _is_slow(self.examples) else batches

    def _batches(self) -> Iterator[list[Tensor]]:
        order, draws = torch.arange(len(self.examples)), None
        if self.seed is not None:
            order = torch.randperm(len(order), generator=generator(self.seed, "order", self.epoch))
            if self.augmented:
                draws = generator(self.seed, "augment", self.epoch)
        for indices in order.split(self.batch_size)[self.first :: self.step]:
            inputs, targets = self.examples.batch(indices, self.device, draws)
            if self.note is not None and draws is None:
                self.note(inputs, indices)
            yield [inputs, targets, self.task_of[indices.to(self.device, non_blocking=True)]]


def _is_slow(examples: Examples) -> bool:
    """Whether making a batch takes so long that the next one is worth making meanwhile."""
    if isinstance(examples, Union):
        return any(_is_slow(part) for part in examples.parts)
    return isinstance(examples, PixelExamples)


class _Pairs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Examples as a dataset that Avalanche takes."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._examples[index]


def experience(examples: Examples, index: int) -> Any:
    """An Avalanche experience for plugins that read one; all task labels are 0: classes are told apart, not tasks."""
    attributes = [
        DataAttribute(examples.targets.tolist(), "targets"),
        DataAttribute(ConstantSequence(0, len(examples)), "targets_task_labels", use_in_getitem=True),
    ]
    dataset = TaskAwareSupervisedClassificationDataset([_Pairs(examples)], data_attributes=attributes)
    experience = benchmark_from_datasets(train=[dataset]).train_stream[0]
    experience.current_experience = index
    return experience
