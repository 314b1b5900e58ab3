"""A real checkpoint, stories260k: 260,032 weights, a vocabulary of 512, trained on simple English stories."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from clbench import backbones, catalog, plan, runner, tiny
from clbench.backbones.language import LanguageModel
from clbench.padding import NOTHING, PROMPT
from clbench.recipe import Recipe
from clbench.stream import Stream
from clbench.text import Row, TextTask

pytestmark = pytest.mark.real_data
CPU = torch.device("cpu")
STORY = (
    "There was a small dog named Max. Max liked to run in the garden. One day, he saw a big bird on a tree. The bird "
    "was sad because it lost its hat. Max helped the bird find the hat. They became good friends and played all day."
)


@pytest.fixture(scope="module")
def name() -> str:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder or not (Path(folder) / "stories260k").is_dir():
        pytest.skip("CLBENCH_TEST_DATA does not name the folder that holds stories260k")
    return f"hf:stories260k@{folder}/stories260k"


@pytest.fixture
def model(name: str) -> LanguageModel:
    built = backbones.build(name, 0, 0)
    assert isinstance(built, LanguageModel)
    return built.eval()


def story_task(answer: str) -> TextTask:
    rows = (Row("", answer),)
    return TextTask(
        name="story", kind="summary", prefix="", cue="", answer_tokens=32, train=rows, validation=rows, test=rows
    )


def test_it_loads_by_name_and_has_the_published_size(name: str, model: LanguageModel) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032
    assert (model.width, model.depth, model.classes, model.prefix_width) == (64, 5, 512, 32)
    assert len(backbones.weights_sha256(name)) == 64


@torch.no_grad()
def test_its_perplexity_on_a_simple_story_is_about_2_9(name: str, model: LanguageModel) -> None:
    (task,) = model.read(Stream.of_text([story_task(STORY)]), Recipe()).tasks
    model.begin(task)
    inputs, targets = task.train.batch(torch.tensor([0]), CPU)
    told = targets.clone()
    told[:, -1] = -100  # the story may go on
    loss = model.losses(model(inputs), told, torch.ones(512, dtype=torch.bool))
    assert loss.exp().item() == pytest.approx(2.9, abs=0.4)
    words = inputs[:, 0, :-1]
    theirs = AutoModelForCausalLM.from_pretrained(name.partition("@")[2])(words, labels=words).loss
    torch.testing.assert_close(loss[0], theirs, atol=1e-5, rtol=1e-5)


def test_batches_of_1_and_32_tell_the_same_stories(model: LanguageModel) -> None:
    openings = [
        f"{start} {name} {verb}"
        for start in ("Once upon a time,", "One day,", "The big dog saw", "There was a little")
        for name in ("Lily", "Tom", "a cat", "the red bird")
        for verb in ("went", "wanted")
    ]
    read = [tokens for tokens, _ in model.tokenizer.encode(openings)]
    width = max(map(len, read))
    inputs = torch.full((32, 2, width), NOTHING)
    for row, tokens in enumerate(read):
        inputs[row, :, width - len(tokens) :] = torch.tensor([tokens, [PROMPT] * len(tokens)])
    caps = torch.full((32,), 20)
    together, margins = model.reply(inputs, caps)
    for row, tokens in enumerate(read):
        alone, _ = model.reply(inputs[row : row + 1, :, width - len(tokens) :], caps[:1])
        if margins[row] > 1e-5:
            assert torch.equal(alone[0], together[row, : alone.shape[1]])
    assert (margins > 1e-5).sum() >= 30
    words = model.words(together)
    assert sum(" " in text and text.isascii() for text in words) >= 30


def test_it_learns_forgets_and_answers(name: str) -> None:
    suite = replace(
        tiny.tiny_text,
        backbone=name,
        recipe=Recipe(epochs=12, batch_size=16, learning_rate=1e-2, lora_rank=8, lora_alpha=16),
    )
    stream = tiny.text_stream(tasks=2)
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, ["seqlora"], {}), [0], 0, "cpu")
    record, outcomes = runner.run(cell, stream, device=CPU)
    assert record.status == "done", record.reason
    (_, _), (first, _), (left, second) = record.scores
    assert first is not None
    assert left is not None
    assert second is not None
    assert min(first, second) > record.floors[0] + 0.2
    assert left < first - 0.2
    assert record.audit is not None
    assert (record.audit.batch_flips, record.audit.label_flips) == (0, 0)
    assert "said_2" in outcomes
