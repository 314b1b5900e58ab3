from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clbench import imagestore
from clbench.data.cache import Pixels, Prepared
from clbench.imagestore import PixelExamples, ahead, in_threads
from clbench.seeding import generator
from clbench.stream import Union
from clbench.transforms import named

CPU = torch.device("cpu")
SIZES = [(40, 60), (70, 50), (64, 64), (300, 280), (33, 90)]


def prepared(kind: str, folder: Path, count: int = 20) -> Prepared:
    """Random images in a file: of one size, or of several."""
    sizes = np.array([SIZES[k % len(SIZES)] if kind == "ragged" else (32, 32) for k in range(count)])
    values = np.random.default_rng(0).integers(0, 256, int(3 * sizes.prod(1).sum()), dtype=np.uint8)
    values.tofile(folder / "pixels")
    stored = np.memmap(folder / "pixels", np.uint8, mode="r")
    return Prepared(
        name="made",
        images=Pixels(stored, sizes),
        targets=np.arange(count) % 5,
        is_train=np.arange(count) < count // 2,
        domains=None,
        class_names=tuple("abcde"),
        domain_names=(),
        split="by halves",
        short_side=None,
        sha256=hashlib.sha256(kind.encode()).hexdigest(),
        pixels_sha256="",
        folder=folder,
    )


@pytest.fixture(params=["uniform", "ragged"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Prepared:
    return prepared(request.param, tmp_path)


def test_without_draws_a_batch_is_the_test_view(data: Prepared) -> None:
    examples = PixelExamples(data, named("pilot", 64))
    images, targets = examples.batch(torch.tensor([7, 3, 7]), CPU)
    assert images.shape == (3, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert targets.tolist() == [2, 3, 2]
    expected = named("pilot", 64).test([data.images.pixels(3)])
    assert torch.equal(images[1], expected[0])
    assert torch.equal(images[0], images[2])
    image, target = examples[3]
    assert torch.equal(image, expected[0])
    assert target == 3


def test_with_draws_a_batch_is_augmented_by_them_alone(data: Prepared) -> None:
    examples, places = PixelExamples(data, named("pilot", 64)), torch.arange(20)
    first, _ = examples.batch(places, CPU, generator(0))
    assert first.shape == (20, 3, 64, 64)
    assert torch.equal(examples.batch(places, CPU, generator(0))[0], first)
    assert not torch.equal(examples.batch(places, CPU, generator(1))[0], first)
    expected = named("pilot", 64).train([data.images.pixels(k) for k in range(20)], generator(0))
    assert torch.equal(first, expected)
    draws = generator(0)
    assert not torch.equal(examples.batch(places, CPU, draws)[0], examples.batch(places, CPU, draws)[0])


def test_a_subset_of_a_subset_is_in_the_order_asked_for(data: Prepared) -> None:
    examples = PixelExamples(data, named("plain", 32)).subset(range(10, 20)).subset([4, 0])
    assert len(examples) == 2
    assert examples.targets.tolist() == [4, 0]
    images, targets = examples.batch(torch.tensor([1, 0]), CPU)
    assert targets.tolist() == [0, 4]
    assert torch.equal(images, named("plain", 32).test([data.images.pixels(k) for k in (10, 14)]))


def test_several_sets_are_read_as_one(data: Prepared) -> None:
    everything = PixelExamples(data, named("plain", 32))
    union = Union([everything.subset(range(5)), everything.subset(range(10, 20))])
    images, targets = union.batch(torch.tensor([14, 2, 5]), CPU)
    assert targets.tolist() == [4, 2, 0]
    assert torch.equal(images, everything.batch(torch.tensor([19, 2, 10]), CPU)[0])


def test_none_chosen_is_an_empty_set(data: Prepared) -> None:
    nothing = PixelExamples(data, named("pilot", 32), [])
    assert len(nothing) == 0
    assert nothing.batch(torch.zeros(0, dtype=torch.int64), CPU)[0].shape == (0, 3, 32, 32)


def test_the_hash_tells_data_places_and_targets_and_reads_no_pixel(
    data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pixels, "pixels", None)
    examples = PixelExamples(data, named("plain"))
    others = [
        examples,
        examples.subset(range(19)),
        examples.subset([1, 0, *range(2, 20)]),
        PixelExamples(replace(data, sha256="another"), named("plain")),
        PixelExamples(replace(data, targets=(data.targets + 1) % 5), named("plain")),
    ]
    assert len({other.sha256() for other in others}) == len(others)
    assert examples.sha256() == PixelExamples(data, named("pilot"), range(20)).sha256()
    assert (examples.data_sha256, examples.pixels_sha256) == (data.sha256, data.pixels_sha256)


def test_subsets_share_the_pixels_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("meta")  # any that is not the CPU
    everything = PixelExamples(prepared("uniform", tmp_path), named("crop32"))
    half = everything.subset(range(10))
    images, targets = half.batch(torch.arange(4), device)
    assert images.device == targets.device == device
    assert images.shape == (4, 3, 32, 32)
    held = everything._resident[device]
    assert held.shape == (20, 3, 32, 32)
    assert half.subset([0])._resident[device] is held
    monkeypatch.setattr(imagestore, "RESIDENT_BYTES", 20 * 3 * 32 * 32 - 1)
    large = PixelExamples(prepared("uniform", tmp_path), named("crop32"))
    assert large.batch(torch.arange(4), device)[0].shape == (4, 3, 32, 32)
    assert not large._resident


def test_threads_do_everything_once_and_report_what_fails() -> None:
    done: list[int] = []
    for count in (0, 3, 50):
        done.clear()
        list(in_threads(done.append, range(count)))
        assert sorted(done) == list(range(count))

    def fail(item: int) -> None:
        raise OSError(f"no {item}")

    with pytest.raises(OSError, match="no 40"):
        list(in_threads(lambda k: fail(k) if k == 40 else None, range(50)))


def test_batches_come_in_order_each_made_while_the_one_before_is_used() -> None:
    started = [threading.Event() for _ in range(4)]

    def make() -> Iterator[int]:
        for k, event in enumerate(started):
            event.set()
            yield k

    seen = []
    for k in ahead(make()):
        seen.append(k)
        assert k == 3 or started[k + 1].wait(timeout=10)
        assert k >= 2 or not started[k + 2].is_set()
    assert seen == [0, 1, 2, 3]


def test_whoever_stops_early_leaves_no_thread_and_an_error_is_passed_on() -> None:
    def make() -> Iterator[int]:
        yield from range(3)
        raise OSError("the file is gone")

    before = threading.active_count()
    batches = ahead(make())
    assert next(iter(batches)) == 0
    batches.close()  # type: ignore[attr-defined]  # it is a generator
    assert threading.active_count() == before
    seen: list[int] = []
    with pytest.raises(OSError, match="gone"):
        seen.extend(ahead(make()))
    assert seen == [0, 1, 2]
