from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from clbench import backbones
from clbench.backbones.causal import NANO_LM, HubSource, ShapeSource
from clbench.backbones.language import LanguageModel
from clbench.errors import BadValue, NotAvailable
from clbench.tiny import text_stream

Saved = Callable[..., Path]


def test_a_folder_of_transformers_is_a_backbone_by_any_name(saved: Saved) -> None:
    folder = saved()
    model = backbones.build(f"hf:mine@{folder}", 0, 0)
    assert isinstance(model, LanguageModel)
    assert (model.width, model.depth, model.classes) == (16, 2, model.body.config.vocab_size)
    (prompt, _), *_ = model.tokenizer.encode(["stance:A"])
    assert model.tokenizer.decode(prompt) == "stance:A"
    assert backbones.without_path(f"hf:mine@{folder}") == "hf:mine"


def test_the_hash_covers_every_weight_and_the_tokenizer_and_not_the_place(saved: Saved, tmp_path: Path) -> None:
    folder = saved(shard="4KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    whole = backbones.weights_sha256(f"hf:mine@{folder}")
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert backbones.weights_sha256(f"hf:mine@{copy}") == whole
    for name in (shards[-1].name, "tokenizer.json"):
        changed = shutil.copytree(folder, tmp_path / f"with another {name}")
        content = bytearray((changed / name).read_bytes())
        content[-3] ^= 1
        (changed / name).write_bytes(content)
        assert backbones.weights_sha256(f"hf:mine@{changed}") != whole


def test_weights_in_a_form_that_is_not_read_are_neither_hashed_nor_fetched(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(saved(), tmp_path / "mistral")
    whole = backbones.weights_sha256(f"hf:mine@{folder}")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert backbones.weights_sha256(f"hf:mine@{folder}") == whole
    asked: list[object] = []

    def snapshot(name: str, *, ignore_patterns: list[str], **further: object) -> str:
        asked.append(ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    HubSource("x", "some/name").folder()
    assert asked == [["consolidated*", "original/*"]]


def test_an_outline_needs_the_configuration_alone(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(saved() / "config.json", tmp_path)
    asked: list[object] = []

    def snapshot(name: str, *, allow_patterns: list[str], **further: object) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = HubSource("x", "some/name").outline(torch.bfloat16, lambda: 0)
    assert model.depth == 2
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert asked == [["config.json"]]


def test_loading_says_nothing(saved: Saved, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved()
    capfd.readouterr()  # what saving said
    backbones.build(f"hf:mine@{folder}", 0, 0)
    assert capfd.readouterr().err == ""


def test_shards_are_read_as_one_model(saved: Saved) -> None:
    whole, pieces = (backbones.build(f"hf:mine@{saved(shard=size)}", 0, 0) for size in ("1GB", "4KB"))
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in pieces.named_parameters()]


def test_random_weights_are_always_the_same_and_need_no_weights(saved: Saved) -> None:
    folder = saved()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    name = f"hf:mine@{folder}"
    assert backbones.weights_sha256(name, weights="random") == "random"
    torch.manual_seed(5)
    first = backbones.build(name, 0, 0, weights="random")
    drawn = torch.rand(1)
    second = backbones.build(name, 0, 1, weights="random")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # nobody's numbers are used up
    with pytest.raises(NotAvailable, match="save the model with safe_serialization"):
        backbones.weights_sha256(name)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    for ask in (backbones.weights_sha256, lambda name: backbones.build(name, 0, 0)):
        with pytest.raises(
            NotAvailable, match=r"no language model in '.*': it has no config.json; pass --backbone hf:m@"
        ):
            ask(f"hf:m@{tmp_path}")


@pytest.mark.parametrize("spoilt", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_torn_folder_is_one_sentence(saved: Saved, spoilt: str) -> None:
    folder = saved()
    (folder / spoilt).write_bytes((folder / spoilt).read_bytes()[:40])
    with pytest.raises(NotAvailable, match="holds no causal language model that can be read") as raised:
        backbones.build(f"hf:mine@{folder}", 0, 0)
    assert "\n" not in str(raised.value)


def test_a_folder_with_another_kind_of_model_is_refused(saved: Saved) -> None:
    folder = saved()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit", "architectures": []}))
    with pytest.raises(NotAvailable, match="holds no causal language model that can be read"):
        backbones.build(f"hf:mine@{folder}", 0, 0)


def test_without_the_internet_the_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, *, local_files_only: bool, **further: object) -> str:
        raise OSError("no cached folder" if local_files_only else "no route to host.\nmuch more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(NotAvailable) as raised:
        backbones.weights_sha256("llama-3.2-1b-instruct")
    assert str(raised.value) == (
        "'meta-llama/Llama-3.2-1B-Instruct' is neither in the Hugging Face cache nor to be had from the hub "
        "(no route to host); download it where the internet is there ('hf download meta-llama/Llama-3.2-1B-Instruct', "
        "after 'hf auth login' if it is gated), or pass --backbone llama-3.2-1b-instruct@FOLDER."
    )


@pytest.mark.parametrize("whole", [True, False])
def test_a_cache_with_the_configuration_alone_is_filled(
    monkeypatch: pytest.MonkeyPatch, saved: Saved, tmp_path: Path, whole: bool
) -> None:
    there, asked = saved(), []
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(there / "config.json", half)

    def snapshot(name: str, *, local_files_only: bool, **further: object) -> str:
        asked.append(local_files_only)
        return str(there if whole or not local_files_only else half)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert HubSource("x", "some/name").folder() == there
    assert asked == [True] if whole else [True, False]


def test_a_shape_takes_no_path_and_has_random_weights() -> None:
    with pytest.raises(BadValue, match="'nano-lm' takes no path; leave out '@there', or use hf:NAME@FOLDER"):
        backbones.build("nano-lm@there", 0, 0)
    assert backbones.weights_sha256("nano-lm") == "random"
    assert backbones.weights_state("nano-lm") == "random"


def test_missing_or_changed_shipped_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "mine.safetensors"
    source = ShapeSource("mine", NANO_LM.config, path)
    with pytest.raises(NotAvailable, match=r"weights of 'mine' are missing .* make them with 'clbench pretrain mine'"):
        source.build(0, 0, normalisation="none", weights="default")
    model = NANO_LM.build(0, 0, normalisation="none", weights="default")
    tensors = {name: value + 1 for name, value in model.body.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(NotAvailable, match="its card says 000000000000…"):
        source.build(0, 0, normalisation="none", weights="default")
    path.with_suffix(".json").write_text(json.dumps({"sha256": source.weights_sha256()}))
    found = source.build(0, 0, normalisation="none", weights="default").body.state_dict()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert torch.equal(found["lm_head.weight"], tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(("name", "weights"), [("llama-1b-shape", 1_235_814_400), ("llama-7b-shape", 6_738_415_616)])
def test_shapes_are_those_of_llama_32_1b_and_llama_2_7b(name: str, weights: int) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(backbones.CONTENTS[name].load().config())
    assert sum(parameter.numel() for parameter in body.parameters()) == weights


def test_nano_lm_reads_the_tiny_text() -> None:
    from clbench.recipe import Recipe

    model = backbones.build("nano-lm", 0, 0)
    task = model.read(text_stream(tasks=1), Recipe()).tasks[0]
    inputs, _ = task.train.batch(torch.tensor([0]), torch.device("cpu"))
    assert bytes(inputs[0, 0, 1:-1].tolist()).decode() == "".join(text_stream(tasks=1).tasks[0].train.rows[0])
