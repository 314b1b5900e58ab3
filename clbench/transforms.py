"""Transforms: the views of an image that are learned from and the one that is scored, as named choices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from clbench.errors import BadValue, UnknownName

Image: TypeAlias = Tensor | NDArray[np.uint8]
"""uint8 `[3, h, w]`; of an array only the part that is needed is read."""
Images: TypeAlias = Tensor | Sequence[Image]
"""One batch, uint8 `[n, 3, H, W]`, or images of any sizes."""
Interpolation = Literal["bilinear", "bicubic"]
Each: TypeAlias = Callable[[Callable[[int], None], Iterable[int]], Iterable[Any]]
"""`map`, or one that works in threads."""

ATTEMPTS = 10
"""How often torchvision's RandomResizedCrop tries for a crop that fits, before it takes a central one."""
DRAWS = 2 * ATTEMPTS + 4
"""Random numbers of one image: areas, ratios, top, left, flip, brightness."""


@dataclass(frozen=True)
class Crops:
    """What is done to each of `n` images before it is resized to the model's size."""

    boxes: Tensor
    """int64 `[n, 4]`: top, left, height, width; may reach beyond the image, into black."""
    flips: Tensor
    """bool `[n]`."""
    brightness: Tensor
    """float64 `[n]`, factors."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How images become uint8 `[n, 3, size, size]`; resizing is always antialiased, as Pillow's is.

    A batch is augmented where it lies, on any device; fewer than one value in fifty differs from what torchvision
    makes of its images one by one, by a rounding or two. All random numbers of a call are drawn from its generator,
    as many for each image, so the views of an image depend on the generator's state and the image's place alone.
    """

    name: str
    size: int = 224
    area: tuple[float, float] | None = None
    """Share of the image that a random crop takes; None: no crop, or one of the model's size out of `padding`."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    padding: int = 0
    """Black pixels around the image, out of which a crop of the model's size is taken."""
    flip: float = 0.5
    """How probable a mirrored image is."""
    brightness: float = 0.0
    """Factors are drawn from 1 ± this."""
    test_side: int = 224
    """To which length a test image's shorter side is resized before its central square is taken."""
    test_interpolation: Interpolation = "bilinear"
    whole: int = 0
    """Square images of that side are seen whole at test."""

    def train(self, images: Images, generator: torch.Generator, each: Each = map) -> Tensor:
        """Random views; `generator` is one of the CPU. `each` goes through images that are no batch."""
        if self.area is None and not self.padding:
            return self.test(images, each)
        crops = self.draw(_sizes(images), generator)
        if isinstance(images, Tensor):
            return self._batch(images, crops)
        boxes, flips, factors = crops.boxes.tolist(), crops.flips.tolist(), crops.brightness.tolist()
        return self._gather(lambda k: self._view(images[k], boxes[k], flips[k], factors[k]), len(images), each)

    def test(self, images: Images, each: Each = map) -> Tensor:
        """The one view that is scored."""
        if isinstance(images, Tensor):
            return self._test_view(images).contiguous()
        return self._gather(lambda k: self._test_view(_tensor(images[k])), len(images), each)

    def draw(self, sizes: Tensor, generator: torch.Generator) -> Crops:
        """Random crops of images of `sizes` int64 `[n, 2]`, heights and widths.

        Raises BadValue where a padded crop is asked of images that are not of the model's size.
        """
        numbers = torch.rand(len(sizes), DRAWS, generator=generator, dtype=torch.float64)
        if self.area is not None:
            boxes = random_boxes(sizes, numbers, self.area, self.ratio)
        else:
            wrong = (sizes != self.size).any(1).nonzero()
            if len(wrong):
                height, width = sizes[int(wrong[0])].tolist()
                raise BadValue(
                    f"transform '{self.name}' takes images of {self.size} x {self.size} pixels, and one has "
                    f"{height} x {width}; choose another transform."
                )
            corners = (numbers[:, -4:-2] * (2 * self.padding + 1)).long() - self.padding
            boxes = torch.cat([corners, sizes], 1)
        factors = 1 + self.brightness * (2 * numbers[:, -1] - 1)
        return Crops(boxes, numbers[:, -2] < self.flip, factors)

    def describe(self) -> str:
        """The transform in words, for the protocol card."""
        if self.area is not None:
            low, high = self.area
            train = f"random crop of {low:g} to {high:g} of the area to {self.size}, {self.interpolation}"
        else:
            train = f"random crop of {self.size} out of a border of {self.padding}" if self.padding else ""
        parts = [train, f"flip {self.flip:g}", f"brightness 1 ± {self.brightness:.3f}" if self.brightness else ""]
        learned = ", ".join(part for part in parts if part) if train else "as at test"
        side = f"shorter side to {self.test_side}, {self.test_interpolation}, central {self.size}"
        whole = f"; {self.whole}x{self.whole} images whole to {self.size}" if self.whole else ""
        return f"{self.name}: train {learned}; test {side}{whole}"

    def _batch(self, images: Tensor, crops: Crops) -> Tensor:
        """All crops at once: along each axis, resizing is a matrix product."""
        top, left, height, width = crops.boxes.to(images.device, non_blocking=True).unbind(1)
        top, left = top + self.padding, left + self.padding
        pixels = pad(images, [self.padding] * 4).float()
        rows = resizing(top, height, pixels.shape[-2], self.size, self.interpolation)
        columns = resizing(left, width, pixels.shape[-1], self.size, self.interpolation)
        flips = crops.flips.to(images.device, non_blocking=True)
        columns = torch.where(flips[:, None, None], columns.flip(1), columns)
        # Rounded between the two, as Pillow and torchvision do.
        across = (pixels @ columns[:, None].mT).round_().clamp_(0, 255)
        views = (rows[:, None] @ across).round_().clamp_(0, 255)
        if self.brightness:
            factors = crops.brightness.to(images.device, torch.float32, non_blocking=True)
            views.mul_(factors[:, None, None, None]).clamp_(0, 255)
        return views.to(torch.uint8)

    def _view(self, image: Image, box: Sequence[int], flipped: bool, factor: float) -> Tensor:
        """One crop of one image, `[3, size, size]`."""
        top, left, height, width = box
        seen: Tensor = _tensor(image[:, max(top, 0) : top + height, max(left, 0) : left + width])
        seen = functional.crop(seen, min(top, 0), min(left, 0), height, width)
        seen = _resize(seen, [self.size, self.size], self.interpolation)
        seen = functional.horizontal_flip(seen) if flipped else seen
        if self.brightness:
            seen = functional.adjust_brightness(seen, factor)
        return seen

    def _test_view(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        whole = height == width == self.whole
        resized = _resize(images, [self.size if whole else self.test_side], self.test_interpolation)
        central: Tensor = functional.center_crop(resized, [self.size, self.size])
        return central

    def _gather(self, view: Callable[[int], Tensor], count: int, each: Each) -> Tensor:
        gathered = torch.empty(count, 3, self.size, self.size, dtype=torch.uint8)

        def put(k: int) -> None:
            gathered[k] = view(k)

        for _ in each(put, range(count)):
            pass
        return gathered


def random_boxes(sizes: Tensor, numbers: Tensor, area: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Crops as torchvision's RandomResizedCrop draws them, int64 `[n, 4]`: top, left, height, width.

    `sizes` int64 `[n, 2]`, `numbers` uniform in [0, 1) `[n, DRAWS]`. The first of ten tries that fits is taken; where
    none does, the largest central crop whose ratio is allowed.
    """
    height, width = sizes.double()[:, :, None].unbind(1)
    areas = height * width * (area[0] + (area[1] - area[0]) * numbers[:, :ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * numbers[:, ATTEMPTS : 2 * ATTEMPTS])
    heights, widths = (areas / ratios).sqrt().round(), (areas * ratios).sqrt().round()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = torch.cat([heights.gather(1, first), widths.gather(1, first)], 1)
    central = torch.cat(
        [torch.minimum(height, (width / ratio[0]).round()), torch.minimum(width, (height * ratio[1]).round())], 1
    )
    any_fits = fits.any(1, keepdim=True)
    extents = torch.where(any_fits, found, central).long()
    room = sizes - extents
    corners = torch.where(any_fits, (numbers[:, -4:-2] * (room + 1)).long(), room // 2)
    return torch.cat([corners, extents], 1)


def resizing(start: Tensor, length: Tensor, source: int, target: int, interpolation: Interpolation) -> Tensor:
    """The matrices `[n, target, source]` that resize the `length` pixels from `start` on (`[n]` each) to `target`.

    Antialiased, with the weights of Pillow: a filter as wide as the larger of the two pixels, cut off at the crop's
    edges (bicubic with a = -0.5).
    """
    start, length = start[:, None, None].float(), length[:, None, None].float()
    step = length / target
    centres = start + (torch.arange(target, device=start.device)[:, None] + 0.5) * step
    places = torch.arange(source, device=start.device)
    distance = ((places + 0.5 - centres) / step.clamp(min=1)).abs()
    if interpolation == "bilinear":
        weights = (1 - distance).clamp(min=0)
    else:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, far) * (distance < 2)
    weights = weights * ((places >= start) & (places < start + length))
    return weights / weights.sum(-1, keepdim=True)


def _sizes(images: Images) -> Tensor:
    """Heights and widths, int64 `[n, 2]`."""
    if isinstance(images, Tensor):
        return torch.tensor(images.shape[-2:]).expand(len(images), 2)
    return torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64).view(-1, 2)


def _tensor(image: Image) -> Tensor:
    """The image as a tensor; an array is copied, for it may be a view of a file that cannot be written to."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))


def _resize(images: Tensor, size: list[int], interpolation: Interpolation) -> Tensor:
    resized: Tensor = functional.resize(images, size, InterpolationMode(interpolation), antialias=True)
    return resized


TRANSFORMS = {
    transform.name: transform
    for transform in (
        # PILOT, and PyTorch's L2P, DualPrompt and HiDe-Prompt: the crop's interpolation is torchvision's default,
        # bilinear, while test images are resized bicubically, also those of CIFAR.
        Transform(name="pilot", area=(0.05, 1.0), test_side=256, test_interpolation="bicubic"),
        # CODA-Prompt and InfLoRA: torchvision's defaults. They see CIFAR's test images whole, as their loader of
        # CIFAR says; here the size of an image tells, so that one name serves all sets.
        Transform(name="coda", area=(0.08, 1.0), test_side=256, whole=32),
        # HiDe-Prompt's own for CIFAR; its areas are torchvision's defaults. Its code then normalises by CIFAR's mean
        # and deviation, which is not the transform's affair here.
        Transform(
            name="hide-cifar",
            area=(0.08, 1.0),
            interpolation="bicubic",
            brightness=63 / 255,
            test_side=256,
            test_interpolation="bicubic",
        ),
        Transform(name="plain"),
        # CIFAR at its own size: a border of four pixels and mirroring (Lee et al. 2015, Deeply-Supervised Nets).
        Transform(name="crop32", size=32, padding=4, test_side=32),
    )
}


def worded(word: str) -> Transform:
    """The transform that a word names: `NAME`, or `NAME@PIXELS` for a model that takes so many a side.

    Raises what `named` raises, and BadValue where the pixels are no number.

    >>> worded("pilot@384").test_side
    438
    """
    name, asked, size = word.partition("@")
    if asked and not (size.isdecimal() and size.isascii()):
        raise BadValue(f"a transform for another size is NAME@PIXELS, as in {name}@384; got '{word[:60]}'.")
    return named(name, int(size) if asked else None)


def named(name: str, size: int | None = None) -> Transform:
    """The transform of that name, for a model that takes `size` x `size` pixels (its usual size when None).

    Raises UnknownName; BadValue for a size below one pixel.

    >>> named("plain", 32).describe()
    'plain: train as at test; test shorter side to 32, bilinear, central 32'
    """
    if name not in TRANSFORMS:
        raise UnknownName("transform", name, TRANSFORMS)
    transform = TRANSFORMS[name]
    if size is None:
        return transform
    if size < 1:
        raise BadValue(f"a transform's size is a number of pixels, 1 or more; got {size}.")
    return replace(transform, size=size, test_side=int(transform.test_side / transform.size * size))
