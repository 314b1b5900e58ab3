"""Vision streams: prepared image sets as tasks, class by class or domain by domain.

Splits, orders and task sizes are those of the papers that report on them; each source stands beside its entry.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clbench import transforms
from clbench.data import cache
from clbench.data.cache import Prepared
from clbench.errors import BadValue, UnknownName
from clbench.imagestore import PixelExamples
from clbench.seeding import generator
from clbench.stream import Stream, Task
from clbench.transforms import Transform

VALIDATION_SHARE = 0.10
"""Of each class's training images. The published runs train on these too; 0 does as they do."""
PILOT_SEED = 1993

Order = str | tuple[int, ...]
"""A name of `ORDERS`, or every class (or domain) once."""


def _shuffled(classes: int, order_seed: int) -> list[int]:
    """0, 1, 2, … for seed 0; the harness's own shuffle for others."""
    if not order_seed:
        return list(range(classes))
    places: list[int] = torch.randperm(classes, generator=generator(order_seed, "order")).tolist()
    return places


def _pilot(classes: int, order_seed: int) -> list[int]:
    """NumPy's permutation for seed 1993 (PILOT, SimpleCIL, APER, EASE, RanPAC, SLCA, SD-LoRA).

    Seeds count on from there: 1 and 2 give 1994 and 1995, SD-LoRA's; 3 and 4 give 1996 and 1997, SLCA's.
    """
    found: list[int] = np.random.RandomState(PILOT_SEED + order_seed).permutation(classes).tolist()
    return found


def _coda(classes: int, order_seed: int) -> list[int]:
    """Python's shuffle for the number of the repeat, the first unshuffled (CODA-Prompt)."""
    places = list(range(classes))
    if order_seed:
        random.Random(order_seed).shuffle(places)
    return places


ORDERS: Mapping[str, Callable[[int, int], list[int]]] = {"natural": _shuffled, "seed1993": _pilot, "coda": _coda}


def class_order(order: Order, classes: int, order_seed: int = 0) -> tuple[int, ...]:
    """Which class comes when, `classes` of them; seeds other than 0 shuffle in the order's own way.

    An explicit order is shuffled as the natural one is. Raises UnknownName for a name that is none, BadValue for an
    explicit order that leaves a class out or has one twice.

    >>> class_order("seed1993", 100)[:10]
    (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise UnknownName("class order", order, ORDERS)
        return tuple(ORDERS[order](classes, order_seed))
    if sorted(order) != list(range(classes)):
        wrong = sorted(set(range(classes)) ^ set(order)) or sorted(c for c in set(order) if order.count(c) > 1)
        raise BadValue(
            f"an order must hold each of 0 to {classes - 1} once; this one has {len(order)} entries, and is wrong "
            f"about {', '.join(map(str, wrong[:5]))}."
        )
    return tuple(order[place] for place in _shuffled(classes, order_seed))


def task_sizes(classes: int, sizes: int | Sequence[int]) -> tuple[int, ...]:
    """How many classes each task has: as listed, or `sizes` each and fewer in the last task where some remain.

    Raises BadValue where a list does not add up to all classes: none may be dropped.

    >>> task_sizes(100, 30), task_sizes(100, (50, 25, 25))
    ((30, 30, 30, 10), (50, 25, 25))
    """
    if isinstance(sizes, int):
        if sizes < 1:
            raise BadValue(f"a task needs one class or more; got {sizes}.")
        return tuple(min(sizes, classes - first) for first in range(0, classes, sizes))
    if sum(sizes) != classes or min(sizes, default=0) < 1:
        raise BadValue(
            f"task sizes must be 1 or more and add up to all {classes} classes; {tuple(sizes)} add up to {sum(sizes)}."
        )
    return tuple(sizes)


@dataclass(frozen=True)
class Splits:
    """Which images train, validate and test; bool `[n]` each."""

    train: Tensor
    validation: Tensor
    test: Tensor


def splits(prepared: Prepared, validation_share: float) -> Splits:
    """The set's own test images, and `validation_share` of each class's training images held out.

    The same whatever seed a run has; in each domain on its own where there are domains. A class keeps at least one
    image to train on, and one to validate on where it has two and the share is not 0. Raises BadValue for a share
    outside [0, 1).
    """
    if not 0 <= validation_share < 1:
        raise BadValue(f"validation_share must be 0 or more and below 1; got {validation_share}.")
    train = torch.from_numpy(np.array(prepared.is_train, dtype=bool))
    groups = torch.from_numpy(np.array(prepared.targets, dtype=np.int64))
    if prepared.domains is not None:
        groups = groups + len(prepared.class_names) * torch.from_numpy(np.array(prepared.domains, dtype=np.int64))
    held = torch.zeros_like(train)
    for group in groups[train].unique().tolist() if validation_share else []:
        places = (train & (groups == group)).nonzero().flatten()
        count = min(max(1, round(len(places) * validation_share)), len(places) - 1)
        held[places[torch.randperm(len(places), generator=generator(0, "validation", group))[:count]]] = True
    return Splits(train & ~held, held, ~train)


def class_incremental(
    prepared: Prepared,
    transform: Transform,
    order: Order,
    sizes: int | Sequence[int],
    *,
    order_seed: int = 0,
    validation_share: float = VALIDATION_SHARE,
) -> Stream:
    """New classes with every task; targets stay the data set's own class numbers.

    Raises BadValue for orders and sizes that do not fit the classes, and where a class lacks images.
    """
    names = prepared.class_names
    ordered, parts = class_order(order, len(names), order_seed), splits(prepared, validation_share)
    everything, tasks, first = PixelExamples(prepared, transform), [], 0
    for size in task_sizes(len(names), sizes):
        classes = ordered[first : first + size]
        mine = torch.isin(everything.targets, torch.tensor(classes))
        tasks.append(_task(_title(classes, names), classes, everything, parts, mine, names))
        first += size
    return Stream(tuple(tasks), names)


def domain_incremental(
    prepared: Prepared,
    transform: Transform,
    order: Order = "natural",
    *,
    order_seed: int = 0,
    validation_share: float = VALIDATION_SHARE,
) -> Stream:
    """The same classes with every task, in another domain each time; `order` is of the domains.

    Raises BadValue where the set has no domains, for an order that does not fit them, and where a domain lacks a
    class.
    """
    if prepared.domains is None:
        raise BadValue(f"data set '{prepared.name}' has no domains; teach it class by class.")
    domains, names = torch.from_numpy(np.array(prepared.domains, dtype=np.int64)), prepared.class_names
    everything, parts = PixelExamples(prepared, transform), splits(prepared, validation_share)
    tasks = [
        _task(_readable(prepared.domain_names[d]), tuple(range(len(names))), everything, parts, domains == d, names)
        for d in class_order(order, len(prepared.domain_names), order_seed)
    ]
    return Stream(tuple(tasks), names)


def _task(
    name: str, classes: tuple[int, ...], everything: PixelExamples, parts: Splits, mine: Tensor, names: Sequence[str]
) -> Task:
    """The images of `mine`, bool `[n]`, as a task. Raises BadValue where one of its classes lacks images."""
    train, validation, test = (
        everything.subset((mine & part).nonzero().flatten()) for part in (parts.train, parts.validation, parts.test)
    )
    for examples, kind in ((train, "training"), (test, "test")):
        missing = set(classes) - set(examples.targets.tolist())
        if missing:
            raise BadValue(
                f"task '{name}' has no {kind} image of class '{names[min(missing)]}'; the data set is not complete."
            )
    return Task(name, train, validation, test, classes)


def _title(classes: Sequence[int], names: Sequence[str]) -> str:
    """Two classes by name, and how many more there are: "apple, aquarium fish +8"."""
    shown = ", ".join(_readable(names[c]) for c in classes[:2])
    return f"{shown} +{len(classes) - 2}" if len(classes) > 2 else shown


def _readable(name: str) -> str:
    return name.replace("_", " ")


@dataclass(frozen=True)
class Layout:
    """How a data set is cut into tasks."""

    data: str
    """As `clbench data` calls it."""
    sizes: int | tuple[int, ...] | None
    """Classes of a task, or of each; None: a task is a domain."""


B50 = (50, 10, 10, 10, 10, 10)
"""B50-Inc10: half of CIFAR-100's classes at once, then ten at a time (Hou et al. 2019, LUCIR)."""

