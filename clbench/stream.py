"""Streams: tasks one after another, each with training, validation and test examples."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from clbench.errors import BadValue, LeakError
from clbench.padding import join
from clbench.text import Row, TextTask, sha256


class Examples(Protocol):
    """What a task's data must offer; images and text differ only in what a batch holds."""

    @property
    def targets(self) -> Tensor:
        """`[n]` int64 class indices, counted over the whole stream."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets at `indices`, on `device`; with `draws` as they are trained on, at random augmented."""
        ...

    def sha256(self) -> str:
        """Hash of inputs and targets in order."""
        ...


class ImageSet(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images in memory: `images` `[n, channels, height, width]` uint8, `targets` `[n]` int64."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(targets):
            raise BadValue(
                f"images must be uint8 [n, channels, height, width] with one target each; "
                f"got {images.dtype} {list(images.shape)} and {len(targets)} targets."
            )
        self.images, self.targets = images, targets.to(torch.int64)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.targets[index])

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images and targets at `indices`, never augmented; the whole set moves to the device once."""
        if device not in self._on:
            self._on[device] = (self.images.to(device), self.targets.to(device))
        images, targets = self._on[device]
        indices = indices.to(device, non_blocking=True)
        return images[indices], targets[indices]

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The examples at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(self.images[chosen], self.targets[chosen])

    def sha256(self) -> str:
        """Hash of pixels and targets in order."""
        total = hashlib.sha256()
        for tensor in (self.images, self.targets):
            total.update(str(list(tensor.shape)).encode())
            total.update(tensor.contiguous().numpy().tobytes())
        return total.hexdigest()


class TextSet(torch.utils.data.Dataset[tuple[str, int]]):
    """The rows of one part of a text task, before any tokenizer; a model reads it as batches of its own tokens."""

    def __init__(self, rows: Sequence[Row], task: TextTask) -> None:
        self.rows, self.task = tuple(rows), task
        self.targets = torch.zeros(len(self.rows), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.rows[index].prompt, 0

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Raises BadValue: text has no tensors before a model has read it."""
        raise BadValue("text is read by a language model; this suite's backbone takes images. Choose another backbone.")

    def sha256(self) -> str:
        """Hash of prompts and answers in order, of what is kept of a long prompt, and of how answers are asked for."""
        task = self.task
        terms = f"{task.prefix!r}{task.cue!r}{task.kind}{task.answer_tokens}"
        return hashlib.sha256(f"{sha256(self.rows)}{terms}".encode()).hexdigest()


class Union(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Several sets of examples as one, in order; of the same kind as its parts."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts = tuple(parts)
        self.targets = torch.cat([part.targets for part in parts])
        sizes = torch.tensor([len(part) for part in parts])
        self._ends = torch.cumsum(sizes, 0)
        self._starts = self._ends - sizes

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        part = int(torch.searchsorted(self._ends, index, right=True))
        return self.parts[part][index - int(self._starts[part])]

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets at `indices`, gathered from the parts."""
        which = torch.searchsorted(self._ends, indices, right=True)
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        places: list[Tensor] = []
        for part in which.unique().tolist():
            at = (which == part).nonzero().flatten()
            x, y = self.parts[part].batch(indices[at] - self._starts[part], device, draws)
            inputs.append(x)
            targets.append(y)
            places.append(at)
        back = torch.argsort(torch.cat(places)).to(device, non_blocking=True)
        return join(inputs)[back], join(targets)[back]

    def sha256(self) -> str:
        """Hash over the parts' hashes."""
        return hashlib.sha256("".join(part.sha256() for part in self.parts).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """One task. `validation` is split from train; `classes` are indices over the whole stream.

    A task of text has no classes: its answers are open.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """The tasks in the order in which they are taught."""

    tasks: tuple[Task, ...]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    @property
    def is_text(self) -> bool:
        """Whether its answers are written."""
        return any(isinstance(task.train, TextSet) for task in self.tasks)

    @property
    def classes(self) -> int:
        """How many classes there are in all; 0 where answers are open."""
        return 1 + max((c for task in self.tasks for c in task.classes), default=-1)

    def sha256(self) -> str:
        """Hash of every split of every task in order: names, classes, inputs, targets."""
        total = hashlib.sha256()
        for task in self.tasks:
            total.update(f"{task.name}{task.classes}".encode())
            for part in (task.train, task.validation, task.test):
                total.update(part.sha256().encode())
        return total.hexdigest()

    @classmethod
    def of_text(cls, tasks: Sequence[TextTask]) -> Stream:
        """A stream of text tasks, in their order."""
        made = []
        for task in tasks:
            train, validation, test = (TextSet(rows, task) for rows in (task.train, task.validation, task.test))
            made.append(Task(task.name, train, validation, test, ()))
        return cls(tuple(made))

    def sealed(self) -> tuple[Stream, Vault]:
        """The same stream with test examples that raise `LeakError` while the vault is closed."""
        vault = Vault()
        tasks = tuple(replace(task, test=Sealed(task.test, vault)) for task in self.tasks)
        return Stream(tasks, self.class_names), vault


@dataclass
class Vault:
    """The lock on the test examples; the runner opens it only to score."""

    is_open: bool = False

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Allow reading for the length of the block."""
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def check(self) -> None:
        """Raise `LeakError` while closed."""
        if not self.is_open:
            raise LeakError("test examples were read while learning; a method may only read the task's training data.")


@dataclass
class Sealed(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Examples behind a vault: their number is known, their content only while it is open."""

    examples: Examples
    vault: Vault

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def targets(self) -> Tensor:
        """The targets, while the vault is open."""
        self.vault.check()
        return self.examples.targets

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.vault.check()
        return self.examples[index]

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets at `indices`, while the vault is open."""
        self.vault.check()
        return self.examples.batch(indices, device, draws)

    def sha256(self) -> str:
        """Hash of the examples, for the protocol card; tells nothing to a learner."""
        return self.examples.sha256()
