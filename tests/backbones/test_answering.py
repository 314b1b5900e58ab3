"""How a language model answers: as transformers' own generation does, in batches, and no longer than it must."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from clbench.backbones import language
from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Bytes
from clbench.model import Prefixes
from clbench.padding import IGNORED
from clbench.recipe import Recipe
from clbench.tiny import text_stream

NEVER = 999
"""No token at all."""


def ending_at(model: LanguageModel, token: int) -> None:
    model.tokenizer.end = token


def greedy(lab: Any, name: str, row: Sequence[int], cap: int, end: int) -> list[int]:
    """What transformers' own generation answers, without the closing token."""
    words = torch.tensor([row])
    found = lab.body(name).generate(
        words,
        attention_mask=torch.ones_like(words),
        do_sample=False,
        max_new_tokens=cap,
        eos_token_id=end,
        pad_token_id=256,
    )
    said = found[0, len(row) :].tolist()
    return said[: said.index(end)] if end in said else said


def tokens(answers: Tensor) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in answers.tolist()]


Passes = Callable[[LanguageModel], list[int]]
DRAWS = torch.Generator().manual_seed(1)
QUESTIONS = [torch.randint(256, (3 + i % 11,), generator=DRAWS).tolist() for i in range(32)]


def test_answers_are_those_of_transformers_own_generation_in_any_company(lab: Any, name: str) -> None:
    model = lab.model(name)
    caps = torch.tensor([1 + i % 8 for i in range(32)])
    together = lab.aligned(QUESTIONS, [0] * 32)
    ending_at(model, tokens(model.reply(together, caps)[0])[7][2])  # one that is said, so that some answers end early
    answers, margins = model.reply(together, caps)
    assert (margins > 1e-5).sum() >= 30
    found = tokens(answers)
    assert any(len(said) < cap for said, cap in zip(found, caps.tolist(), strict=True))
    for i, question in enumerate(QUESTIONS):
        if margins[i] <= 1e-5:
            continue
        assert found[i] == greedy(lab, name, question, int(caps[i]), model.tokenizer.end)
        alone, margin = model.reply(lab.aligned([question], [0]), caps[i : i + 1])
        assert tokens(alone) == [found[i]]
        torch.testing.assert_close(margin[0], margins[i], atol=1e-4, rtol=1e-4)


def test_each_answer_keeps_to_its_own_greatest_length(lab: Any) -> None:
    model = lab.model()
    ending_at(model, NEVER)
    inputs = lab.aligned(QUESTIONS[:3], [0] * 3)
    longest, _ = model.reply(inputs, torch.tensor([6, 6, 6]))
    mixed, _ = model.reply(inputs, torch.tensor([6, 2, 1]))
    assert [len(said) for said in tokens(mixed)] == [6, 2, 1]
    assert tokens(mixed) == [said[:cap] for said, cap in zip(tokens(longest), (6, 2, 1), strict=True)]


@pytest.fixture
def passes() -> Callable[[LanguageModel], list[int]]:
    """model -> how many tokens each pass through its body has from now on."""

    def watched(model: LanguageModel) -> list[int]:
        widths: list[int] = []

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given = kwargs.get("input_ids")
            widths.append((kwargs["inputs_embeds"] if given is None else given).shape[1])

        model.body.register_forward_pre_hook(note, with_kwargs=True)
        return widths

    return watched


def test_a_question_is_read_once_and_no_pass_is_made_for_nothing(lab: Any, passes: Passes) -> None:
    model = lab.model()
    ending_at(model, NEVER)
    widths = passes(model)
    inputs = lab.aligned(QUESTIONS[:4], [0] * 4)
    model.reply(inputs, torch.tensor([3, 1, 5, 2]))
    assert widths == [inputs.shape[2], 1, 1, 1, 1]


def test_a_cache_with_room_to_spare_holds_what_transformers_own_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "SPARE", 2)
    ours, theirs = language.Roomy(), DynamicLayer()
    draws, places = torch.Generator().manual_seed(0), []
    for tokens_at_once in (5, 1, 1, 1, 3, 1):
        new = torch.randn(2, 3, 4, tokens_at_once, 8, generator=draws)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        places.append(ours.held[0].data_ptr())
    assert [a == b for a, b in itertools.pairwise(places)] == [True, True, False, False, True]


