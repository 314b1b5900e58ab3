"""Draws characters: the 12 DejaVu text faces that ship with matplotlib, as small grey images.

The embedded backbone is pre-trained on some characters and the embedded suite teaches others;
both come from here, so that what is disjoint can be seen in one place. A *plate* is the clean
picture of one character in one face; `jitter` makes training and test images from plates.
"""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

PLATE_PIXELS = 48
"""Height and width of a plate; the character's longer side fills `_INK_PIXELS` of it."""
IMAGE_PIXELS = 32
"""Height and width of the images made by `jitter`."""
_INK_PIXELS = 34
_POINT_SIZE = 96

FACES: tuple[str, ...] = tuple(
    f"DejaVu{family}{style}"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)

DOWNSTREAM: dict[str, str] = {
    "greek-1": "αβζλξπφχωΓ",
    "greek-2": "ΔΞΣΦΨςμνϑϒ",
    "greek-3": "ϕϖϗϘϝϞϟϠϡϰ",
    "cyrillic-1": "ДЖИЛЦЧШЭЮЯ",
    "cyrillic-2": "ЪЫЂЉЊЋЏКЩЬ",
    "cyrillic-3": "фђћѢѣҐҒҔҖҘ",
    "armenian-1": "ԱԲԳԵԶԸԹԺԻԽ",
    "armenian-2": "ԾԿՀՁՂՃՄՆՇՊ",
    "georgian-1": "აბდეზთკლმრ",
    "georgian-2": "სტუფქღჩჭჯჰ",
}
"""The tasks of the embedded suite, ten characters each, from scripts held out of pre-training."""

