from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clbench.catalog import suite
from clbench.errors import BadValue, LeakError
from clbench.stream import ImageSet, Sealed, Stream, Task, Union
from clbench.suites import _digits, _letters

CPU = torch.device("cpu")


def image_set(count: int, first: int = 0) -> ImageSet:
    """Images that tell their own number."""
    numbers = torch.arange(first, first + count)
    return ImageSet(numbers.to(torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2), numbers)


def stream() -> Stream:
    tasks = [
        Task(f"task {i}", image_set(4, 10 * i), image_set(2, 10 * i + 4), image_set(3, 10 * i + 6), (2 * i, 2 * i + 1))
        for i in range(2)
    ]
    return Stream(tuple(tasks))


def test_images_have_one_shape_and_one_target_each() -> None:
    with pytest.raises(BadValue, match=r"uint8 \[n, channels, height, width\].*got torch.float32 \[2, 1, 2, 2\]"):
        ImageSet(torch.zeros(2, 1, 2, 2), torch.zeros(2))
    with pytest.raises(BadValue, match="1 targets"):
        ImageSet(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(1))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.data())
def test_a_batch_of_a_union_is_what_indexing_gives(sizes: list[int], data: st.DataObject) -> None:
    starts = list(itertools.accumulate(sizes, initial=0))
    union = Union([image_set(size, start) for size, start in zip(sizes, starts, strict=False)])
    assert len(union) == sum(sizes)
    assert union.targets.tolist() == list(range(len(union)))
    if not len(union):
        return
    picks = torch.tensor(data.draw(st.lists(st.integers(0, len(union) - 1), min_size=1, max_size=8)))
    images, targets = union.batch(picks, CPU)
    one_by_one = [union[int(i)] for i in picks]
    assert torch.equal(images, torch.stack([image for image, _ in one_by_one]))
    assert targets.tolist() == [target for _, target in one_by_one] == picks.tolist()


def change_a_pixel(examples: ImageSet) -> ImageSet:
    images = examples.images.clone()
    images[1, 0, 1, 1] += 1
    return ImageSet(images, examples.targets)


def change_a_label(examples: ImageSet) -> ImageSet:
    return ImageSet(examples.images, examples.targets + torch.tensor([0, 1, 0, 0]))


def change_the_order(examples: ImageSet) -> ImageSet:
    return examples.subset([1, 0, 2, 3])


@pytest.mark.parametrize("change", [change_a_pixel, change_a_label, change_the_order])
def test_hashes_change_with_a_pixel_a_label_and_the_order(change: Callable[[ImageSet], ImageSet]) -> None:
    whole = stream()
    first = whole.tasks[0]
    assert isinstance(first.train, ImageSet)
    changed = change(first.train)
    assert changed.sha256() != first.train.sha256()
    assert Union([changed]).sha256() != Union([first.train]).sha256()
    task = Task(first.name, changed, first.validation, first.test, first.classes)
    assert Stream((task, whole.tasks[1])).sha256() != whole.sha256()


def test_the_hash_of_a_stream_knows_task_order_splits_classes_and_names() -> None:
    one, two = stream().tasks
    others = [
        Stream((two, one)),
        Stream((Task(one.name, one.validation, one.train, one.test, one.classes), two)),
        Stream((Task(one.name, one.train, one.validation, one.test, (1, 0)), two)),
        Stream((Task("x", one.train, one.validation, one.test, one.classes), two)),
        Stream((one,)),
    ]
    assert len({other.sha256() for other in [stream(), *others]}) == 6
    assert stream().sha256() == stream().sha256()


ASK: dict[str, Callable[[Sealed], object]] = {
    "targets": lambda sealed: sealed.targets,
    "item": lambda sealed: sealed[0],
    "batch": lambda sealed: sealed.batch(torch.tensor([0]), CPU),
}


@pytest.mark.parametrize("question", ASK)
def test_test_examples_are_sealed_until_the_vault_opens(question: str) -> None:
    sealed_stream, vault = stream().sealed()
    test = sealed_stream.tasks[0].test
    assert isinstance(test, Sealed)
    assert len(test) == 3
    with pytest.raises(LeakError, match="test examples were read while learning"):
        ASK[question](test)
    with vault.open():
        ASK[question](test)
    with pytest.raises(LeakError):
        ASK[question](test)


