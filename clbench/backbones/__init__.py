"""Pre-trained models: how to build, find, verify and take features from them.

A backbone is named `[FAMILY:]NAME[@PATH]`: a listed name, or one of a family's own; PATH is a file of its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clbench.contents import Entry
from clbench.errors import BadValue, UnknownName

if TYPE_CHECKING:
    import torch

    from clbench.model import Classifier

CONTENTS: dict[str, Entry] = {
    "glyph-vit": Entry(
        "clbench.backbones.vision:GLYPH_VIT", "ViT, 1.2 M weights, 32x32 grey, pre-trained on 1,475 drawn characters"
    ),
    "tiny-vit": Entry("clbench.backbones.vision:TINY_VIT", "ViT, 7 k random weights, 8x8 grey, for tests"),
    "tiny-lm": Entry(
        "clbench.backbones.causal:TINY_LM", "Llama, 0.7 M weights, reads bytes, pre-trained on generated text"
    ),
    "nano-lm": Entry("clbench.backbones.causal:NANO_LM", "Llama, 29 k random weights, reads bytes, for tests"),
    "llama-1b-shape": Entry(
        "clbench.backbones.causal:LLAMA_1B_SHAPE", "the shape of Llama-3.2-1B with random weights, for timing"
    ),
    "llama-7b-shape": Entry(
        "clbench.backbones.causal:LLAMA_7B_SHAPE", "the shape of Llama-2-7B with random weights, for timing"
    ),
    "llama-3.2-1b-instruct": Entry("clbench.backbones.causal:LLAMA_32_1B", "meta-llama/Llama-3.2-1B-Instruct"),
    "llama-2-7b-chat": Entry("clbench.backbones.causal:LLAMA_2_7B", "meta-llama/Llama-2-7b-chat-hf"),
    "gemma-2b-it": Entry("clbench.backbones.causal:GEMMA_2B", "google/gemma-2b-it"),
    "mistral-7b-instruct": Entry("clbench.backbones.causal:MISTRAL_7B", "mistralai/Mistral-7B-Instruct-v0.3"),
    "cifar-vit": Entry(
        "clbench.backbones.tags:CIFAR_VIT", "ViT, 1.2 M weights, 32x32; weights by cifar-vit@PATH, none shipped"
    ),
    "vit-b16-in21k": Entry(
        "clbench.backbones.tags:VIT_B16_IN21K",
        "ViT-B/16, ImageNet-21k, made with 0.5; timm vit_base_patch16_224.augreg_in21k, 410 MB",
    ),
    "vit-b16-in1k": Entry(
        "clbench.backbones.tags:VIT_B16_IN1K",
        "ViT-B/16, ImageNet-21k then 1k, made with 0.5; timm vit_base_patch16_224.augreg_in21k_ft_in1k, 346 MB",
    ),
    "vit-b16-dino": Entry(
        "clbench.backbones.tags:VIT_B16_DINO",
        "ViT-B/16, DINO on ImageNet-1k, made with imagenet; timm vit_base_patch16_224.dino, 343 MB",
    ),
    "vit-b16-ibot21k": Entry(
        "clbench.backbones.tags:VIT_B16_IBOT21K",
        "ViT-B/16, iBOT on ImageNet-22K, made with imagenet; timm vit_base_patch16_224, weights by "
        "vit-b16-ibot21k@PATH: iBOT's vitb_16_pt22k/checkpoint.pth, of which the teacher is taken",
    ),
    "vit-s16-in21k": Entry(
        "clbench.backbones.tags:VIT_S16_IN21K",
        "ViT-S/16, ImageNet-21k, made with 0.5; timm vit_small_patch16_224.augreg_in21k, 120 MB",
    ),
    "vit-ti16-in21k": Entry(
        "clbench.backbones.tags:VIT_TI16_IN21K",
        "ViT-Ti/16, ImageNet-21k, made with 0.5; timm vit_tiny_patch16_224.augreg_in21k, 39 MB",
    ),
}
FAMILIES: dict[str, Entry] = {
    "hf": Entry("clbench.backbones.causal:hub_family", "any causal language model: a hub's name, PATH a folder of it"),
    "hf-4bit": Entry("clbench.backbones.causal:packed_family", "the same in 4 bits, by bitsandbytes"),
    "timm": Entry("clbench.backbones.tags:timm_family", "any vision transformer of timm, with its own weights or PATH"),
    "ibot": Entry("clbench.backbones.tags:ibot_family", "a vision transformer by timm's name, PATH as iBOT writes it"),
}
"""Each is a function of NAME that gives a source."""
WEIGHTS = ("default", "random")
"""Which weights may be asked for; random ones, drawn with seed 0, are for timing."""


class Source(Protocol):
    """Where a backbone's architecture and weights come from."""

    def at(self, path: Path) -> Source:
        """The same with the weights at `path`."""
        ...

    def weights_sha256(self) -> str:
        """Hash of the weights."""
        ...

    def build(self, classes: int, seed: int, *, normalisation: str, weights: str) -> Classifier:
        """The classifier with one of `WEIGHTS`."""
        ...

    def outline(self, precision: torch.dtype, classes: Callable[[], int]) -> Classifier:
        """The classifier on the device `meta`; its weights are not read."""
        ...


