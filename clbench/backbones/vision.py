"""Vision transformers from timm, the embedded one among them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention
from timm.models import create_model, load_state_dict
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.model import Extent, Head, ImageClassifier, Prefixes, Site
from clbench.recipe import Recipe

NORMALISATIONS = {
    "none": None,
    "0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}
"""Mean and deviation of each colour of images in [0, 1]; images are shifted and divided by them."""
MOST_KEYS = 4
"""How many weights of a kind an error may list."""


def glyph_vit() -> VisionTransformer:
    """The architecture of `glyph-vit`: 32x32 grey images, patch 8, width 128, 6 blocks, 4 heads."""
    return VisionTransformer(
        img_size=32, patch_size=8, in_chans=1, num_classes=0, embed_dim=128, depth=6, num_heads=4, global_pool="token"
    )


def tiny_vit() -> VisionTransformer:
    """A ViT for tests: 8x8 grey images, patch 4, width 16, 2 blocks, 2 heads."""
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=0, embed_dim=16, depth=2, num_heads=2, global_pool="token"
    )


def cifar_vit() -> VisionTransformer:
    """The architecture of `cifar-vit`: 32x32 colour images, patch 4, width 128, 6 blocks, 4 heads; 1.2 M weights."""
    return VisionTransformer(
        img_size=32, patch_size=4, in_chans=3, num_classes=0, embed_dim=128, depth=6, num_heads=4, global_pool="token"
    )


OWN: dict[str, Callable[[], VisionTransformer]] = {"cifar-vit": cifar_vit}
"""Architectures that are not timm's."""


def new_body(architecture: str) -> VisionTransformer:
    """One of `OWN`, or of timm by its name, with random weights drawn with seed 0.

    Raises BadValue for what is not a vision transformer of plain blocks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = OWN[architecture]() if architecture in OWN else create_model(architecture, num_classes=0)
    if not isinstance(body, VisionTransformer):
        raise BadValue(f"'{architecture}' is timm's {type(body).__name__}; a backbone is a VisionTransformer of timm.")
    for block in body.blocks:
        _with_attention(block)
    return body


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what the readers of weights raise at a torn or foreign file into NotAvailable."""
    try:
        yield
    except NotAvailable:
        raise
    except Exception as error:  # a foreign file may raise anything
        words = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # advice to let it run code
            words = "it holds other things than weights, or is no checkpoint (a web page, a pointer to a file?)"
        elif not isinstance(error, (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError)):
            words = f"it is no checkpoint ({type(error).__name__}: {words})"
        raise NotAvailable(f"'{path}' cannot be read as weights: {words}. Fetch it again, or pass another.") from error


def load(body: VisionTransformer, path: Path) -> None:
    """Put the weights at `path` into `body`: `.safetensors`, a checkpoint of timm, or Google's `.npz`.

    A classification head is left out; positions of another grid are resampled, as timm does. Raises NotAvailable
    where the file cannot be read or holds other weights.
    """
    with readable(path):
        if path.suffix == ".npz":
            body.load_pretrained(str(path))
            return
        named = checkpoint_filter_fn(load_state_dict(str(path), weights_only=True), body)
        named = {key: value for key, value in named.items() if not key.startswith("head.")}
    fill(body, named, path)


def fill(body: VisionTransformer, named: Mapping[str, Tensor], path: Path) -> None:
    """Put `named` weights, read from `path`, into `body`; all of them fit or NotAvailable names those that do not."""
    expected = body.state_dict()
    named = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    wrong = {
        "lacks": [key for key in expected if key not in named],
        "has unknown": [key for key in named if key not in expected],
        "has of another shape": [k for k in expected if k in named and named[k].shape != expected[k].shape],
    }
    found = [f"{kind} {_some(keys)}" for kind, keys in wrong.items() if keys]
    if found:
        raise NotAvailable(f"'{path}' {'; '.join(found)}. Pass weights of this architecture.")
    body.load_state_dict(dict(named))


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    return ", ".join(keys[:MOST_KEYS]) + more


def to_unit(images: Tensor) -> Tensor:
    """uint8 images to floats in [0, 1], the normalisation called `none`."""
    return images.float() / 255


