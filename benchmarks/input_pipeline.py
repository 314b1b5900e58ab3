"""What augmented 224-pixel batches cost: from the decoded cache against torchvision's ImageFolder and DataLoader.

Both give the same number of images of the same JPEG files an epoch, in batches of 128 uint8 images, each a random
resized crop, mirrored every second time. The reference is a plain ImageFolder with RandomResizedCrop,
RandomHorizontalFlip and PILToTensor behind a DataLoader with two workers that stay alive; it decodes the files in
every epoch. Ours reads their decoded pixels from a memory-mapped file, in at most two threads at a time. A block is
one epoch of four batches. Read the column `ratio`: the median over the blocks of (ours / reference) in time;
quartiles and extremes say how quiet the machine was.

The files are made here: noise whose spectrum falls like that of photographs, 500 x 375 or 375 x 500, JPEG quality 90.
Decoding them once and storing the pixels is not timed; its seconds are printed. Both kinds of file are in memory, as
after the first epoch where it has room for them. A disk would have to give about five times as many bytes of pixels as
of JPEG: where the set is larger than memory and the disk slow, the ratio is not this one.

    python benchmarks/input_pipeline.py
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _paired import Comparison, compare
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from clbench import imagestore
from clbench.data.cache import Pixels, Prepared
from clbench.imagestore import PixelExamples, ahead
from clbench.seeding import generator
from clbench.transforms import named

CLASSES = 4
BATCHES, BATCH_SIZE = 4, 128
IMAGES = BATCHES * BATCH_SIZE
WORKERS = 2
TARGET = 1 / 3
"""Of the reference's time."""
LONG, SHORT = 500, 375
QUALITY = 90


def photograph(number: int) -> Image.Image:
    """Noise of which amplitude falls with frequency, alike in its three colours, as in photographs."""
    draws = np.random.default_rng(number)
    height, width = (SHORT, LONG) if number % 2 else (LONG, SHORT)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(draws.standard_normal((4, height, width))) / frequency, (height, width))
    noise /= noise.std((1, 2), keepdims=True)
    colours = 128 + 45 * noise[0] + 20 * noise[1:]
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def write(folder: Path) -> None:
    """The JPEG files, one folder a class."""
    for number in range(IMAGES):
        place = folder / f"class_{number % CLASSES}"
        place.mkdir(exist_ok=True)
        photograph(number).save(place / f"{number:04}.jpg", quality=QUALITY)


def decoded(files: ImageFolder, folder: Path) -> Prepared:
    """The pixels of the same files in one file, as a prepared data set has them."""
    sizes = []
    with (folder / "pixels").open("wb") as file:
        for path, _ in files.samples:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            sizes.append(pixels.shape[1:])
            file.write(pixels.tobytes())
    return Prepared(
        name="noise",
        images=Pixels(np.memmap(folder / "pixels", np.uint8, mode="r"), np.array(sizes)),
        targets=np.array(files.targets),
        is_train=np.ones(len(files), dtype=bool),
        domains=None,
        class_names=tuple(files.classes),
        domain_names=(),
        split="all train",
        short_side=None,
        sha256=hashlib.sha256(b"noise").hexdigest(),
        pixels_sha256="",
        folder=folder,
    )


class Cached:
    """Epochs from the decoded pixels."""

    def __init__(self, prepared: Prepared) -> None:
        self.examples, self.epoch = PixelExamples(prepared, named("pilot")), 0

    def block(self) -> None:
        """One epoch."""
        draws = generator(0, "epoch", self.epoch)
        order = torch.randperm(len(self.examples), generator=draws).split(BATCH_SIZE)
        seen = 0
        for images, _ in ahead(self.examples.batch(part, torch.device("cpu"), draws) for part in order):
            check(images)
            seen += len(images)
        assert seen == IMAGES
        self.epoch += 1


class Plain:
    """Epochs from the files, as torchvision's documentation has them."""

    def __init__(self, files: ImageFolder) -> None:
        self.loader = DataLoader(
            files, batch_size=BATCH_SIZE, shuffle=True, num_workers=WORKERS, persistent_workers=True
        )

    def block(self) -> None:
        """One epoch."""
        seen = 0
        for images, _ in self.loader:
            check(images)
            seen += len(images)
        assert seen == IMAGES


def check(images: torch.Tensor) -> None:
    """Neither may win by giving less."""
    assert images.shape[1:] == (3, 224, 224)
    assert images.dtype == torch.uint8


def show(result: Comparison, chosen: argparse.Namespace, decoding_seconds: float) -> None:
    """Print the table."""
    print(
        f"batches of {BATCH_SIZE} at 224 x 224, {IMAGES} images an epoch; {WORKERS} workers or threads, "
        f"{chosen.blocks} paired blocks; decoding once took {decoding_seconds:.1f} s"
    )
    print(f"{'':<22}{'images/s':>9}{'ratio':>9}   {'quartiles':<13}{'min-max':<11}{'target':>9}")
    rates = [IMAGES / float(np.median(times)) for times in (result.reference, result.mine)]
    print(f"{'ImageFolder':<22}{rates[0]:>9.0f}")
    ratios = np.array(result.mine) / np.array(result.reference)
    low, first, median, third, high = np.percentile(ratios, [0, 25, 50, 75, 100])
    spread = f"{first:.3f}-{third:.3f}  {low:.3f}-{high:.3f}"
    verdict = "met" if median <= result.target else "missed"
    print(f"{result.name:<22}{rates[1]:>9.0f}{median:>9.3f}   {spread}{result.target:>9.3f}  {verdict}")
    print(f"{1 / median:.1f} times the images per second (quartiles {1 / third:.1f} to {1 / first:.1f})")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=9, help="paired blocks to time (default: 9)")
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    imagestore.MOST_THREADS = WORKERS
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.05, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jpeg").mkdir()
        write(folder / "jpeg")
        files = ImageFolder(folder / "jpeg", view)
        began = time.perf_counter()
        cached = Cached(decoded(files, folder))
        seconds = time.perf_counter() - began
        (result,) = compare(Plain(files).block, {"decoded cache": (cached.block, TARGET)}, chosen.blocks)
    show(result, chosen, seconds)


if __name__ == "__main__":
    main()