LAYOUTS: Mapping[str, Layout] = {
    "cifar100": Layout("cifar100", 10),
    "cifar100-20x5": Layout("cifar100", 5),
    "cifar100-5x20": Layout("cifar100", 20),
    "cifar100-b50": Layout("cifar100", B50),
    "imagenet-r": Layout("imagenet-r", 20),
    "imagenet-r-5": Layout("imagenet-r", 40),
    "imagenet-r-20": Layout("imagenet-r", 10),
    "cub200": Layout("cub200", 20),
    "imagenet-a": Layout("imagenet-a", 20),
    "tiny-imagenet": Layout("tiny-imagenet", 20),
    "pacs": Layout("pacs", None),
    "cifar100-subset": Layout("cifar100-subset", 10),
    "cifar100-subset-b50": Layout("cifar100-subset", B50),
}


def stream(
    name: str,
    order_seed: int = 0,
    *,
    order: Order = "natural",
    sizes: int | Sequence[int] | None = None,
    transform: Transform | str = "pilot",
    validation_share: float = VALIDATION_SHARE,
    at: Path | None = None,
    short_side: int | None = None,
) -> Stream:
    """The stream of that name, seen by `transform`; `at` is its data set's folder, if not the usual one.

    `sizes` are the classes of a task, or of each, where they are not those of the layout. A copy that was prepared with
    a `short_side` holds other pixels than the published images; it is taken only where that size is given here, so that
    a suite which wants it has to say so. Raises UnknownName, and what `clbench.data.cache.open` raises where the data
    is not prepared; BadValue for sizes where a task is a domain.
    """
    if name not in LAYOUTS:
        raise UnknownName("vision stream", name, LAYOUTS)
    layout, view = LAYOUTS[name], transforms.worded(transform) if isinstance(transform, str) else transform
    if layout.sizes is None and sizes is not None:
        raise BadValue(f"a task of '{name}' is a domain with all its classes; leave out the classes of a task.")
    prepared = cache.open(layout.data, at, short_side=short_side)
    if layout.sizes is None:
        return domain_incremental(prepared, view, order, order_seed=order_seed, validation_share=validation_share)
    sizes = layout.sizes if sizes is None else sizes
    return class_incremental(prepared, view, order, sizes, order_seed=order_seed, validation_share=validation_share)