class VisionClassifier(ImageClassifier):
    """A timm vision transformer with a head over all classes of the stream.

    Images are uint8 `[batch, channels, height, width]`. Raises UnknownName for a normalisation not in
    `NORMALISATIONS`, BadValue for another than `none` with a backbone of grey images.
    """

    mean: Tensor | None
    deviation: Tensor | None

    def __init__(self, body: VisionTransformer, classes: int, seed: int, normalisation: str = "none") -> None:
        super().__init__()
        self.body: VisionTransformer = body
        self.image_shape: tuple[int, ...] = (body.in_chans, *body.patch_embed.img_size)
        self._normalise_by(normalisation)
        self.width = int(body.embed_dim)
        self.classes = classes
        self.head: nn.Module = Head(self.width, classes, seed)

    def _normalise_by(self, name: str) -> None:
        if name not in NORMALISATIONS:
            raise UnknownName("normalisation", name, NORMALISATIONS)
        pair = NORMALISATIONS[name]
        if pair is not None and self.image_shape[0] != 3:
            raise BadValue(f"a backbone of grey images takes the normalisation 'none'; got '{name}'.")
        for part, numbers in zip(("mean", "deviation"), pair or (None, None), strict=True):
            value = None if numbers is None else torch.tensor(numbers).view(1, 3, 1, 1)
            self.register_buffer(part, value, persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """Floats as the first layer takes them. Raises BadValue for images of another size."""
        if tuple(images.shape[1:]) != self.image_shape:
            wanted, got = ("x".join(map(str, shape)) for shape in (self.image_shape, images.shape[1:]))
            raise BadValue(
                f"the backbone takes images of {wanted} (channels, height, width); got {got}. "
                f"Choose a transform that gives {self.image_shape[-1]} pixels, or another backbone."
            )
        unit = to_unit(images)
        return unit if self.mean is None or self.deviation is None else (unit - self.mean) / self.deviation

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.body.blocks)

    @property
    def prefix_width(self) -> int:
        """Size of a key or value, all heads together."""
        return int(_with_attention(self.body.blocks[0])[1].attn_dim)

    def tokens(self, inputs: Tensor) -> Tensor:
        """Patches, class token and positions `[batch, 1 + patches, width]` of uint8 images."""
        embedded = self.body._pos_embed(self.body.patch_embed(self.normalised(inputs)))
        tokens: Tensor = self.body.norm_pre(self.body.patch_drop(embedded))
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """Output tokens after the last block and its norm."""
        encoded: Tensor = self.body.norm(self.body.blocks(tokens))
        return encoded

    def pool(self, encoded: Tensor) -> Tensor:
        """The class token, or the mean over patches where the backbone was trained so."""
        features: Tensor = self.body.forward_head(encoded, pre_logits=True)
        return features

    def prompted(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """Mean of the prompts' output tokens; they stand behind the class token at its position (L2P).

        Raises BadValue for a backbone whose class token is missing or has no position.
        """
        if not self.body.has_class_token or self.body.no_embed_class or self.body.pos_embed is None:
            raise BadValue("prompts stand at the position of the class token, which this backbone lacks; take another.")
        positions: Tensor = self.body.pos_embed
        joined = torch.cat([tokens[:, :1], prompts + positions[:, :1], tokens[:, 1:]], dim=1)
        return self.encode(joined)[:, 1 : 1 + prompts.shape[1]].mean(dim=1)

    def prefixed(self, tokens: Tensor, prefixes: Prefixes) -> Tensor:
        """Features when tokens stand behind the class token, without a position, and attention has prefixes."""
        x, first, count = tokens, int(self.body.num_prefix_tokens), 0
        if prefixes.tokens is not None:
            count = prefixes.tokens.shape[1]
            x = torch.cat([x[:, :first], prefixes.tokens.to(x.dtype), x[:, first:]], dim=1)
        for index, block in enumerate(self.body.blocks):
            pair = prefixes.attention.get(index)
            x = block(x) if pair is None else _through(block, x, *pair)
        x = self.body.norm(x)
        if count:
            x = torch.cat([x[:, :first], x[:, first + count :]], dim=1)
        return self.pool(x)

    def extent(self, recipe: Recipe, samples: int) -> Extent:
        """Images of the one size that the backbone takes."""
        inputs = torch.zeros(samples, *self.image_shape, dtype=torch.uint8)
        return Extent(inputs=inputs, targets=torch.zeros(samples, dtype=torch.int64))

    def sites(self, projections: Sequence[str]) -> tuple[Site, ...]:
        """The fused qkv layer of each block."""
        size = self.prefix_width
        rows = {name: (i * size, (i + 1) * size) for i, name in enumerate("qkv")}
        wrong = [name for name in projections if name not in rows]
        if wrong or not projections:
            raise BadValue(f"no projection called '{(wrong or [''])[0]}' in a vision transformer; choose of q, k, v.")
        parts = {name: rows[name] for name in sorted(projections, key="qkv".index)}
        return tuple(Site(f"body.blocks.{i}.attn.qkv", i, parts) for i in range(len(self.body.blocks)))

    def feed_forwards(self) -> tuple[tuple[str, str], ...]:
        """The second norm and the MLP of each block."""
        return tuple((f"body.blocks.{i}.norm2", f"body.blocks.{i}.mlp") for i in range(len(self.body.blocks)))


def outlined(architecture: Callable[[], VisionTransformer], classes: int) -> VisionClassifier:
    """The classifier on the device `meta`: shapes without numbers."""
    with torch.device("meta"):
        body = architecture()
    return VisionClassifier(body, classes, 0).to("meta")


def _with_attention(block: nn.Module) -> tuple[Block, Attention]:
    """A block that is built as `_through` takes it, and its attention. Raises BadValue for another kind."""
    attention = getattr(block, "attn", None)
    if not isinstance(block, Block) or not isinstance(attention, Attention):
        raise BadValue(
            f"prefixes need blocks of timm's kinds Block and Attention; got {type(block).__name__} with "
            f"{type(attention).__name__}. Take another backbone, or a method without prefixes."
        )
    return block, attention


def _through(some: nn.Module, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A block whose attention sees `key` and `value` `[batch, length, width]` before the tokens' own."""
    block, attention = _with_attention(some)
    x = x + block.drop_path1(block.ls1(_attend(attention, block.norm1(x), key, value)))
    out: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return out


def _attend(layer: Attention, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention's own forward pass with prefixes; they come behind any norm of keys. As many tokens as in `x`."""
    batch, count, _ = x.shape
    heads = (layer.num_heads, layer.head_dim)
    q, k, v = layer.qkv(x).reshape(batch, count, 3, *heads).permute(2, 0, 3, 1, 4)
    q, k = layer.q_norm(q), layer.k_norm(k)
    # Cast by hand: under autocast a joint tensor would take the wider type of its two parts.
    keys = torch.cat([key.to(k.dtype).unflatten(-1, heads).transpose(1, 2), k], dim=2)
    values = torch.cat([value.to(v.dtype).unflatten(-1, heads).transpose(1, 2), v], dim=2)
    drop = layer.attn_drop.p if layer.training else 0.0
    out = F.scaled_dot_product_attention(q, keys, values, dropout_p=drop)
    out = layer.norm(out.transpose(1, 2).reshape(batch, count, layer.attn_dim))
    if layer.gate is not None:
        out = out * layer.gate(x).sigmoid()
    projected: Tensor = layer.proj_drop(layer.proj(out))
    return projected


@dataclass(frozen=True)
class VisionSource:
    """Where a vision backbone's architecture and weights come from."""

    name: str
    architecture: Callable[[], VisionTransformer]
    shipped: bool
    """Whether its weights lie beside this module; otherwise they are random, drawn with seed 0."""

    @property
    def weights_path(self) -> Path:
        """The shipped weights."""
        return Path(__file__).with_name(f"{self.name}.safetensors")

    @property
    def card_path(self) -> Path:
        """The shipped model card."""
        return Path(__file__).with_name(f"{self.name}.json")

    def weights_sha256(self) -> str:
        """Hash of the weights file as it is on disk; `random` where none is shipped."""
        if not self.shipped:
            return "random"
        if not self.weights_path.exists():
            raise NotAvailable(
                f"the weights of '{self.name}' are missing at '{self.weights_path}'; "
                f"make them with 'clbench pretrain {self.name}'."
            )
        return hashlib.sha256(self.weights_path.read_bytes()).hexdigest()

    def at(self, path: Path) -> NoReturn:
        """Raises BadValue: a file of weights was given."""
        raise BadValue(f"'{self.name}' has its own weights; leave out '@{path}'.")

    def outline(self, precision: torch.dtype, classes: Callable[[], int]) -> VisionClassifier:
        """The classifier of this shape; whatever the passes' precision, its weights are float32."""
        return outlined(self.architecture, classes())

    def build(
        self, classes: int, seed: int, *, normalisation: str = "none", weights: str = "default"
    ) -> VisionClassifier:
        """The classifier; refuses weights that are not the ones on the model card."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            body = self.architecture()
        if self.shipped and weights != "random":
            found = self.weights_sha256()
            expected = json.loads(self.card_path.read_text(encoding="utf-8"))["sha256"]
            if found != expected:
                raise NotAvailable(
                    f"'{self.weights_path}' has sha256 {found[:12]}…, its card says {expected[:12]}…; "
                    f"reinstall clbench or make both with 'clbench pretrain {self.name}'."
                )
            body.load_state_dict(load_file(self.weights_path))
        return VisionClassifier(body, classes, seed, normalisation)


GLYPH_VIT = VisionSource("glyph-vit", glyph_vit, shipped=True)
TINY_VIT = VisionSource("tiny-vit", tiny_vit, shipped=False)