def test_a_vault_closes_after_an_error() -> None:
    sealed_stream, vault = stream().sealed()
    with pytest.raises(RuntimeError, match="while open"), vault.open():
        raise RuntimeError("while open")
    with pytest.raises(LeakError):
        _ = sealed_stream.tasks[0].test[0]


def test_sealing_changes_neither_hash_nor_training_data() -> None:
    sealed_stream, _ = stream().sealed()
    assert sealed_stream.sha256() == stream().sha256()
    assert sealed_stream.tasks[0].train[1][1] == 1


# the shipped streams


@cache
def made(name: str, order_seed: int = 0) -> Stream:
    return suite(name).stream(order_seed)


def rows(tensor: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in tensor}


def images_of(task: Task, part: str) -> Tensor:
    examples = getattr(task, part)
    assert isinstance(examples, ImageSet)
    return examples.images


PARTS = ("train", "validation", "test")


def test_digits_uses_every_image_once() -> None:
    whole = made("quick")
    assert [task.classes for task in whole] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    used = torch.cat([images_of(task, part) for task in whole for part in PARTS]).flatten(1)
    everything = _digits.images()
    assert len(used) == len(everything) == 1797
    assert sorted(used.tolist()) == sorted(everything.images.flatten(1).tolist())


def test_digits_splits_hold_every_class_in_its_share() -> None:
    for task in made("quick"):
        for part, share in zip(PARTS, (0.65, 0.10, 0.25), strict=True):
            targets = getattr(task, part).targets
            assert set(targets.tolist()) == set(task.classes)
            assert len(targets) / 360 == pytest.approx(share, abs=0.02)


def test_digits_is_the_same_everywhere() -> None:
    """A change of the split, of scikit-learn's data or of the enlargement makes published numbers another protocol."""
    assert made("quick").sha256() == "e7991bf601437e839851111e6ad64ff39565c7c8cac91ed2db28522b97ab79e4"
    assert made("quick", 1).sha256() == suite("quick").stream(1).sha256() != made("quick").sha256()


def test_an_order_moves_the_digits_and_keeps_their_splits() -> None:
    plain, shuffled = made("quick"), made("quick", 1)
    assert sorted(c for task in shuffled for c in task.classes) == list(range(10))
    for part in PARTS:
        assert rows(torch.cat([images_of(task, part) for task in shuffled])) == rows(
            torch.cat([images_of(task, part) for task in plain])
        )


def test_glyphs_is_big_enough_and_the_same_twice() -> None:
    whole = made("glyphs")
    assert len(whole) == 10
    assert sorted(c for task in whole for c in task.classes) == list(range(100))
    for task in whole:
        assert len(task.train) >= 480
        assert len(task.test) >= 240
        for part in PARTS:
            counts = torch.bincount(getattr(task, part).targets, minlength=100)
            assert set(counts.nonzero().flatten().tolist()) == set(task.classes)
            assert len(set(counts[list(task.classes)].tolist())) == 1
    assert suite("glyphs").stream(0).sha256() == whole.sha256()


def test_glyphs_tests_on_faces_that_no_training_image_uses() -> None:
    assert not set(_letters.TEST_FACES) & set(_letters.TRAIN_FACES)
    seen = {part: rows(torch.cat([images_of(task, part) for task in made("glyphs")])) for part in PARTS}
    for one, other in itertools.combinations(PARTS, 2):
        assert not seen[one] & seen[other]


def test_an_order_moves_whole_tasks_of_glyphs() -> None:
    plain = {task.name: task.train.sha256() for task in made("glyphs")}
    shuffled = {task.name: task.train.sha256() for task in made("glyphs", 1)}
    assert shuffled == plain
    assert list(shuffled) != list(plain)


def test_the_first_tasks_of_tiny_do_not_depend_on_how_many_follow() -> None:
    from clbench import tiny

    short, long = tiny.stream(tasks=1), tiny.stream(tasks=3)
    assert Stream(long.tasks[:1]).sha256() == short.sha256()
    assert made("tiny").sha256() == tiny.stream().sha256()
