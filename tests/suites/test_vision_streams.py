from __future__ import annotations

import lzma
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clbench.data import cache
from clbench.data.cache import Pixels, Prepared
from clbench.errors import BadValue, UnknownName
from clbench.stream import Examples, Stream
from clbench.suites._vision import (
    LAYOUTS,
    class_incremental,
    class_order,
    domain_incremental,
    splits,
    stream,
    task_sizes,
)
from clbench.transforms import named

VIEW = named("plain", 4)
PER_CLASS = 12
"""Ten to train on, two for the test."""


def prepared(classes: int, domains: int = 0, name: str = "made") -> Prepared:
    """Twelve images of each class (and domain); every image is of one grey, so that it can be told."""
    groups = classes * max(1, domains)
    count = PER_CLASS * groups
    group = np.arange(count) % groups
    pixels = np.repeat((np.arange(count) % 250).astype(np.uint8), 3 * 4 * 4)
    return Prepared(
        name=name,
        images=Pixels(pixels, np.full((count, 2), 4)),
        targets=group % classes,
        is_train=np.arange(count) // groups < 10,
        domains=group // classes if domains else None,
        class_names=tuple(f"class_{c}" for c in range(classes)),
        domain_names=tuple(f"domain_{d}" for d in range(domains)),
        split="ten and two",
        short_side=None,
        sha256=name,
        pixels_sha256="",
        folder=Path(),
    )


def parts(tasks: Stream) -> list[Examples]:
    return [part for task in tasks for part in (task.train, task.validation, task.test)]


