"""iBOT's checkpoints: written here in their published form, and held against their published forward pass."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from clbench import backbones
from clbench.backbones import ibot, vision
from clbench.backbones.tags import TaggedSource
from clbench.errors import BadValue, NotAvailable

WIDTH, DEPTH, HEADS, PATCH, SIZE = 12, 2, 3, 4, 8


def architecture() -> VisionTransformer:
    return VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        num_classes=0,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def weights(seed: int) -> dict[str, Tensor]:
    """A backbone's weights under iBOT's names."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + (SIZE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    layers = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH)}
    for i in range(DEPTH):
        for layer, shape in {**layers, "mlp.fc2": (WIDTH, 4 * WIDTH), "norm1": (WIDTH,), "norm2": (WIDTH,)}.items():
            shapes[f"blocks.{i}.{layer}.weight"] = shape
            shapes[f"blocks.{i}.{layer}.bias"] = shape[:1]
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def published_features(named: dict[str, Tensor], images: Tensor) -> Tensor:
    """The class token of a plain pre-norm ViT, as the paper's code computes it."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), named[f"{name}.weight"], named[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, named[f"{name}.weight"], named[f"{name}.bias"])

    patches = F.conv2d(images, named["patch_embed.proj.weight"], named["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([named["cls_token"].expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + named["pos_embed"]
    for i in range(DEPTH):
        block = f"blocks.{i}"
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def whole_state(teacher: dict[str, Tensor], student: dict[str, Tensor]) -> dict[str, object]:
    """What the training saves: the student inside its parallel wrapper, the teacher bare, and all the rest."""
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_v": torch.ones(2, 2)}
    return {
        "student": {
            **{f"module.backbone.{key}": value for key, value in student.items()},
            "module.backbone.masked_embed": torch.ones(1, WIDTH),
            **{f"module.{key}": value for key, value in head.items()},
        },
        "teacher": {**{f"backbone.{key}": value for key, value in teacher.items()}, **head},
        # Its schedules are arrays of NumPy, from which each step's number is taken.
        "optimizer": {
            "state": {0: {"step": 3}},
            "param_groups": [{"lr": np.linspace(0, 1, 5)[2], "weight_decay": np.linspace(0.04, 0.4, 5)[1]}],
        },
        "epoch": 80,
        "args": argparse.Namespace(arch="vit_base", patch_size=16),
        "ibot_loss": {"center": torch.ones(1, 2)},
    }


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> TaggedSource:
    monkeypatch.setitem(vision.OWN, "small", architecture)
    return TaggedSource("small-ibot", "small", form="ibot", advice="get it")


FORMS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "whole state": lambda named: whole_state(named, weights(9)),
    "student alone": lambda named: {"student": whole_state({}, named)["student"]},
    "backbone": lambda named: named,
    "named state_dict": lambda named: {"state_dict": named},
}


@pytest.mark.parametrize("form", FORMS)
def test_features_are_those_of_the_published_forward_pass(form: str, tmp_path: Path, source: TaggedSource) -> None:
    named = weights(4)
    torch.save(FORMS[form](named), tmp_path / "checkpoint.pth")
    model = source.at(tmp_path / "checkpoint.pth").build(2, 0).eval()
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.no_grad():
        found = model.features(images)
    torch.testing.assert_close(found, published_features(named, images / 255), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, named[key]) for key, value in model.body.state_dict().items())


def test_keys_that_are_missing_or_unknown_are_named(tmp_path: Path, source: TaggedSource) -> None:
    named = weights(4)
    del named["blocks.1.attn.qkv.bias"]
    torch.save(whole_state({**named, "blocks.0.gamma_1": torch.ones(WIDTH)}, named), tmp_path / "checkpoint.pth")
    with pytest.raises(NotAvailable, match=r"lacks blocks.1.attn.qkv.bias; has unknown blocks.0.gamma_1\."):
        source.at(tmp_path / "checkpoint.pth").build(2, 0)


def test_a_larger_backbone_is_named_by_its_shapes(tmp_path: Path) -> None:
    torch.save(weights(4), tmp_path / "checkpoint.pth")
    with pytest.raises(NotAvailable, match=r"has of another shape cls_token, pos_embed, patch_embed.proj.weight"):
        backbones.build(f"ibot:vit_tiny_patch16_224@{tmp_path / 'checkpoint.pth'}", 2, 0)


class Foreign:
    """What a pickle may not bring along."""


def test_files_that_hold_no_weights_are_refused(tmp_path: Path, source: TaggedSource) -> None:
    path = tmp_path / "checkpoint.pth"
    for content, words in (([1, 2], "holds a list; an iBOT checkpoint"), (Foreign(), "cannot be read as weights")):
        torch.save(content, path)
        with pytest.raises(NotAvailable, match=words):
            source.at(path).build(2, 0)
    for content in ({1: torch.ones(1)}, {"state_dict": [1]}):
        torch.save(content, path)
        with pytest.raises(NotAvailable, match="cannot be read as weights: it is no checkpoint"):
            source.at(path).build(2, 0)
    for raw in (b"half", bytes(range(256)) * 20, b"root:x:0:0::/root:/bin/sh\n" * 30, b"<html></html>"):
        path.write_bytes(raw)
        with pytest.raises(NotAvailable, match="cannot be read as weights") as caught:
            source.at(path).build(2, 0)
        assert "weights_only" not in str(caught.value)


def test_a_checkpoint_may_not_bring_code(tmp_path: Path, source: TaggedSource) -> None:
    state = whole_state(weights(4), weights(5))
    torch.save({**state, "more": Foreign()}, tmp_path / "checkpoint.pth")
    with pytest.raises(NotAvailable, match="holds other things than weights"):
        source.at(tmp_path / "checkpoint.pth").build(2, 0)


def test_names_of_the_family() -> None:
    with pytest.raises(NotAvailable, match=r"--backbone ibot:vit_tiny_patch16_224@PATH"):
        backbones.build("ibot:vit_tiny_patch16_224", 2, 0)
    with pytest.raises(BadValue, match="timm has no model called 'vitb'"):
        backbones.build("ibot:vitb", 2, 0)


def test_what_is_left_out_of_a_checkpoint() -> None:
    state = whole_state(weights(4), weights(5))
    assert ibot.backbone(state).keys() == weights(4).keys()
    assert torch.equal(ibot.backbone(state)["norm.bias"], weights(4)["norm.bias"])
    assert ibot.backbone({"mask_token": torch.ones(1), "norm.bias": torch.ones(1)}).keys() == {"norm.bias"}
