"""The embedded language model: its bytes, the text it was pre-trained on, its recipe and its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from clbench import words
from clbench.backbones import pretrain_lm, tiny_text
from clbench.backbones.pretrain import pretrain
from clbench.backbones.pretrain_lm import TinyLmRecipe, corpus_sha256, held_out_loss, packed, windows
from clbench.backbones.tiny_lm import CONTEXT_BYTES, WEIGHTS_PATH, ByteTokenizer, tiny_lm_config
from clbench.suites import _trace_tiny

CARD = json.loads(WEIGHTS_PATH.with_suffix(".json").read_text(encoding="utf-8"))


def load(path: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM(tiny_lm_config())
    found = model.load_state_dict(load_file(path), strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["lm_head.weight"], [])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model.eval()


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_a_text_survives_its_bytes(text: str) -> None:
    tokens = ByteTokenizer().encode(text)
    assert tokens == list(text.encode())
    assert ByteTokenizer().decode([257, *tokens, 258, 256]) == text


def test_umlauts_are_two_bytes_and_half_of_one_is_no_error() -> None:
    assert ByteTokenizer().encode("für ß") == [102, 195, 188, 114, 32, 195, 159]
    assert ByteTokenizer().decode([102, 195]) == "f\ufffd"


def test_the_same_seed_gives_the_same_documents_everywhere() -> None:
    first = list(itertools.islice(tiny_text.documents(0), 500))
    assert first == list(itertools.islice(tiny_text.documents(0), 500))
    assert first != list(itertools.islice(tiny_text.documents(1), 500))
    assert hashlib.sha256("\0".join(first).encode()).hexdigest()[:16] == "88d4297decd7c94a"
    assert max(len(document.encode()) for document in first) <= 250


def test_a_corpus_is_as_large_as_asked_for() -> None:
    documents = tiny_text.corpus(10_000, 0)
    assert 10_000 <= sum(len(document.encode()) for document in documents) < 10_250
    assert tiny_text.corpus(20_000, 0)[: len(documents)] == documents


def test_the_corpus_knows_the_words_of_the_tasks() -> None:
    text = "\n".join(tiny_text.corpus(500_000, 0))
    verbs = [verb for some in words.ATTITUDES.values() for verb in some]
    german = [*words.QUALITIES, *words.DEEDS, *words.MOMENTS.values(), *words.GOODS]
    pools = (words.NAMES, words.PLACES, words.THINGS, words.MONEY, words.GAINS, words.LOSSES, verbs, german)
    assert [word for pool in pools for word in pool if word not in text] == []


def leaked(text: str) -> list[str]:
    """What of the suite stands in `text`: bodies of test prompts, first lines of instructions, cues."""
    found = []
    for task in _trace_tiny.read():
        signs = {task.prefix.split("\n")[0], task.cue.strip()}
        bodies = {row.prompt.removeprefix(task.prefix).removesuffix(task.cue) for row in task.test}
        assert len(bodies) == len(task.test)
        found += [sign for sign in signs | bodies if sign in text]
    return found


def test_a_leak_would_be_seen() -> None:
    row = _trace_tiny.read()[0].test[0]
    assert len(leaked(f"So it was. {row.prompt}{row.answer}")) == 3


def test_no_question_of_the_suite_stands_in_the_corpus() -> None:
    assert leaked("\n\n".join(tiny_text.corpus(1_000_000, 0))) == []


@pytest.mark.slow
def test_no_question_of_the_suite_stands_in_the_whole_corpus() -> None:
    assert leaked("\n\n".join(tiny_text.corpus(CARD["recipe"]["corpus_bytes"], CARD["recipe"]["seed"]))) == []


def test_documents_are_packed_between_their_marks() -> None:
    assert packed(["ab", "ü"]).tolist() == [257, 97, 98, 258, 257, 195, 188, 258]


def test_windows_are_stretches_of_the_stream() -> None:
    cut = windows(torch.arange(1000, dtype=torch.int16), 5, torch.Generator().manual_seed(0))
    assert cut.shape == (5, CONTEXT_BYTES + 1)
    assert torch.equal(cut - cut[:, :1], torch.arange(CONTEXT_BYTES + 1).expand(5, -1))
    assert len(set(cut[:, 0].tolist())) > 1


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    recipe = TinyLmRecipe(steps=1100, warmup_steps=100, learning_rate=1.0, last_share=0.1)
    assert [recipe.rate_at(step) for step in (0, 99, 100)] == [0.01, 1.0, 1.0]
    assert recipe.rate_at(600) == pytest.approx(0.55)
    assert recipe.rate_at(1100) == pytest.approx(0.1)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_its_vocabulary() -> None:
    model = LlamaForCausalLM(tiny_lm_config())
    torch.nn.init.zeros_(model.lm_head.weight)
    assert held_out_loss(model, packed(tiny_text.corpus(2_000, 1))) == pytest.approx(math.log(259), abs=1e-4)


def test_pretraining_writes_weights_that_load_and_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = TinyLmRecipe(corpus_bytes=20_000, held_out_bytes=1_000, steps=15, batch_size=2, warmup_steps=5)
    monkeypatch.setattr(pretrain_lm, "TinyLmRecipe", lambda: small)
    lines: list[str] = []
    path = pretrain("tiny-lm", tmp_path, lines.append)
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["tokens_seen"] == 15 * 2 * CONTEXT_BYTES
    assert card["held_out_nats_per_byte"] < 5.0  # log 259 is 5.6
    assert lines[0].startswith("step 15/15  loss")
    assert set(card) == set(CARD)
    again = held_out_loss(load(path), packed(tiny_text.corpus(1_000, 1)))
    assert again == pytest.approx(card["held_out_nats_per_byte"], abs=1e-3)


def test_the_shipped_weights_are_the_ones_on_the_card() -> None:
    assert WEIGHTS_PATH.stat().st_size <= 8_000_000
    assert CARD["sha256"] == hashlib.sha256(WEIGHTS_PATH.read_bytes()).hexdigest()
    assert CARD["weights"] == sum(parameter.numel() for parameter in load(WEIGHTS_PATH).parameters()) <= 2_000_000


def test_the_card_tells_todays_recipe() -> None:
    assert CARD["recipe"] == json.loads(json.dumps(dataclasses.asdict(TinyLmRecipe())))


@pytest.mark.slow
def test_the_card_tells_todays_corpus() -> None:
    recipe = TinyLmRecipe()
    assert CARD["corpus_sha256"] == corpus_sha256(tiny_text.corpus(recipe.corpus_bytes, recipe.seed))


def test_the_shipped_weights_foresee_text_they_have_not_seen() -> None:
    fresh = packed(tiny_text.corpus(10_000, 99))
    assert held_out_loss(load(WEIGHTS_PATH), fresh) == pytest.approx(CARD["held_out_nats_per_byte"], abs=0.08)