def test_the_order_of_pilot() -> None:
    order = class_order("seed1993", 100)
    assert order[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    assert sorted(order) == list(range(100))
    np.random.seed(1996)
    assert class_order("seed1993", 100, 3) == tuple(np.random.permutation(100).tolist())


def test_the_order_of_coda() -> None:
    assert class_order("coda", 100) == tuple(range(100))
    random.seed(2)
    expected = list(range(100))
    random.shuffle(expected)
    assert class_order("coda", 100, 2) == tuple(expected)


def test_natural_and_explicit_orders() -> None:
    assert class_order("natural", 5) == (0, 1, 2, 3, 4)
    assert class_order((4, 2, 0, 1, 3), 5) == (4, 2, 0, 1, 3)
    for order in ("natural", (4, 2, 0, 1, 3)):
        shuffled = class_order(order, 5, 1)
        assert shuffled != class_order(order, 5)
        assert sorted(shuffled) == list(range(5))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1, 2), "has 3 entries, and is wrong about 3, 4"),
        ((0, 1, 2, 3, 3), "has 5 entries, and is wrong about 4"),
        ((0, 1, 2, 3, 4, 4), "has 6 entries, and is wrong about 4"),
        ((1, 2, 3, 4, 5), "wrong about 0, 5"),
    ],
)
def test_an_order_that_loses_a_class_is_refused(order: tuple[int, ...], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        class_order(order, 5)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'natural'"):
        class_order("naturel", 5)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(10, (10,) * 10), (50, (50, 50)), (30, (30, 30, 30, 10)), (200, (100,)), ((50, *[10] * 5), (50, *[10] * 5))],
)
def test_task_sizes_hold_every_class(sizes: int | tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert task_sizes(100, sizes) == expected


@pytest.mark.parametrize("sizes", [0, (50, 40), (50, 60), (100, 0), ()])
def test_task_sizes_that_lose_a_class_are_refused(sizes: int | tuple[int, ...]) -> None:
    with pytest.raises(BadValue, match="task"):
        task_sizes(100, sizes)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_validation_is_a_share_of_each_classs_training_images(share: float) -> None:
    data = prepared(6)
    found, targets = splits(data, share), torch.from_numpy(data.targets)
    assert torch.equal(found.test, ~torch.from_numpy(data.is_train))
    assert torch.equal(found.train | found.validation, torch.from_numpy(data.is_train))
    assert not (found.train & found.validation).any()
    assert targets[found.validation].bincount(minlength=6).tolist() == [round(10 * share)] * 6
    assert torch.equal(splits(data, share).validation, found.validation)


def test_a_class_of_few_images_keeps_one_to_train_on() -> None:
    data = prepared(2)
    few = replace(data, is_train=np.isin(np.arange(24), [0, 1, 3]))
    found = splits(few, 0.1)
    assert found.train.nonzero().flatten().tolist() in ([0, 1], [0, 3])
    assert splits(few, 0.0).train.sum() == 3


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(BadValue, match="validation_share"):
        splits(prepared(2), share)


@pytest.mark.parametrize("order", ["natural", "seed1993"])
@pytest.mark.parametrize("sizes", [4, (5, 3, 2)])
def test_every_image_is_in_one_task_under_its_own_number(order: str, sizes: int | tuple[int, ...]) -> None:
    data = prepared(10)
    tasks = class_incremental(data, VIEW, order, sizes)
    assert [len(task.classes) for task in tasks] == list(task_sizes(10, sizes))
    assert tuple(c for task in tasks for c in task.classes) == class_order(order, 10)
    assert tasks.classes == 10
    assert tasks.class_names == data.class_names
    assert sum(len(part) for part in parts(tasks)) == len(data)
    for task in tasks:
        for part, each in ((task.train, 9), (task.validation, 1), (task.test, 2)):
            assert part.targets.bincount(minlength=10).tolist() == [each * (c in task.classes) for c in range(10)]
    images, targets = tasks.tasks[1].test.batch(torch.arange(4), torch.device("cpu"))
    assert torch.equal(images[:, 0, 0, 0] % 10, targets.to(torch.uint8))  # its grey tells an image's class


def test_seeds_shuffle_classes_but_not_splits() -> None:
    data = prepared(10)
    first, second = (class_incremental(data, VIEW, "natural", 5, order_seed=seed) for seed in (0, 1))
    assert first.tasks[0].classes != second.tasks[0].classes
    assert first.sha256() != second.sha256()
    assert first.sha256() == class_incremental(data, VIEW, "natural", 5).sha256()
    held = [sorted(int(x) for task in s for x, _ in _greys(task.validation)) for s in (first, second)]
    assert held[0] == held[1]


def _greys(examples: Examples) -> list[tuple[int, int]]:
    return [(int(examples[k][0][0, 0, 0]), examples[k][1]) for k in range(len(examples))]


def test_tasks_are_named_by_their_classes() -> None:
    names = [task.name for task in class_incremental(prepared(6), VIEW, "natural", (3, 2, 1))]
    assert names == ["class 0, class 1 +1", "class 3, class 4", "class 5"]


def test_domains_come_one_by_one_with_the_same_classes() -> None:
    tasks = domain_incremental(prepared(3, domains=4), VIEW, "natural")
    assert [task.name for task in tasks] == ["domain 0", "domain 1", "domain 2", "domain 3"]
    assert {task.classes for task in tasks} == {(0, 1, 2)}
    assert tasks.classes == 3
    for task in tasks:
        counts = [part.targets.bincount().tolist() for part in (task.train, task.validation, task.test)]
        assert counts == [[9] * 3, [1] * 3, [2] * 3]
    shuffled = domain_incremental(prepared(3, domains=4), VIEW, (3, 1, 0, 2))
    assert [task.name for task in shuffled] == ["domain 3", "domain 1", "domain 0", "domain 2"]


def test_a_set_without_domains_and_one_without_images_are_refused() -> None:
    with pytest.raises(BadValue, match="'made' has no domains"):
        domain_incremental(prepared(3), VIEW, "natural")
    data = prepared(3)
    with pytest.raises(BadValue, match="no test image of class 'class_1'"):
        class_incremental(replace(data, is_train=data.is_train | (data.targets == 1)), VIEW, "natural", 1)


EXPECTED = {
    "cifar100": [10] * 10,
    "cifar100-20x5": [5] * 20,
    "cifar100-5x20": [20] * 5,
    "cifar100-b50": [50, 10, 10, 10, 10, 10],
    "imagenet-r": [20] * 10,
    "imagenet-r-5": [40] * 5,
    "imagenet-r-20": [10] * 20,
    "cub200": [20] * 10,
    "imagenet-a": [20] * 10,
    "tiny-imagenet": [20] * 10,
    "pacs": [7] * 4,
    "cifar100-subset": [10] * 10,
    "cifar100-subset-b50": [50, 10, 10, 10, 10, 10],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_listed_streams(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(EXPECTED) == set(LAYOUTS)

    def made(data: str, at: Path | None = None, *, short_side: int | None = None) -> Prepared:
        assert (at, short_side) == (Path("data"), None)
        return prepared(100 if "cifar" in data else 7 if data == "pacs" else 200, 4 if data == "pacs" else 0, data)

    monkeypatch.setattr(cache, "open", made)
    tasks = stream(name, at=Path("data"))
    assert [len(task.classes) for task in tasks] == EXPECTED[name]
    assert tasks.tasks[0].train[0][0].shape == (3, 224, 224)
    assert stream(name, 1, at=Path("data")).sha256() != tasks.sha256()
    other = stream(name, at=Path("data"), transform=VIEW, order="seed1993", validation_share=0)
    assert [len(task.validation) for task in other] == [0] * len(tasks)
    assert other.tasks[0].test[0][0].shape == (3, 4, 4)


def test_an_unknown_stream_is_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'imagenet-r'"):
        stream("imagenetr")


@pytest.mark.real_data
def test_imagenet_r_has_the_published_tasks() -> None:
    if not os.environ.get("CLBENCH_TEST_DATA"):
        pytest.skip("CLBENCH_TEST_DATA is not set to the folder of the real data")
    folder = Path(os.environ["CLBENCH_TEST_DATA"]) / "imagenet_r_splits"
    listed = []
    for part in ("train", "test"):
        with lzma.open(folder / f"imagenet-r_{part}.yaml.xz", "rt", encoding="utf-8") as file:
            words = file.read().split("targets:")[1].split()
        listed.append(np.array([int(word) for word in words if word != "-"]))
    targets = np.concatenate(listed)
    data = replace(
        prepared(200),
        images=Pixels(np.zeros(3 * len(targets), np.uint8), np.ones((len(targets), 2), np.int64)),
        targets=targets,
        is_train=np.arange(len(targets)) < len(listed[0]),
    )
    tasks = class_incremental(data, VIEW, "natural", LAYOUTS["imagenet-r"].sizes or 0, validation_share=0)
    assert [len(task.train) for task in tasks] == [2166, 2655, 2292, 2799, 2463, 2624, 2209, 2539, 2195, 2058]
    assert [len(task.test) for task in tasks] == [543, 716, 553, 686, 620, 631, 557, 636, 587, 471]
