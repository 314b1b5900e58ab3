"""Backbones by tag: where their weights are found, what is said when they are not, and that all parts work."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clbench import backbones
from clbench.backbones import tags, vision
from clbench.backbones.tags import TaggedSource
from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.model import Prefixes

TAGGED = {name: entry.load() for name, entry in backbones.CONTENTS.items() if entry.module == tags.__name__}


def small() -> VisionTransformer:
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=3, num_classes=0, embed_dim=16, depth=2, num_heads=2, global_pool="token"
    )


def pictures(size: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> TaggedSource:
    monkeypatch.setitem(vision.OWN, "small", small)
    return TaggedSource("small-vit", "small", hub="timm/small", size_mb=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache and no internet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def written(path: Path) -> dict[str, Tensor]:
    """Weights that are not those of seed 0, put into a file."""
    torch.manual_seed(7)
    named = small().state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(named, path)
    return dict(named)


def put_into(cache: Path, repository: str) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    return folder / "snapshots" / "abc" / "model.safetensors"


# the table


def test_the_tags_are_timms() -> None:
    for name, tagged in TAGGED.items():
        assert tagged.name == name
        if tagged.architecture not in vision.OWN:
            assert f"timm {tagged.architecture}" in backbones.CONTENTS[name].line
        if tagged.hub:
            facts = get_pretrained_cfg(tagged.architecture)
            assert (tagged.hub, tagged.file) == (facts.hf_hub_id, facts.hf_hub_filename or "model.safetensors")
            assert f"{tagged.size_mb} MB" in backbones.CONTENTS[name].line
            made_with = next(key for key, pair in vision.NORMALISATIONS.items() if pair == (facts.mean, facts.std))
            assert f"made with {made_with}" in backbones.CONTENTS[name].line


def test_names_as_they_go_into_the_protocol_card(source: TaggedSource) -> None:
    assert backbones.without_path("vit-b16-in21k@~/x@y.pth") == "vit-b16-in21k"
    assert backbones.without_path("glyph-vit") == "glyph-vit"
    for name in ("vit-b16-in21k", "timm:vit_tiny_patch16_224", "ibot:vit_tiny_patch16_224"):
        found = backbones._source(f"{name}@~/weights.pth")
        assert isinstance(found, TaggedSource)
        assert (found.name, found.path) == (name, Path.home() / "weights.pth")


def test_states_of_weights(cache: Path) -> None:
    states = {name: backbones.weights_state(name) for name in backbones.CONTENTS if name in TAGGED or "vit" in name}
    assert states == dict.fromkeys(TAGGED, "not here") | {"glyph-vit": "shipped", "tiny-vit": "random"}
    written(put_into(cache, "timm/vit_base_patch16_224.dino"))
    assert backbones.weights_state("vit-b16-dino") == "here"


# where weights are found


def test_weights_are_taken_from_the_hugging_face_cache(cache: Path, source: TaggedSource) -> None:
    path = put_into(cache, "timm/small")
    named = written(path)
    model = source.build(3, 0).eval()
    assert all(torch.equal(value, named[key]) for key, value in model.body.state_dict().items())
    assert source.weights_sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    body = small().eval()
    body.load_state_dict(named)
    assert torch.equal(model.features(pictures(8)), body(pictures(8).float() / 255))


def test_a_given_file_comes_before_the_cache(cache: Path, tmp_path: Path, source: TaggedSource) -> None:
    written(put_into(cache, "timm/small"))
    save_file(small().state_dict(), tmp_path / "mine.safetensors")
    given = source.at(tmp_path / "mine.safetensors")
    assert given.weights_sha256() != source.weights_sha256()
    assert given.name == source.name
    with pytest.raises(NotAvailable, match=r"no file at '.*other.pth'; pass --backbone small-vit@PATH"):
        source.at(tmp_path / "other.pth").build(2, 0)


def test_weights_are_downloaded_where_they_are_not_cached(
    cache: Path, source: TaggedSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, file: str) -> str:
        assert (repository, file) == ("timm/small", "model.safetensors")
        written(cache / file)
        return str(cache / file)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert source.weights_file() == cache / "model.safetensors"


def test_what_is_said_without_weights(cache: Path, source: TaggedSource) -> None:
    with pytest.raises(NotAvailable) as caught:
        backbones.build("vit-b16-in21k", 2, 0)
    words = str(caught.value)
    assert f"the weights of 'vit-b16-in21k' are not in the Hugging Face cache '{cache}'" in words
    assert "resolve/main/model.safetensors (410 MB)" in words
    assert "--backbone vit-b16-in21k@PATH" in words
    with pytest.raises(NotAvailable, match=r"vitb_16_pt22k/checkpoint.pth, put .*--backbone vit-b16-ibot21k@PATH"):
        backbones.weights_sha256("vit-b16-ibot21k")
    with pytest.raises(NotAvailable, match=r"clbench pretrain cifar-vit.*--backbone cifar-vit@PATH"):
        backbones.build("cifar-vit", 2, 0)
    with pytest.raises(NotAvailable, match=r"timm/test_vit.r160_in1k.*--backbone timm:test_vit@PATH"):
        backbones.build("timm:test_vit", 2, 0)


def test_offline_the_answer_comes_at_once_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom clbench import backbones\nfrom clbench.errors import NotAvailable\n"
        "try:\n    backbones.weights_sha256('vit-b16-dino')\nexcept NotAvailable as error:\n    print(error)\n"
        "print(backbones.weights_state('vit-b16-dino'), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    words, state = done.stdout.splitlines()
    assert f"cache '{tmp_path / 'hub'}'" in words
    assert "OfflineModeIsEnabled" in words
    assert state == "not here False"


def test_random_weights_need_no_file(cache: Path, source: TaggedSource) -> None:
    first, second = (source.build(2, seed, weights="random").body.state_dict() for seed in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert backbones.weights_sha256("vit-b16-in21k", weights="random") == "random"


def test_a_file_is_hashed_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "weights", []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(name) or digest(file, name))
    for content in (b"one", b"one", b"other"):
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
        assert tags.file_sha256(path) == hashlib.sha256(content).hexdigest()
    assert len(read) == 2


# what a file may hold


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped"])
def test_local_models_of_timm(tmp_path: Path, form: str) -> None:
    torch.manual_seed(3)
    body = timm.create_model("test_vit", num_classes=5).eval()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(body.state_dict(), path)
    else:
        torch.save({"state_dict": body.state_dict()} if form == "wrapped" else body.state_dict(), path)
    model = backbones.build(f"timm:test_vit@{path}", 2, 0, normalisation="0.5").eval()
    expected = body.forward_head(body.forward_features(pictures(160).float() / 127.5 - 1), pre_logits=True)
    torch.testing.assert_close(model.features(pictures(160)), expected)
    assert backbones.weights_sha256(f"timm:test_vit@{path}") == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_small_vit_for_cifar(tmp_path: Path) -> None:
    torch.manual_seed(3)
    body = vision.cifar_vit().eval()
    assert sum(weight.numel() for weight in body.parameters()) <= 3_000_000
    save_file(body.state_dict(), tmp_path / "w.safetensors")
    model = backbones.build(f"cifar-vit@{tmp_path / 'w.safetensors'}", 2, 0).eval()
    assert torch.equal(model.features(pictures(32)), body(pictures(32).float() / 255))


def test_weights_in_googles_form(tmp_path: Path, source: TaggedSource) -> None:
    named = {key: value.numpy() for key, value in written(tmp_path / "w.safetensors").items()}
    arrays = {
        "embedding/kernel": named["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": named["patch_embed.proj.bias"],
        "cls": named["cls_token"],
        "Transformer/posembed_input/pos_embedding": named["pos_embed"],
        "Transformer/encoder_norm/scale": named["norm.weight"],
        "Transformer/encoder_norm/bias": named["norm.bias"],
    }
    for i in range(2):
        here, there = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{there}/MultiHeadDotProductAttention_1"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            arrays[f"{there}/LayerNorm_{number}/scale"] = named[f"{here}.{norm}.weight"]
            arrays[f"{there}/LayerNorm_{number}/bias"] = named[f"{here}.{norm}.bias"]
        for part, word in enumerate(("query", "key", "value")):
            rows = slice(16 * part, 16 * part + 16)
            arrays[f"{attention}/{word}/kernel"] = named[f"{here}.attn.qkv.weight"][rows].T.reshape(16, 2, 8)
            arrays[f"{attention}/{word}/bias"] = named[f"{here}.attn.qkv.bias"][rows].reshape(2, 8)
        arrays[f"{attention}/out/kernel"] = named[f"{here}.attn.proj.weight"].T.reshape(2, 8, 16)
        arrays[f"{attention}/out/bias"] = named[f"{here}.attn.proj.bias"]
        for number in (0, 1):
            arrays[f"{there}/MlpBlock_3/Dense_{number}/kernel"] = named[f"{here}.mlp.fc{number + 1}.weight"].T
            arrays[f"{there}/MlpBlock_3/Dense_{number}/bias"] = named[f"{here}.mlp.fc{number + 1}.bias"]
    np.savez(tmp_path / "w.npz", **arrays)
    found = source.at(tmp_path / "w.npz").build(2, 0).body.state_dict()
    assert all(np.array_equal(value.numpy(), named[key]) for key, value in found.items())
    del arrays["cls"]
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(NotAvailable, match=r"cannot be read as weights: .*cls"):
        source.at(tmp_path / "w.npz").build(2, 0)


def test_weights_that_do_not_fit_are_named(tmp_path: Path, source: TaggedSource) -> None:
    named = written(tmp_path / "w.safetensors")
    del named["norm.bias"]
    save_file(
        {**named, "norm.weight": torch.ones(4), "head.weight": torch.ones(2, 16), "extra": torch.ones(1)},
        tmp_path / "w.safetensors",
    )
    with pytest.raises(NotAvailable) as caught:
        source.at(tmp_path / "w.safetensors").build(2, 0)
    assert "lacks norm.bias; has unknown extra; has of another shape norm.weight." in str(caught.value)
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(NotAvailable, match=r"lacks cls_token, pos_embed, [a-z_.]+, [a-z_.]+ and \d+ more; has unknown"):
        source.at(tmp_path / "w.safetensors").build(2, 0)


class Foreign:
    """What a pickle may not bring along."""


def test_torn_and_foreign_files_are_refused(tmp_path: Path, source: TaggedSource) -> None:
    for name in ("w.safetensors", "w.pth", "w.npz"):
        (tmp_path / name).write_bytes(b"half of a file")
        with pytest.raises(NotAvailable, match=f"{name}' cannot be read as weights: "):
            source.at(tmp_path / name).build(2, 0)
    torch.save({"state_dict": {"norm.bias": torch.ones(1)}, "by": Foreign()}, tmp_path / "w.pth")
    with pytest.raises(NotAvailable, match="cannot be read as weights: it holds other things than weights"):
        source.at(tmp_path / "w.pth").build(2, 0)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), {1: torch.ones(1)}, {"state_dict": [1]}, 7])
def test_files_of_something_else_are_refused(content: object, tmp_path: Path, source: TaggedSource) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(NotAvailable, match=r"w\.pth' (cannot be read as weights|lacks)"):
        source.at(tmp_path / "w.pth").build(2, 0)


@pytest.mark.parametrize(
    "raw", [bytes(range(256)) * 20, b"<!doctype html><html></html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w.safetensors"])
def test_raw_bytes_are_refused(raw: bytes, name: str, tmp_path: Path, source: TaggedSource) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(NotAvailable, match=f"{name}' cannot be read as weights") as caught:
        source.at(tmp_path / name).build(2, 0)
    assert "weights_only" not in str(caught.value)


# names


def test_names_that_timm_lacks() -> None:
    with pytest.raises(BadValue, match=r"timm has no model called 'vit_bas_patch16_224'. Did you mean .*vit_base_"):
        backbones.build("timm:vit_bas_patch16_224", 2, 0)
    with pytest.raises(UnknownName, match=r"no tag of timm's vit_tiny_patch16_224 called 'in21k'.*augreg_in21k"):
        backbones.build("timm:vit_tiny_patch16_224.in21k", 2, 0)
    with pytest.raises(UnknownName, match=r"no family of backbones called 'tim'. Did you mean 'timm'"):
        backbones.build("tim:vit_tiny_patch16_224", 2, 0)
    with pytest.raises(BadValue, match="timm's ByobNet; a backbone is a VisionTransformer"):
        backbones.weights_sha256("timm:test_byobnet")  # before its weights are asked for
    with pytest.raises(BadValue, match="names no file behind its '@'; write vit-b16-in21k@PATH"):
        backbones.weights_sha256("vit-b16-in21k@")


# what methods ask of a backbone


@pytest.mark.parametrize(
    ("name", "size"), [("cifar-vit", 32), ("vit-ti16-in21k", 224), ("timm:deit_tiny_patch16_224", 224)]
)
def test_every_part_that_methods_use(name: str, size: int) -> None:
    model = backbones.build(name, 3, 0, normalisation="imagenet", weights="random").eval()
    images, width, depth = pictures(size), model.width, model.depth
    assert model.body.blocks[0].attn.fused_attn
    with torch.no_grad():
        tokens = model.tokens(images)
        plain = model.features(images)
        torch.testing.assert_close(plain, model.body(model.normalised(images)))
        key, value = torch.randn(2, 2, 4, width, generator=torch.Generator().manual_seed(0))
        prefixed = model.prefixed(tokens, Prefixes(attention={0: (key, value), depth - 1: (value, key)}))
        prompted = model.prompted(tokens, key)
        torch.testing.assert_close(model.prefixed(tokens, Prefixes()), plain)
    for features in (prefixed, prompted):
        assert features.shape == plain.shape == (2, width)
        assert not torch.allclose(features, plain, atol=1e-4)
    for site in model.sites(("q", "v")):
        assert model.get_submodule(site.path).out_features == 3 * width
        assert dict(site.parts) == {"q": (0, width), "v": (2 * width, 3 * width)}
    assert all(model.get_submodule(norm) and model.get_submodule(mlp) for norm, mlp in model.feed_forwards())
    assert len(model.feed_forwards()) == len(model.sites(("q",))) == depth


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-b16-in21k", "vit-b16-in1k", "vit-b16-dino", "vit-b16-ibot21k"])
def test_vit_b16_at_224(name: str) -> None:
    model = backbones.build(name, 100, 0, weights="random").eval()
    with torch.no_grad():
        logits = model(pictures(224))
    assert (logits.shape, logits.dtype) == ((2, 100), torch.float32)
    assert logits.isfinite().all()
    assert sum(weight.numel() for weight in model.body.parameters()) == 85_798_656
