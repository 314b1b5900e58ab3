"""Vision backbones: shipped weights, their card, and the parts that adapters use."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clbench import backbones, glyphs
from clbench.backbones import vision
from clbench.backbones.pretrain import GlyphRecipe, GlyphSampler, pretrain, pretrain_glyphs
from clbench.errors import BadValue, NotAvailable, UnknownName


def test_the_shipped_weights_are_the_ones_on_the_card() -> None:
    source = vision.GLYPH_VIT
    card = json.loads(source.card_path.read_text(encoding="utf-8"))
    assert source.weights_path.stat().st_size <= 6_000_000
    assert card["sha256"] == hashlib.sha256(source.weights_path.read_bytes()).hexdigest() == source.weights_sha256()
    assert card["accuracy"] >= 0.95
    assert card["minutes"] > 0
    assert sum(stage["steps"] for stage in card["recipe"]["stages"]) == card["steps"]


def test_the_card_names_the_characters_that_the_filter_gives_today() -> None:
    card = json.loads(vision.GLYPH_VIT.card_path.read_text(encoding="utf-8"))
    assert card["characters"] == "".join(glyphs.pretraining_characters())
    assert card["classes"] == len(card["characters"])
    assert not set(card["characters"]) & {*glyphs.DIGITS, *"".join(glyphs.DOWNSTREAM.values())}


def test_weights_that_are_missing_or_not_the_cards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    monkeypatch.setattr(vision.VisionSource, "weights_path", property(lambda self: folder / f"{self.name}.safetensors"))
    with pytest.raises(NotAvailable, match="clbench pretrain glyph-vit"):
        backbones.build("glyph-vit", 2, 0)
    (folder / "glyph-vit.safetensors").write_bytes(b"other")
    with pytest.raises(NotAvailable, match="its card says"):
        backbones.build("glyph-vit", 2, 0)


def test_an_unknown_backbone_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'glyph-vit'"):
        backbones.build("glyf-vit", 2, 0)


def test_the_classifier_equals_the_timm_model_with_the_same_head() -> None:
    model = backbones.build("tiny-vit", 3, 0).eval()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    features = model.body(images.float() / 255)
    assert torch.equal(model.features(images), features)
    assert torch.equal(model(images), torch.nn.functional.linear(features, model.head.weight, model.head.bias))


def test_head_rows_do_not_depend_on_the_number_of_classes() -> None:
    few, many = (backbones.build("tiny-vit", classes, 0).head for classes in (2, 9))
    assert torch.equal(few.weight, many.weight[:2])
    assert not torch.equal(few.weight, backbones.build("tiny-vit", 2, 1).head.weight)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    backbones.build("tiny-vit", 2, 0)
    assert torch.equal(torch.rand(3), expected)


def test_sites_name_the_rows_of_each_projection() -> None:
    model = backbones.build("tiny-vit", 2, 0)
    sites = model.sites(("v", "q"))
    assert [site.path for site in sites] == ["body.blocks.0.attn.qkv", "body.blocks.1.attn.qkv"]
    assert dict(sites[0].parts) == {"q": (0, 16), "v": (32, 48)}
    with pytest.raises(BadValue, match="'o'"):
        model.sites(("o",))


def test_the_sampler_draws_classes_uniformly_and_deterministically() -> None:
    characters = ("A", "→", "B")
    draw = GlyphSampler(characters, seed=0)
    _, labels = draw(3000, glyphs.Jitter())
    assert torch.bincount(labels, minlength=3).min() > 900
    images, first = GlyphSampler(characters, seed=1)(4, glyphs.Jitter(noise=0.1))
    again, second = GlyphSampler(characters, seed=1)(4, glyphs.Jitter(noise=0.1))
    assert torch.equal(images, again)
    assert torch.equal(first, second)


def test_the_recipe_warms_up_decays_to_zero_and_changes_its_jitter() -> None:
    stage = replace(GlyphRecipe().stages[0], steps=1000, warmup_steps=100)
    assert stage.rate_at(49) == pytest.approx(0.5)
    assert stage.rate_at(99) == pytest.approx(1)
    assert stage.rate_at(999) < 1e-5
    phases = [stage.jitter_at(step) for step in (399, 400, 700, 999)]
    assert phases == [stage.phases[place].jitter for place in (0, 1, 2, 2)]


@pytest.mark.slow
def test_pretraining_learns_and_writes_weights_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = glyphs.pretraining_characters()[::300]
    monkeypatch.setattr(glyphs, "pretraining_characters", lambda: few)
    recipe = GlyphRecipe(batch_size=32, stages=(replace(GlyphRecipe().stages[0], steps=200, warmup_steps=20),))
    monkeypatch.setattr("clbench.backbones.pretrain.GlyphRecipe", lambda: recipe)
    lines: list[str] = []
    path = pretrain("glyph-vit", tmp_path, lines.append)
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["accuracy"] > 2 / len(few)
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert any("accuracy" in line for line in lines)
    with pytest.raises(UnknownName):
        pretrain("tiny-vit", tmp_path, lines.append)


def test_pretraining_returns_the_facts_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "pretraining_characters", lambda: ("A", "→"))
    body = vision.tiny_vit()
    recipe = GlyphRecipe(batch_size=8, stages=(replace(GlyphRecipe().stages[0], steps=3, warmup_steps=1),) * 2)
    small = lambda images: torch.nn.functional.avg_pool2d(images.float() / 255, 4)  # noqa: E731
    facts = pretrain_glyphs(body, 16, recipe, small, lambda line: None)
    assert facts["classes"] == 2
    assert facts["characters"] == "A→"
    assert facts["steps"] == 6
    assert 0 <= facts["accuracy"] <= 1
