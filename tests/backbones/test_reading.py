from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from clbench.backbones.reading import Bytes, HubTokenizer, Lessons, Limits, Questions, Tokenizer
from clbench.errors import BadValue
from clbench.padding import ANSWER, IGNORED, NOTHING, PROMPT
from clbench.stream import TextSet
from clbench.text import Row, TextTask

CPU = torch.device("cpu")
MakeTokenizer = Callable[..., Any]
PREFIX, CUE = "stance?\n", "\nstance:"


def rows_of(*rows: tuple[str, str], prefix: str = PREFIX, cue: str = CUE, cap: int = 8) -> TextSet:
    made = tuple(Row(prefix + body + cue, answer) for body, answer in rows)
    terms: dict[str, Any] = {"name": "stance", "kind": "letter", "prefix": prefix, "cue": cue, "answer_tokens": cap}
    return TextSet(made, TextTask(**terms, train=made, validation=made, test=made))


def pairs(source: TextSet, tokenizer: Tokenizer, limits: Limits) -> list[tuple[list[int], list[int]]]:
    """Question and answer of each row."""
    return [(prompt.tolist(), answer.tolist()) for prompt, answer in Lessons(source, tokenizer, limits).pairs]


def asked(source: TextSet, tokenizer: Tokenizer, limits: Limits) -> list[list[int]]:
    return [prompt.tolist() for prompt in Questions(source, tokenizer, limits).prompts]


def bare(ids: list[int]) -> str:
    return Bytes().decode(ids)


WIDE = Limits(1000, 1000)


@pytest.fixture(scope="module")
def fast(make_tokenizer: MakeTokenizer) -> HubTokenizer:
    return HubTokenizer(make_tokenizer())


def test_a_token_across_the_boundary_belongs_to_the_answer(fast: HubTokenizer) -> None:
    source = rows_of(("a long body", "A"), ("längs 态度", "B"))
    for row, (prompt, answer) in zip(source.rows, pairs(source, fast, WIDE), strict=True):
        together = fast.tokenizer(row.prompt + row.answer)["input_ids"]
        assert [*prompt, *answer] == [*together, fast.end]
        assert fast.decode(answer[:1]) == f"stance:{row.answer}"  # most of the cue is in it
        assert fast.decode(prompt) == row.prompt.removesuffix("stance:")
    alone = asked(source, fast, WIDE)[0]
    assert alone == fast.tokenizer(source.rows[0].prompt)["input_ids"]
    assert fast.decode(alone) == source.rows[0].prompt


def test_without_a_merge_the_boundary_is_where_the_answer_begins(fast: HubTokenizer) -> None:
    source = rows_of(("a body", "öl"))
    ((prompt, answer),) = pairs(source, fast, WIDE)
    assert fast.decode(prompt) == source.rows[0].prompt
    assert fast.decode(answer) == "öl"


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A", "$A </s>"])
def test_a_text_is_opened_as_the_tokenizer_does_and_closed_once(make_tokenizer: MakeTokenizer, template: str) -> None:
    tokenizer = HubTokenizer(make_tokenizer(template))
    ((prompt, answer),) = pairs(rows_of(("body", "none")), tokenizer, WIDE)
    both, opening = [*prompt, *answer], tokenizer.tokenizer.bos_token_id
    assert both.count(opening) == ("<s>" in template)
    assert (prompt[0] == opening) == ("<s>" in template)
    assert both.count(tokenizer.end) == 1
    assert answer[-1] == tokenizer.end
    assert tokenizer.end not in asked(rows_of(("body", "none")), tokenizer, WIDE)[0]


def test_bytes_of_any_script_find_the_boundary() -> None:
    source = rows_of(("für 态度", "Öl"), ("", "支持"), prefix="", cue="？")
    found = pairs(source, Bytes(), WIDE)
    for row, (prompt, answer) in zip(source.rows, found, strict=True):
        assert prompt == [257, *row.prompt.encode()]
        assert answer == [*row.answer.encode(), 258]
        assert (Bytes().decode(prompt), Bytes().decode(answer)) == (row.prompt, row.answer)
    assert Bytes().decode([0xC3, 104, 105]) == "\ufffdhi"


