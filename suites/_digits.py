"""Handwritten digits: scikit-learn's real ones as a stream; source and licence stand in `digits`."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from clbench.seeding import derive, generator
from clbench.stream import ImageSet, Stream, Task

CLASSES_PER_TASK = 2
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.10


def images() -> ImageSet:
    """All digits as `[1797, 1, 32, 32]` uint8: 8x8 enlarged to 24x24 and padded with black."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    large = F.interpolate(small, size=(24, 24), mode="bilinear", align_corners=False)
    return ImageSet((F.pad(large, (4, 4, 4, 4)) * 255).round().to(torch.uint8), torch.tensor(bunch.target))


def split(everything: ImageSet, digit: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of one digit's train, validation and test images; the same whatever seed a run has."""
    places = (everything.targets == digit).nonzero().flatten()
    places = places[torch.randperm(len(places), generator=generator(0, "digits split", digit))]
    test, validation = round(len(places) * TEST_SHARE), round(len(places) * VALIDATION_SHARE)
    return places[test + validation :], places[test : test + validation], places[:test]


def stream(order_seed: int = 0) -> Stream:
    """Five tasks of two digits; order 0 is 0 1 | 2 3 | 4 5 | 6 7 | 8 9, others shuffle the digits."""
    order = list(range(10))
    if order_seed:
        order = torch.randperm(10, generator=torch.Generator().manual_seed(derive(order_seed, "order"))).tolist()
    everything, tasks = images(), []
    for first in range(0, 10, CLASSES_PER_TASK):
        digits = tuple(order[first : first + CLASSES_PER_TASK])
        parts = [torch.cat(list(part)) for part in zip(*(split(everything, d) for d in digits), strict=True)]
        train, validation, test = (everything.subset(part) for part in parts)
        tasks.append(Task(" ".join(map(str, digits)), train, validation, test, digits))
    return Stream(tuple(tasks), tuple(map(str, range(10))))
