"""Pre-trained models: how to build, find, verify and take features from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.contents import Entry
from clbench.errors import UnknownName

if TYPE_CHECKING:
    from clbench.backbones.vision import VisionSource
    from clbench.model import Classifier

CONTENTS: dict[str, Entry] = {
    "glyph-vit": Entry(
        "clbench.backbones.vision:GLYPH_VIT", "ViT, 1.2 M weights, 32x32 grey, pre-trained on 1,475 drawn characters"
    ),
    "tiny-vit": Entry("clbench.backbones.vision:TINY_VIT", "ViT, 7 k random weights, 8x8 grey, for tests"),
}


def build(name: str, classes: int, seed: int) -> Classifier:
    """The backbone called `name` with a head of `classes` rows.

    Raises UnknownName, or NotAvailable where its weights are missing or damaged.
    """
    return _source(name).build(classes, seed)


def weights_sha256(name: str) -> str:
    """Hash of the backbone's weights, for the protocol card."""
    return _source(name).weights_sha256()


def _source(name: str) -> VisionSource:
    if name not in CONTENTS:
        raise UnknownName("backbone", name, CONTENTS)
    source: VisionSource = CONTENTS[name].load()
    return source