def test_an_empty_answer_is_the_closing_token_alone(fast: HubTokenizer) -> None:
    source = rows_of(("body", ""))
    for tokenizer in (fast, Bytes()):
        assert pairs(source, tokenizer, WIDE)[0][1] == [tokenizer.end]


def test_an_answer_that_is_too_long_loses_its_end() -> None:
    ((_, answer),) = pairs(rows_of(("body", "abcdef")), Bytes(), Limits(100, 4))
    assert answer == [*b"abcd"]
    ((_, answer),) = pairs(rows_of(("body", "abc")), Bytes(), Limits(100, 4))
    assert answer == [*b"abc", 258]


def test_a_long_question_loses_the_front_of_its_body(fast: HubTokenizer) -> None:
    source = rows_of(("0123456789" * 3, "none"))
    shortened = PREFIX + "456789" + CUE
    room = len(Bytes().encode([shortened])[0][0])
    ((prompt, _),) = pairs(source, Bytes(), Limits(room, 10))
    assert prompt[0] == 257
    assert bare(prompt) == shortened
    assert asked(source, Bytes(), Limits(room, 10)) == [prompt]
    room = len(fast.encode([shortened])[0][0])
    ((prompt, _),) = pairs(source, fast, Limits(room, 10))
    assert fast.decode(prompt) == shortened


def test_what_fits_is_not_cut() -> None:
    source = rows_of(("0123", "none"))
    length = 1 + len(source.rows[0].prompt)
    assert bare(pairs(source, Bytes(), Limits(length, 10))[0][0]) == source.rows[0].prompt
    assert bare(pairs(source, Bytes(), Limits(length - 1, 10))[0][0]) == PREFIX + "123" + CUE


def test_instruction_and_cue_that_do_not_fit_are_refused_with_the_numbers() -> None:
    ends = 1 + len(PREFIX) + len(CUE)
    source = rows_of(("0123456789", "none"))
    assert bare(asked(source, Bytes(), Limits(ends, 10))[0]) == PREFIX + CUE
    with pytest.raises(
        BadValue, match=f"of task 'stance' have {ends} tokens and a question may have {ends - 1}; raise"
    ):
        Questions(source, Bytes(), Limits(ends - 1, 10))


def test_a_question_without_a_token_is_refused(make_tokenizer: MakeTokenizer) -> None:
    source = rows_of(("", "none"), prefix="", cue="")
    tokenizer = HubTokenizer(make_tokenizer("$A"))
    for kind in (Lessons, Questions):
        with pytest.raises(BadValue, match="task 'stance' has a question without any token"):
            kind(source, tokenizer, WIDE)


# as TRACE's code: the text without special tokens is cut to the limit from its left; the closing token is added if
# there is room, then the opening one; the last tokens are learned, as many as the answer and a closing token have


def as_trace(prompt: str, answer: str, room: int) -> tuple[list[int], list[int]]:
    ids = [*(prompt + answer).encode()][-room:]
    if len(ids) < room:
        ids = [*ids, 258]
    if len(ids) < room:
        ids = [257, *ids]
    labels = min(len(answer.encode()) + 1, len(ids) - 1)  # nothing tells the first token
    return ids[:-labels], ids[-labels:]


@pytest.mark.parametrize("room", [2, 5, 6, 7, 20, 21, 22, 23, 24, 60])
@pytest.mark.parametrize("answer", ["none", ""])
def test_left_truncation_is_that_of_traces_code(room: int, answer: str) -> None:
    source = rows_of(("0123", answer))  # 20 letters and 4
    limits = Limits(room - 1, 1, "left")
    assert pairs(source, Bytes(), limits) == [as_trace(source.rows[0].prompt, answer, room)]