def test_answering_stops_when_all_answers_have_ended(lab: Any, passes: Passes) -> None:
    model = lab.model()
    inputs = lab.aligned(QUESTIONS[:1], [0])
    said = tokens(model.reply(inputs, torch.tensor([40]))[0])[0]
    ending_at(model, said[3])
    widths = passes(model)
    answers, _ = model.reply(inputs, torch.tensor([40]))
    end = said.index(said[3])
    assert tokens(answers) == [said[:end]]
    assert len(widths) == end + 1


def test_the_closing_token_is_no_part_of_an_answers_text(lab: Any) -> None:
    model = lab.model()
    ending_at(model, NEVER)
    inputs = lab.aligned([[257, *b"one plus one is"]], [0])
    said = tokens(model.reply(inputs, torch.tensor([5]))[0])[0]
    ending_at(model, said[2])
    (words,) = model.words(model.reply(inputs, torch.tensor([5]))[0])
    assert words == Bytes().decode(said[: said.index(said[2])])
    assert model.words(torch.tensor([[72, 105, IGNORED], [IGNORED, IGNORED, IGNORED]])) == ["Hi", ""]


def behind_query(tokens: Tensor, query: Tensor) -> Tensor:
    return torch.stack([query, -query], dim=1) * 2


def prefixes_of_query(tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
    asked = query()[:, None, :8]  # two heads of four share their keys
    return Prefixes(behind_query(tokens, query()), {1: (asked * 3, asked - 1)})


def teach_prompts(model: LanguageModel) -> None:
    model.prompter = behind_query


def teach_prefixes(model: LanguageModel) -> None:
    model.prefixer = prefixes_of_query


def by_whole_passes(lab: Any, model: LanguageModel, question: Sequence[int], count: int) -> list[int]:
    """Greedy tokens, each from a pass over all that was said so far."""
    said: list[int] = []
    for _ in range(count):
        inputs = lab.aligned([[*question, *said, 0]], [len(said) + 1])
        said.append(int(model(inputs)[0, -1].argmax()))
    return said


@pytest.mark.parametrize("teach", [teach_prompts, teach_prefixes])
@torch.no_grad()
def test_prompts_and_prefixes_last_through_an_answer(lab: Any, teach: Callable[[LanguageModel], None]) -> None:
    model = lab.model()
    ending_at(model, NEVER)
    inputs, caps = lab.aligned(QUESTIONS[:6], [0] * 6), torch.full((6,), 6)
    plain, _ = model.reply(inputs, caps)
    teach(model)
    answers, margins = model.reply(inputs, caps)
    assert margins.min() > 1e-4
    assert tokens(answers) == [by_whole_passes(lab, model, question, 6) for question in QUESTIONS[:6]]
    assert tokens(answers) != tokens(plain)
    model.prompter = model.prefixer = None
    assert torch.equal(model.reply(inputs, caps)[0], plain)


def test_sampled_answers_depend_on_the_seed_alone_and_are_never_clear(lab: Any) -> None:
    model = lab.model()
    model.read(text_stream(tasks=1), Recipe(temperature=1.5))
    inputs, caps = lab.aligned(QUESTIONS, [0] * 32), torch.full((32,), 5)

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return model.reply(inputs, caps)

    (first, margins), (again, _), (other, _) = drawn(0), drawn(0), drawn(1)
    assert torch.equal(first, again)
    assert tokens(first) != tokens(other)
    assert not margins.any()


def test_a_low_temperature_is_nearly_greedy(lab: Any) -> None:
    model = lab.model()
    inputs, caps = lab.aligned(QUESTIONS, [0] * 32), torch.full((32,), 5)
    greedy_answers, margins = model.reply(inputs, caps)
    model.temperature = 1e-3
    sampled, _ = model.reply(inputs, caps)
    clear = margins > 0.05
    assert clear.sum() > 10
    assert [s for s, c in zip(tokens(sampled), clear, strict=True) if c] == [
        g for g, c in zip(tokens(greedy_answers), clear, strict=True) if c
    ]
