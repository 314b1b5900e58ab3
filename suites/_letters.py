"""Letters: Greek, Cyrillic, Armenian and Georgian drawn from the DejaVu faces, 10 tasks x 10 classes.

Source: drawn here from the fonts that matplotlib ships (Bitstream Vera and DejaVu licences, free to
use). The scripts were held out of the backbone's pre-training; the test images use faces that no
training image uses.
"""

from __future__ import annotations

import torch

from clbench import glyphs as drawing
from clbench.seeding import derive, generator
from clbench.stream import ImageSet, Stream, Task

TEST_FACES = ("DejaVuSansMono-BoldOblique", "DejaVuSerif-Italic", "DejaVuSans-Bold")
TRAIN_FACES = tuple(face for face in drawing.FACES if face not in TEST_FACES)
TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES = 60, 12, 24
"""Per class."""
JITTER = drawing.Jitter(
    rotation_rad=0.25, scale=(0.8, 1.15), shear=0.2, shift=0.1, noise=0.1, contrast=(0.4, 1.0), inversion=0.16
)
"""Chosen so that the nearest class mean is right four times in five and joint training nine times in ten."""


def images(characters: str, faces: tuple[str, ...], count: int, *words: str) -> torch.Tensor:
    """`count` jittered images of each character, `[characters * count, 1, 32, 32]` uint8."""
    draws = generator(0, "glyphs", *words)
    plates = torch.from_numpy(drawing.plates(characters, faces))
    which = torch.arange(count) % len(faces)
    chosen = plates[:, which].flatten(0, 1)
    return JITTER(chosen, draws)


def task(name: str, classes: tuple[int, ...]) -> Task:
    """One task: its characters in all faces, test faces apart."""
    characters = drawing.DOWNSTREAM[name]
    targets = torch.tensor(classes)
    parts = [
        ImageSet(images(characters, faces, count, name, part), targets.repeat_interleave(count))
        for part, faces, count in (
            ("train", TRAIN_FACES, TRAIN_IMAGES),
            ("validation", TRAIN_FACES, VALIDATION_IMAGES),
            ("test", TEST_FACES, TEST_IMAGES),
        )
    ]
    return Task(name, parts[0], parts[1], parts[2], classes)


def stream(order_seed: int = 0) -> Stream:
    """Ten tasks of ten letters; order 0 goes script by script, others shuffle the tasks."""
    names = list(drawing.DOWNSTREAM)
    order = list(range(len(names)))
    if order_seed:
        order = torch.randperm(
            len(names), generator=torch.Generator().manual_seed(derive(order_seed, "order"))
        ).tolist()
    tasks = tuple(task(names[i], tuple(range(10 * i, 10 * i + 10))) for i in order)
    return Stream(tasks, tuple("".join(drawing.DOWNSTREAM.values())))