_HELD_OUT_SCRIPTS = {"GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "COPTIC"}
"""The downstream scripts, and Coptic, whose letters are Greek ones."""
_HELD_OUT_SIGNS = {"OHM", "MICRO", "INCREMENT", "SUMMATION", "PRODUCT", "KELVIN", "ANGSTROM"}
"""Signs that are letters of those scripts, or of Latin, under another name."""
_NUMBER_WORDS = {
    *{"ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN", "HUNDRED", "THOUSAND"},
    *{"DIGIT", "NUMBER", "NUMERAL", "FRACTION", "HALF", "QUARTER", "PERCENT", "MILLE", "EMPTY", "DIAMETER", "ZILDE"},
    *{"PLAYING", "DOMINO", "DIE", "CLOCK", "WATCH", "TELEPHONE", "KEYBOARD", "CALENDAR"},
}
"""A character whose name speaks of a number may be, or show, a digit; a slashed circle is a zero in many faces."""
_SHAPELESS = {"MATHEMATICAL", "BRAILLE", "HEXAGRAM", "TETRAGRAM", "SQUARED"}
"""Letters in other styles, which are no other letters, and patterns of dots and bars."""
_HELD_OUT_WORDS = _HELD_OUT_SCRIPTS | _HELD_OUT_SIGNS | _NUMBER_WORDS | _SHAPELESS
DIGITS = "0123456789"
_NEAR_DUPLICATE = 0.86
"""Cosine similarity of two blurred plates from which on they count as the same picture."""


def face_file(face: str) -> Path:
    """The font file of `face` inside the installed matplotlib (which is not imported)."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("matplotlib is not installed; its DejaVu fonts are needed: pip install matplotlib")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{face}.ttf"


@functools.cache
def code_points(face: str) -> frozenset[int]:
    """The code points that `face` can draw."""
    from fontTools.ttLib import TTFont

    with TTFont(face_file(face), lazy=True) as font:
        return frozenset(font.getBestCmap())


def faces_of(character: str) -> tuple[str, ...]:
    """The faces that can draw `character`, in the order of `FACES`."""
    return tuple(face for face in FACES if ord(character) in code_points(face))


@functools.cache
def _font(face: str):  # type: ignore[no-untyped-def]
    from PIL import ImageFont

    return ImageFont.truetype(str(face_file(face)), _POINT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def plate(character: str, face: str) -> NDArray[np.uint8]:
    """`character` in `face`, white on black, centred and scaled to fill the plate.

    Returns a `[48, 48]` uint8 array, all zero where the face draws nothing.
    """
    from PIL import Image, ImageDraw

    font = _font(face)
    left, top, right, bottom = font.getbbox(character)
    width, height = right - left, bottom - top
    canvas = Image.new("L", (PLATE_PIXELS, PLATE_PIXELS))
    if width <= 0 or height <= 0:
        return np.asarray(canvas).copy()
    drawn = Image.new("L", (int(width), int(height)))
    ImageDraw.Draw(drawn).text((-left, -top), character, fill=255, font=font)
    ink = drawn.getbbox()
    if ink is None:
        return np.asarray(canvas).copy()
    drawn = drawn.crop(ink)
    factor = _INK_PIXELS / max(drawn.size)
    small = drawn.resize([max(1, round(side * factor)) for side in drawn.size], Image.Resampling.BOX)
    canvas.paste(small, ((PLATE_PIXELS - small.width) // 2, (PLATE_PIXELS - small.height) // 2))
    return np.asarray(canvas).copy()


def plates(characters: Iterable[str], faces: Sequence[str]) -> NDArray[np.uint8]:
    """`[characters, faces, 48, 48]` uint8; every face must have every character."""
    return np.stack([[plate(character, face) for face in faces] for character in characters])


def fingerprints(characters: Sequence[str], face: str | None = None) -> NDArray[np.float32]:
    """Blurred, centred, unit-length plates whose inner product says how alike two characters look.

    Returns `[characters, 48 * 48]` float32, drawn in `face` or in the first face that has it.
    """
    drawn = np.stack([plate(c, face or faces_of(c)[0]) for c in characters]).astype(np.float32)
    blurred = F.avg_pool2d(torch.from_numpy(drawn)[:, None], 5, stride=1, padding=2).flatten(1).numpy()
    blurred -= blurred.mean(axis=1, keepdims=True)
    return np.asarray(blurred / np.maximum(np.linalg.norm(blurred, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def _may_be_pretrained(character: str) -> bool:
    name = unicodedata.name(character, "")
    if not name or unicodedata.category(character)[0] not in "LSP" or unicodedata.category(character) == "Lm":
        return False
    for part in (character, *unicodedata.normalize("NFKD", character)):
        words = set(unicodedata.name(part, "").replace("-", " ").split())
        if unicodedata.category(part)[0] == "N" or words & _HELD_OUT_WORDS or any(map(str.isdigit, words)):
            return False
    return True


def looks_like(characters: Sequence[str], others: Sequence[str]) -> NDArray[np.bool_]:
    """For each of `characters`, whether it is a near-duplicate of any of `others` in any of their faces."""
    marks = fingerprints(characters)
    alike = np.zeros(len(characters), dtype=bool)
    for face in FACES:
        drawable = [other for other in others if ord(other) in code_points(face)]
        if drawable:
            alike |= (marks @ fingerprints(drawable, face).T > _NEAR_DUPLICATE).any(axis=1)
    return alike


def pretraining_characters() -> tuple[str, ...]:
    """The characters that the embedded backbone may see, in code-point order.

    Left out: the downstream scripts, every form of a digit (Unicode category N, and names that
    speak of numbers), what looks like a downstream character or a digit 0-9 in any face, and what
    looks like an earlier character of this list.
    """
    points = sorted(frozenset().union(*(code_points(face) for face in FACES)))
    candidates = [chr(point) for point in points if _may_be_pretrained(chr(point))]
    candidates = [c for c in candidates if plate(c, faces_of(c)[0]).any()]
    held_out = [*DIGITS, *"".join(DOWNSTREAM.values())]
    candidates = [c for c, alike in zip(candidates, looks_like(candidates, held_out), strict=True) if not alike]
    marks = fingerprints(candidates)
    kept: list[int] = []
    for index in range(len(candidates)):
        if not kept or float((marks[kept] @ marks[index]).max()) <= _NEAR_DUPLICATE:
            kept.append(index)
    return tuple(candidates[index] for index in kept)


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """How far an image may stray from its plate; every range is sampled uniformly for each image."""

    rotation_rad: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    shift: float = 0.0
    """In fractions of the image's width."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, on a 0–1 scale."""
    contrast: tuple[float, float] = (1.0, 1.0)
    """Difference between ink and ground, on a 0–1 scale; the ground is sampled to fit."""
    inversion: float = 0.0
    """Probability of dark ink on a light ground."""

    def __call__(self, drawn: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images from plates: `[n, 48, 48]` uint8 in, `[n, 1, 32, 32]` uint8 out."""
        count = len(drawn)

        def uniform(low: float, high: float) -> torch.Tensor:
            return torch.rand(count, generator=generator) * (high - low) + low

        angle, size = uniform(-self.rotation_rad, self.rotation_rad), uniform(*self.scale)
        shear = uniform(-self.shear, self.shear)
        right, down = uniform(-2 * self.shift, 2 * self.shift), uniform(-2 * self.shift, 2 * self.shift)
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        rows = torch.stack([cos, -sin + shear * cos, right, sin, cos + shear * sin, down], dim=1)
        grid = F.affine_grid(rows.view(count, 2, 3), [count, 1, IMAGE_PIXELS, IMAGE_PIXELS], align_corners=False)
        image = F.grid_sample(drawn[:, None].float() / 255, grid, align_corners=False)
        contrast = uniform(*self.contrast)
        ground = uniform(0.0, 1.0) * (1 - contrast)
        dark = uniform(0.0, 1.0) < self.inversion
        image = torch.where(dark.view(-1, 1, 1, 1), 1 - image, image)
        image = ground.view(-1, 1, 1, 1) + image * contrast.view(-1, 1, 1, 1)
        if self.noise:
            image = image + torch.randn(image.shape, generator=generator) * self.noise
        return (image.clamp(0, 1) * 255).round().to(torch.uint8)