def build(
    name: str,
    classes: int,
    seed: int,
    *,
    normalisation: str = "none",
    weights: str = "default",
    remote_code: bool = False,
) -> Classifier:
    """The backbone called `name` with a head of `classes` rows.

    `normalisation` of images by name, see `vision.NORMALISATIONS`; `remote_code`: whether code that came with the
    model may run. Raises UnknownName, BadValue, or NotAvailable where the weights are missing or damaged.
    """
    _refuse_other_weights(weights)
    return _source(name, remote_code).build(classes, seed, normalisation=normalisation, weights=weights)


def outline(name: str, precision: torch.dtype, classes: Callable[[], int], remote_code: bool = False) -> Classifier:
    """The backbone called `name` without its weights, which are never read: all its tensors are on the device `meta`.

    `classes()`: the rows of its head, asked for where it gets one. Raises NotAvailable where not even its
    configuration can be had, and what `build` raises for an architecture that it refuses.
    """
    return _source(name, remote_code).outline(precision, classes)


def weights_sha256(name: str, weights: str = "default", remote_code: bool = False) -> str:
    """Hash of the backbone's weights, and of code that may run, for the protocol card; `random` for random ones.

    May download them.
    """
    _refuse_other_weights(weights)
    source = _source(name, remote_code)
    return "random" if weights == "random" else source.weights_sha256()


def without_path(name: str) -> str:
    """`name` as it goes into the protocol card: where the weights lie says nothing, their hash does.

    >>> without_path("timm:vit_tiny_patch16_224@/home/me/vit.safetensors")
    'timm:vit_tiny_patch16_224'
    """
    return name.partition("@")[0]


def weights_state(name: str) -> str:
    """Where the weights of a listed backbone are: `shipped`, `random`, `here` or `not here`; imports no torch."""
    entry = CONTENTS[name]
    if entry.module in ("clbench.backbones.tags", "clbench.backbones.causal"):
        return str(entry.load().state())
    return "shipped" if Path(__file__).with_name(f"{name}.safetensors").is_file() else "random"


def _refuse_other_weights(weights: str) -> None:
    if weights not in WEIGHTS:
        raise UnknownName("choice of weights", weights, WEIGHTS)


def _source(name: str, remote_code: bool = False) -> Source:
    plain, at, path = name.partition("@")
    if at and not path:
        raise BadValue(f"'{name}' names no file behind its '@'; write {plain}@PATH, or leave the '@' out.")
    family, colon, own = plain.partition(":")
    if colon:
        if family not in FAMILIES:
            raise UnknownName("family of backbones", family, FAMILIES)
        source: Source = FAMILIES[family].load()(own)
    elif plain in CONTENTS:
        source = CONTENTS[plain].load()
    else:
        raise UnknownName("backbone", plain, CONTENTS)
    if remote_code:
        trusting = getattr(source, "trusting", None)
        if trusting is None:
            raise BadValue(f"'{plain}' comes without code of its own; leave out --trust-remote-code.")
        source = trusting()
    return source.at(Path(path)) if path else source
