from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from clbench import transforms
from clbench.errors import BadValue, UnknownName
from clbench.seeding import generator
from clbench.transforms import DRAWS, TRANSFORMS, named, worded

RANDOM = ["pilot", "coda", "hide-cifar"]


def picture(height: int, width: int, *words: int) -> Tensor:
    """A smooth random image with the whole range of greys."""
    coarse = torch.rand(1, 3, 9, 9, generator=generator(0, "picture", height, width, *words))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return (fine[0].clamp(0, 1) * 255).to(torch.uint8)


def torchvisions(image: Tensor, name: str, crops: transforms.Crops, k: int) -> Tensor:
    """What torchvision's functions make of one image and the same crop."""
    transform = TRANSFORMS[name]
    top, left, height, width = crops.boxes[k].tolist()
    size = [transform.size, transform.size]
    if transform.padding:
        padded = functional.pad(image, [transform.padding])
        seen = functional.crop(padded, top + transform.padding, left + transform.padding, *size)
    else:
        mode = functional.InterpolationMode(transform.interpolation)
        seen = functional.resized_crop(image, top, left, height, width, size, mode)
    if crops.flips[k]:
        seen = functional.horizontal_flip(seen)
    bright: Tensor = functional.adjust_brightness(seen, float(crops.brightness[k]))
    return bright


def apart(first: Tensor, second: Tensor) -> int:
    """The largest difference in grey levels."""
    return int((first.int() - second.int()).abs().max())


RAGGED = [(60, 40), (300, 300), (37, 500), (224, 224), (400, 310), (225, 31)]


@pytest.mark.parametrize("name", RANDOM)
def test_ragged_images_are_cropped_as_torchvision_does(name: str) -> None:
    images = [picture(*size) for size in RAGGED]
    views = named(name).train(images, generator(0, "views"))
    assert views.shape == (6, 3, 224, 224)
    assert views.dtype == torch.uint8
    crops = named(name).draw(torch.tensor(RAGGED), generator(0, "views"))
    for k, image in enumerate(images):
        assert torch.equal(views[k], torchvisions(image, name, crops, k))


@pytest.mark.parametrize("name", [*RANDOM, "crop32"])
def test_a_batch_is_augmented_as_its_images_are_one_by_one(name: str) -> None:
    batch = torch.stack([picture(32, 32, k) for k in range(24)])
    views = named(name).train(batch, generator(0, "views"))
    crops = named(name).draw(torch.tensor([[32, 32]] * 24), generator(0, "views"))
    single = torch.stack([torchvisions(image, name, crops, k) for k, image in enumerate(batch)])
    assert apart(views, single) <= {"crop32": 0, "hide-cifar": 3}.get(name, 2)
    assert (views != single).double().mean() < 0.02
    assert crops.flips.any()
    assert not crops.flips.all()
    assert torch.equal(named(name).train(list(batch), generator(0, "views")), single)


def test_a_batch_is_shrunk_with_antialiasing() -> None:
    batch = torch.stack([picture(300, 200, k) for k in range(4)])
    transform = named("hide-cifar", 32)
    views, single = (transform.train(images, generator(1, "views")) for images in (batch, list(batch)))
    assert apart(views, single) <= 2
    assert (views != single).double().mean() < 0.01


def test_arrays_that_cannot_be_written_to_are_read_where_they_are_cropped() -> None:
    stored = picture(80, 60).numpy()
    stored.flags.writeable = False
    for name in ("pilot", "plain"):
        mine = named(name).train([stored], generator(0))
        assert torch.equal(mine, named(name).train([torch.from_numpy(stored.copy())], generator(0)))


@pytest.mark.parametrize(
    ("name", "size", "side", "mode"),
    [
        ("pilot", (300, 400), 256, "bicubic"),
        ("pilot", (32, 32), 256, "bicubic"),
        ("hide-cifar", (32, 32), 256, "bicubic"),
        ("coda", (300, 400), 256, "bilinear"),
        ("coda", (500, 230), 256, "bilinear"),
        ("coda", (32, 32), 224, "bilinear"),
        ("coda", (150, 150), 256, "bilinear"),
        ("plain", (300, 400), 224, "bilinear"),
        ("plain", (32, 32), 224, "bilinear"),
    ],
)
def test_the_scored_view_is_the_central_square(name: str, size: tuple[int, int], side: int, mode: str) -> None:
    image = picture(*size)
    resized = functional.resize(image, [side], functional.InterpolationMode(mode))
    expected = functional.center_crop(resized, [224, 224])
    views = named(name).test([image, image])
    assert views.shape == (2, 3, 224, 224)
    assert torch.equal(views[1], expected)
    assert torch.equal(named(name).test(image[None].repeat(2, 1, 1, 1)), views)


def test_small_images_for_small_models_are_left_as_they_are_at_test() -> None:
    batch = torch.stack([picture(32, 32, k) for k in range(3)])
    for transform in (named("crop32"), named("plain", 32)):
        assert torch.equal(transform.test(batch), batch)
    assert torch.equal(named("plain", 32).train(batch, generator(0)), batch)


def test_a_padded_crop_shows_black_and_the_image() -> None:
    views = named("crop32").train(torch.full((400, 3, 32, 32), 255, dtype=torch.uint8), generator(0))
    shown = (views[:, 0] == 255).sum((1, 2))
    assert set(views.unique().tolist()) == {0, 255}
    assert shown.min() == 28 * 28
    assert shown.max() == 32 * 32
    boxes = named("crop32").draw(torch.tensor([[32, 32]] * 2000), generator(0)).boxes
    assert len(boxes.unique(dim=0)) == 9 * 9


