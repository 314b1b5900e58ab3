"""Vision transformers from timm, the embedded one among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.errors import BadValue, NotAvailable
from clbench.model import Classifier, Head, Prefixes, Site


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


def to_unit(images: Tensor) -> Tensor:
    """uint8 images to floats in [0, 1], the normalisation called `none`."""
    return images.float() / 255


class VisionClassifier(Classifier):
    """A timm vision transformer with a head over all classes of the stream."""

    def __init__(self, body: VisionTransformer, classes: int, seed: int) -> None:
        super().__init__()
        self.body: VisionTransformer = body
        self.width = int(body.embed_dim)
        self.classes = classes
        self.head: nn.Module = Head(self.width, classes, seed)

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
        embedded = self.body._pos_embed(self.body.patch_embed(to_unit(inputs)))
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
        """Mean of the prompts' output tokens; they stand behind the class token at its position (L2P)."""
        positions: Tensor = self.body.get_parameter("pos_embed")
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

    def sites(self, projections: Sequence[str]) -> tuple[Site, ...]:
        """The fused qkv layer of each block."""
        rows = {name: (i * self.width, (i + 1) * self.width) for i, name in enumerate("qkv")}
        wrong = [name for name in projections if name not in rows]
        if wrong or not projections:
            raise BadValue(f"no projection called '{(wrong or [''])[0]}' in a vision transformer; choose of q, k, v.")
        parts = {name: rows[name] for name in sorted(projections, key="qkv".index)}
        return tuple(Site(f"body.blocks.{i}.attn.qkv", i, parts) for i in range(len(self.body.blocks)))

    def feed_forwards(self) -> tuple[tuple[str, str], ...]:
        """The second norm and the MLP of each block."""
        return tuple((f"body.blocks.{i}.norm2", f"body.blocks.{i}.mlp") for i in range(len(self.body.blocks)))


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

    def build(self, classes: int, seed: int) -> VisionClassifier:
        """The classifier; refuses weights that are not the ones on the model card."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            body = self.architecture()
        if self.shipped:
            found = self.weights_sha256()
            expected = json.loads(self.card_path.read_text(encoding="utf-8"))["sha256"]
            if found != expected:
                raise NotAvailable(
                    f"'{self.weights_path}' has sha256 {found[:12]}…, its card says {expected[:12]}…; "
                    f"reinstall clbench or make both with 'clbench pretrain {self.name}'."
                )
            body.load_state_dict(load_file(self.weights_path))
        return VisionClassifier(body, classes, seed)


GLYPH_VIT = VisionSource("glyph-vit", glyph_vit, shipped=True)
TINY_VIT = VisionSource("tiny-vit", tiny_vit, shipped=False)
