"""Vision backbones: shipped weights, their card, and the parts that adapters use."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor

from clbench import backbones, glyphs
from clbench.backbones import vision
from clbench.backbones.pretrain import GlyphRecipe, GlyphSampler, pretrain, pretrain_glyphs
from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.model import Prefixes


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


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("none", (0, 0, 0), (1, 1, 1)),
        ("0.5", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_normalisations_by_name(name: str, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    body = vision.cifar_vit().eval()
    model = vision.VisionClassifier(body, 2, 0, name).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = torch.stack([(images[:, c] / 255 - mean[c]) / deviation[c] for c in range(3)], dim=1)
    torch.testing.assert_close(model.normalised(images), expected)
    torch.testing.assert_close(model.features(images), body(expected))
    assert not {"mean", "deviation"} & set(model.state_dict())  # they are no weights


def test_other_normalisations_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"no normalisation called 'imagnet'. Did you mean 'imagenet'"):
        backbones.build("tiny-vit", 2, 0, normalisation="imagnet")
    with pytest.raises(BadValue, match=r"grey images takes the normalisation 'none'; got '0.5'"):
        backbones.build("tiny-vit", 2, 0, normalisation="0.5")


def test_images_of_another_size_are_refused() -> None:
    model = backbones.build("tiny-vit", 2, 0)
    with pytest.raises(BadValue, match=r"images of 1x8x8 .* got 3x8x8. Choose a transform that gives 8 pixels"):
        model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(BadValue, match="got 1x32x32"):
        model(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


def test_random_weights_in_place_of_shipped_ones() -> None:
    model = backbones.build("glyph-vit", 2, 0, weights="random")
    again = backbones.build("glyph-vit", 2, 1, weights="random")
    shipped = backbones.build("glyph-vit", 2, 0)
    assert torch.equal(model.body.pos_embed, again.body.pos_embed)
    assert not torch.equal(model.body.pos_embed, shipped.body.pos_embed)
    assert backbones.weights_sha256("glyph-vit", weights="random") == "random"
    assert backbones.weights_sha256("glyph-vit") == vision.GLYPH_VIT.weights_sha256()
    with pytest.raises(UnknownName, match="no choice of weights called 'rand'"):
        backbones.build("glyph-vit", 2, 0, weights="rand")


def test_a_backbone_with_its_own_weights_takes_no_file() -> None:
    with pytest.raises(BadValue, match=r"'glyph-vit' has its own weights; leave out '@mine.safetensors'"):
        backbones.weights_sha256("glyph-vit@mine.safetensors")


def test_prompts_need_a_class_token_with_a_position() -> None:
    for settings in ({"class_token": False, "global_pool": "avg"}, {"no_embed_class": True}):
        model = other(**settings)
        with pytest.raises(BadValue, match="class token, which this backbone lacks"):
            model.prompted(model.tokens(pictures(1)), torch.zeros(1, 2, 16))


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    backbones.build("tiny-vit", 2, 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["glyph-vit", "tiny-vit", "cifar-vit", "timm:vit_tiny_patch16_224@none"])
def test_an_outline_has_every_shape_and_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = backbones.build(name, 7, 0, weights="random")
    monkeypatch.setattr(Path, "open", lambda *words: pytest.fail("a file was read"))
    state = torch.get_rng_state()
    outlined = backbones.outline(name, torch.bfloat16, lambda: 7)
    assert torch.equal(torch.get_rng_state(), state)
    tensors = outlined.state_dict()
    assert {key: (t.shape, t.dtype) for key, t in tensors.items()} == {
        key: (t.shape, t.dtype) for key, t in built.state_dict().items()
    }
    assert {t.device.type for t in tensors.values()} == {"meta"}


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


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def other(**settings: object) -> vision.VisionClassifier:
    torch.manual_seed(0)
    body = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=0, embed_dim=16, depth=2, num_heads=2, **settings
    )
    return vision.VisionClassifier(body, 2, 0).eval()


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True, "init_values": 0.3}, {"global_pool": "avg"}])
def test_prefixes_of_no_length_change_nothing(settings: dict[str, object]) -> None:
    model = other(**settings)
    tokens, none = model.tokens(pictures(3)), torch.zeros(3, 0, 16)
    plain = model.pool(model.encode(tokens))
    assert torch.equal(model.prefixed(tokens, Prefixes()), plain)
    empty = Prefixes(tokens=none, attention={0: (none, none), 1: (none, none)})
    torch.testing.assert_close(model.prefixed(tokens, empty), plain, atol=1e-6, rtol=1e-6)


def test_attention_sees_the_prefixes_before_the_tokens() -> None:
    model = backbones.build("tiny-vit", 2, 0).eval().double()
    tokens, (key, value) = drawn(1, 3, 5, 16).double(), drawn(0, 2, 3, 5, 16).double()
    layer = model.body.blocks[1].attn
    seen: list[tuple[Tensor, Tensor]] = []
    layer.norm.register_forward_hook(lambda module, given, out: seen.append(out))
    layer.qkv.register_forward_hook(lambda module, given, out: seen.append(out))
    model.prefixed(tokens, Prefixes(attention={1: (key, value)}))
    qkv, found = seen
    for sample in range(3):
        for head in range(2):
            columns = slice(8 * head, 8 * head + 8)
            q, k, v = (qkv[sample, :, 16 * part : 16 * part + 16][:, columns] for part in range(3))
            keys, values = torch.cat([key[sample, :, columns], k]), torch.cat([value[sample, :, columns], v])
            expected = (q @ keys.T / 8**0.5).softmax(1) @ values
            torch.testing.assert_close(found[sample, :, columns], expected)
    assert found.shape == (3, 5, 16)  # as many tokens as without


def test_each_sample_has_its_own_prefix_alone_as_among_others() -> None:
    model = backbones.build("tiny-vit", 2, 0).eval()
    tokens, (key, value), prompt = model.tokens(pictures(4)), drawn(0, 2, 4, 3, 16), drawn(1, 4, 2, 16)
    together = model.prefixed(tokens, Prefixes(prompt, {0: (key, value), 1: (value, key)}))
    for i in range(4):
        one = slice(i, i + 1)
        alone = Prefixes(prompt[one], {0: (key[one], value[one]), 1: (value[one], key[one])})
        torch.testing.assert_close(model.prefixed(tokens[one], alone), together[one], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, model.prefixed(tokens, Prefixes(prompt.flip(0), {0: (key, value)})), atol=1e-3)


def test_tokens_stand_behind_the_class_token_and_are_not_read() -> None:
    for model in (backbones.build("tiny-vit", 2, 0).eval(), other(global_pool="avg")):
        tokens, prompt = model.tokens(pictures(3)), drawn(1, 3, 2, 16)
        outputs = model.encode(torch.cat([tokens[:, :1], prompt, tokens[:, 1:]], dim=1))
        expected = model.pool(outputs[:, [0, 3, 4, 5, 6]])
        torch.testing.assert_close(model.prefixed(tokens, Prefixes(prompt)), expected)


def test_prefixes_in_half_precision() -> None:
    model = backbones.build("tiny-vit", 2, 0).eval()
    tokens, (key, value) = model.tokens(pictures(2)), drawn(0, 2, 2, 3, 16).requires_grad_()
    prefixes = Prefixes(drawn(1, 2, 2, 16), {0: (key, value), 1: (value, key)})
    expected = model.prefixed(tokens, prefixes)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.prefixed(tokens, prefixes)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)
    gradient = torch.autograd.grad(found.sum(), key)[0]
    assert gradient.dtype == torch.float32
    assert gradient.any()


def test_blocks_of_another_kind_take_no_prefixes() -> None:
    model = other(block_fn=ParallelScalingBlock)
    pair = (torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))
    with pytest.raises(BadValue, match="got ParallelScalingBlock"):
        model.prefixed(model.tokens(pictures(1)), Prefixes(attention={0: pair}))
    assert (other().depth, other().prefix_width) == (2, 16)