def test_a_padded_crop_refuses_other_sizes() -> None:
    with pytest.raises(BadValue, match="takes images of 32 x 32 pixels, and one has 40 x 32"):
        named("crop32").train([picture(32, 32), picture(40, 32)], generator(0))


@pytest.mark.parametrize("name", [*RANDOM, "crop32"])
def test_only_the_generator_given_decides(name: str) -> None:
    batch = torch.stack([picture(32, 32, k) for k in range(8)])
    before = torch.random.get_rng_state()
    first = named(name).train(batch, generator(5))
    torch.manual_seed(1)
    assert torch.equal(named(name).train(batch, generator(5)), first)
    assert not torch.equal(named(name).train(batch, generator(6)), first)
    torch.random.set_rng_state(before)
    named(name).train(batch, generator(5))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_image_does_not_depend_on_those_after_it() -> None:
    images = [picture(*size) for size in RAGGED]
    alone = named("pilot").train(images[:2], generator(3))
    assert torch.equal(named("pilot").train([*images[:2], *images[:1]], generator(3))[:2], alone)


def test_images_may_be_made_in_any_order() -> None:
    def backwards(work: Callable[[int], None], items: Any) -> Iterator[None]:
        return map(work, reversed(list(items)))

    images = [picture(*size) for size in RAGGED]
    for name in ("coda", "plain"):
        first = named(name).train(images, generator(0))
        assert torch.equal(named(name).train(images, generator(0), backwards), first)


def test_crops_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    count, size, area, ratio = 4000, (60, 100), (0.05, 1.0), (3 / 4, 4 / 3)
    image = torch.zeros(3, *size)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, list(area), list(ratio)) for _ in range(count)])
    numbers = torch.rand(count, DRAWS, generator=generator(0), dtype=torch.float64)
    ours = transforms.random_boxes(torch.tensor(size).expand(count, 2), numbers, area, ratio)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        mine, their = (boxes.double().quantile(share, dim=0) for boxes in (ours, theirs))
        assert (mine - their).abs().max() <= 3
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= 60).all()
    assert (ours[:, 1] + ours[:, 3] <= 100).all()


@pytest.mark.parametrize(
    ("size", "expected"), [((10, 90), (0, 38, 10, 13)), ((90, 10), (38, 0, 13, 10)), ((30, 31), (0, 0, 30, 31))]
)
def test_where_no_crop_fits_a_central_one_is_taken(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    # a share of 0.9999… of a long image, at a ratio within 3/4 to 4/3, never lies inside it
    numbers = torch.full((1, DRAWS), 0.999999, dtype=torch.float64)
    boxes = transforms.random_boxes(torch.tensor([size]), numbers, (1.0, 1.0), (3 / 4, 4 / 3))
    assert tuple(boxes[0].tolist()) == expected


def test_resizing_to_the_same_size_changes_nothing_and_a_constant_stays() -> None:
    for mode in ("bilinear", "bicubic"):
        same = transforms.resizing(torch.tensor([2]), torch.tensor([5]), 8, 5, mode)
        assert torch.equal(same[0], torch.eye(8)[2:7])
        sums = transforms.resizing(torch.tensor([1, 0]), torch.tensor([6, 8]), 8, 3, mode).sum(-1)
        torch.testing.assert_close(sums, torch.ones(2, 3))


def test_brightness_lies_within_its_bounds() -> None:
    factors = named("hide-cifar").draw(torch.tensor([[32, 32]] * 500), generator(0)).brightness
    assert (factors - 1).abs().max() <= 63 / 255
    assert factors.min() < 0.78
    assert factors.max() > 1.22


def test_names_sizes_and_words() -> None:
    assert set(TRANSFORMS) == {"pilot", "coda", "hide-cifar", "plain", "crop32"}
    assert len({transform.describe() for transform in TRANSFORMS.values()}) == len(TRANSFORMS)
    assert named("pilot", 112).test_side == 128
    assert named("pilot", 112).train([picture(50, 40)], generator(0)).shape == (1, 3, 112, 112)
    assert "brightness 1 ± 0.247" in named("hide-cifar").describe()
    with pytest.raises(UnknownName, match="Did you mean 'pilot'"):
        named("pilots")
    with pytest.raises(BadValue, match="got 0"):
        named("plain", 0)
    assert worded("pilot") == named("pilot")
    assert worded("pilot@112") == named("pilot", 112)
    for wrong in ("pilot@", "pilot@big", "pilot@-1"):
        with pytest.raises(BadValue, match="as in pilot@384"):
            worded(wrong)


def test_no_images_give_no_views() -> None:
    assert named("pilot").train([], generator(0)).shape == (0, 3, 224, 224)
    assert named("pilot").train(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), generator(0)).shape == (0, 3, 224, 224)
    assert named("plain").test(torch.zeros(0, 3, 224, 224, dtype=torch.uint8)).shape == (0, 3, 224, 224)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*RANDOM, "crop32"])
def test_a_batch_on_a_gpu_is_seen_as_on_the_cpu(name: str) -> None:
    batch = torch.stack([picture(32, 32, k) for k in range(16)])
    for here, there in (
        (named(name).train(batch, generator(0)), named(name).train(batch.cuda(), generator(0))),
        (named(name).test(batch), named(name).test(batch.cuda())),
    ):
        assert there.device.type == "cuda"
        assert apart(here, there.cpu()) <= 3
