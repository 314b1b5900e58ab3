"""Image store: examples whose pixels stay in a prepared data set's file until a batch asks for them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from clbench.data.cache import Prepared
from clbench.transforms import Images, Transform

RESIDENT_BYTES = 4 * 2**30
"""Up to this size, images that are all of one size move to an accelerator once."""
MOST_THREADS = 8
SHARE = 8
"""Images that a thread takes at a time."""

T = TypeVar("T")


class PixelExamples(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The examples of a prepared data set at `places`, in that order (all of them when None), seen by a transform.

    What is made from one another by `subset` shares the pixels that lie on a device.
    """

    def __init__(
        self,
        prepared: Prepared,
        transform: Transform,
        places: Tensor | Sequence[int] | None = None,
        resident: dict[torch.device, Tensor] | None = None,
    ) -> None:
        self.transform, self._prepared, self._stored = transform, prepared, prepared.images.uniform
        everything = torch.arange(len(prepared.targets))
        self._places = everything if places is None else torch.as_tensor(places, dtype=torch.int64)
        self.targets = torch.from_numpy(np.array(prepared.targets, dtype=np.int64))[self._places]
        self._resident = {} if resident is None else resident

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The test view, uint8 `[3, size, size]`, and the target."""
        images, targets = self.batch(torch.tensor([index]), torch.device("cpu"))
        return images[0], int(targets[0])

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Views uint8 `[n, 3, size, size]` and targets int64 `[n]` of the examples at `indices`, on `device`.

        The views are random ones drawn from `draws`, a generator of the CPU, or those of the test when None.
        """
        indices = indices.cpu()
        images = self._pixels(self._places[indices], device)
        if draws is None:
            views = self.transform.test(images, in_threads)
        else:
            views = self.transform.train(images, draws, in_threads)
        if views.device.type != device.type:
            views = views.pin_memory() if device.type == "cuda" else views
            views = views.to(device, non_blocking=True)
        return views, self.targets[indices].to(device, non_blocking=True)

    def subset(self, indices: Tensor | Sequence[int]) -> PixelExamples:
        """The examples at `indices`, in that order."""
        chosen = self._places[torch.as_tensor(indices, dtype=torch.int64)]
        return PixelExamples(self._prepared, self.transform, chosen, self._resident)

    def sha256(self) -> str:
        """Hash of the data set's own hash, the places and the targets, in order; reads no pixel."""
        total = hashlib.sha256(self._prepared.sha256.encode())
        for tensor in (self._places, self.targets):
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()

    @property
    def pixels_sha256(self) -> str:
        """Of the whole set's decoded pixels, in which decoders may differ; for what is kept of them."""
        return self._prepared.pixels_sha256

    @property
    def data_sha256(self) -> str:
        """Of the whole set as published: images, labels and split."""
        return self._prepared.sha256

    def _pixels(self, places: Tensor, device: torch.device) -> Images:
        """A batch on an accelerator where all images are of one size, else views into the file."""
        stored = self._stored
        if stored is None or device.type == "cpu" or stored.nbytes > RESIDENT_BYTES:
            return [self._prepared.images.pixels(place) for place in places.tolist()]
        if device not in self._resident:
            self._resident[device] = torch.from_numpy(np.array(stored)).to(device)
        return self._resident[device][places.to(device, non_blocking=True)]


def in_threads(work: Callable[[int], None], items: Iterable[int]) -> Iterator[None]:
    """`map` over a few threads; reading files, cropping and resizing let the others run meanwhile."""
    every = list(items)
    if len(every) <= SHARE:
        return map(work, every)

    def several(first: int) -> None:
        for item in every[first : first + SHARE]:
            work(item)

    return _pool(os.getpid()).map(several, range(0, len(every), SHARE))


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process; one that was forked has none of its parent's."""
    return ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="images")


def ahead(batches: Iterator[T]) -> Iterator[T]:
    """The same batches, in order, each made in another thread while the one before it is used."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as other:
        coming: Future[T | object] = other.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = other.submit(next, batches, end)
            yield batch  # type: ignore[misc]  # it is not the end