def test_left_truncation_of_a_question_alone_drops_the_instruction() -> None:
    source = rows_of(("0123", "none"))
    whole = [*source.rows[0].prompt.encode()]
    for limit, expected in ((50, [257, *whole]), (21, [257, *whole]), (20, whole), (10, whole[-10:])):
        assert asked(source, Bytes(), Limits(limit, 4, "left")) == [expected]


# batches


def test_a_batch_of_lessons_ends_together() -> None:
    lessons = Lessons(rows_of(("a", "x"), ("bcd", "yz"), prefix="", cue=""), Bytes(), WIDE)
    inputs, targets = lessons.batch(torch.tensor([1, 0]), CPU)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs[0].tolist() == [[257, *b"bcdyz", 258], [PROMPT] * 4 + [ANSWER] * 3]
    assert inputs[1].tolist() == [[0, 0, 0, 257, *b"ax", 258], [NOTHING] * 3 + [PROMPT] * 2 + [ANSWER] * 2]
    assert targets.tolist() == [[*b"yz", 258], [IGNORED, *b"x", 258]]
    assert (lessons.longest_answer, lessons.longest, len(lessons)) == (3, 7, 2)
    assert torch.equal(lessons[0][0], torch.tensor([[257, *b"ax", 258], [PROMPT] * 2 + [ANSWER] * 2]))


def test_a_batch_of_questions_has_caps_for_targets() -> None:
    questions = Questions(rows_of(("a", "x"), ("bcd", "yz"), prefix="", cue="", cap=8), Bytes(), WIDE)
    inputs, caps = questions.batch(torch.tensor([0, 1]), CPU)
    assert inputs[:, 0].tolist() == [[0, 0, 257, *b"a"], [257, *b"bcd"]]
    assert inputs[:, 1].tolist() == [[NOTHING] * 2 + [PROMPT] * 2, [PROMPT] * 4]
    assert caps.tolist() == [8, 8]
    assert questions.longest == 4 + 8
    assert Questions(questions.source, Bytes(), Limits(100, 3)).batch(torch.tensor([0]), CPU)[1].tolist() == [3]


def test_no_rows_are_no_lessons(fast: HubTokenizer) -> None:
    for tokenizer in (fast, Bytes()):
        lessons = Lessons(rows_of(), tokenizer, WIDE)
        assert (len(lessons), lessons.longest) == (0, 0)


def test_a_tokenizer_that_cannot_tell_places_or_ends_is_refused(fast: HubTokenizer) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(BadValue, match="Slow cannot tell where its tokens stand"):
        HubTokenizer(Slow())

    class Endless:
        is_fast, eos_token_id = True, None

    with pytest.raises(BadValue, match="no token that ends a text"):
        HubTokenizer(Endless())


def test_a_saved_tokenizer_reads_the_same(fast: HubTokenizer, tmp_path: Any) -> None:
    fast.tokenizer.save_pretrained(tmp_path)
    again = HubTokenizer(AutoTokenizer.from_pretrained(tmp_path))
    source = rows_of(("längs über 态度", "A"))
    assert pairs(source, again, WIDE) == pairs(source, fast, WIDE)


def test_special_tokens_are_no_part_of_a_text(fast: HubTokenizer) -> None:
    ids = [*fast.encode(["stance : none ."])[0][0], fast.end]
    assert fast.decode(ids) == "stance : none ."
    assert Bytes().decode([257, *b"hi", 258, 256]) == "hi"


def ends(tokenizer: Tokenizer, text: str) -> Tensor:
    return torch.tensor(tokenizer.encode([text])[0][1])


@pytest.mark.parametrize("text", ["stance:A", "längs über Öl 态度", "  a  b\n"])
def test_places_are_counted_in_characters_and_never_go_back(fast: HubTokenizer, text: str) -> None:
    for tokenizer in (fast, Bytes()):
        found = ends(tokenizer, text)
        assert (found.diff() >= 0).all()
        assert (found[0], found[-1]) == (0, len(text))
