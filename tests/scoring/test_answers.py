"""Kinds of answers: what each variant makes of good, odd and hostile ones."""

from __future__ import annotations

import json
import os
import tarfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.scoring.answers import KINDS, PRIMARY, VARIANTS, read_letter, read_number

LONG = [name for name, kind in KINDS.items() if kind.long]
SHORT = [name for name, kind in KINDS.items() if not kind.long]
LABELS = ["Good", "Bad", "very negative", "Society & Culture"]
GOLDS = {
    "letter": st.sampled_from("ABC"),
    "choice": st.tuples(st.sampled_from("ABCDE"), st.text(max_size=20)).map("\n".join),
    "number": st.one_of(st.integers(-9999, 9999).map(str), st.floats(0, 99).map(lambda x: f"{x:.2f}"), st.just("June")),
    "label": st.sampled_from(LABELS),
} | {name: st.text(max_size=30).filter(lambda text: any(map(str.isalnum, text))) for name in LONG}


def one(kind: str, prediction: str, gold: str) -> tuple[float, ...]:
    """The marks of one answer in all variants."""
    return tuple(float(KINDS[kind].score(variant, [prediction], [gold], ["prompt"])[0]) for variant in VARIANTS)


def test_the_variants() -> None:
    assert VARIANTS == ("trace", "lenient", "strict")
    assert PRIMARY == "strict"


@pytest.mark.parametrize(
    ("kind", "prediction", "gold", "trace_lenient_strict"),
    [
        ("letter", "B", "B", (1, 1, 1)),
        ("letter", " B\n", "B", (0, 1, 1)),
        ("letter", "B. Hawkish", "B", (0, 1, 1)),
        ("letter", "B：反对", "B", (0, 1, 1)),
        ("letter", "B反对", "B", (0, 1, 1)),
        ("letter", "Ｂ", "B", (0, 0, 1)),  # full width
        ("letter", "Because", "B", (0, 1, 0)),
        ("letter", "A\u0308rger", "A", (0, 1, 0)),  # Ärger, its dots apart
        ("letter", "Aé", "A", (0, 1, 0)),
        ("letter", "Answer: B", "B", (0, 0, 0)),
        ("letter", "b", "B", (0, 0, 0)),
        ("letter", "C", "B", (0, 0, 0)),
        ("letter", "", "B", (0, 0, 0)),
        ("letter", "", "", (0, 0, 0)),
        ("choice", "B\nFor it rains.", "B\nIt rains.", (1, 1, 1)),
        ("choice", "\nB", "B\nIt rains.", (0, 1, 1)),
        ("choice", "Because", "B\nIt rains.", (1, 1, 0)),
        ("choice", "", "B\nIt rains.", (0, 0, 0)),
        ("number", "18", "18", (1, 1, 1)),
        ("number", "18 apples", "18", (0, 1, 1)),
        ("number", "186", "18", (0, 1, 0)),
        ("number", "18.0", "18", (0, 1, 1)),
        ("number", "$1,234", "1234", (0, 0, 1)),
        ("number", "-3", "-3", (1, 1, 1)),
        ("number", "\u22123", "-3", (0, 0, 1)),  # the typographer's minus
        ("number", "3", "-3", (0, 0, 0)),
        ("number", "The answer is 18.", "18", (0, 0, 1)),
        ("number", "3 or 18", "18", (0, 0, 0)),
        ("number", "答案18", "18", (0, 0, 1)),
        ("number", "１８", "18", (0, 0, 1)),
        ("number", "", "18", (0, 0, 0)),
        ("number", "Friday", "Friday", (1, 1, 1)),
        ("number", "friday.", "Friday", (0, 0, 1)),
        ("number", "Friday the 13", "Friday", (0, 1, 0)),
        ("label", "good.", "Good", (1, 0, 1)),
        ("label", "Goodness", "Good", (0, 1, 0)),
        ("label", "Good\nText: more", "Good", (0, 1, 1)),
        ("label", "not Good", "Good", (0, 0, 0)),
        ("label", "", "Good", (0, 0, 0)),
        ("label", "", "-", (1, 0, 0)),  # a broken row: without punctuation its label is empty, as is the answer
        ("code", "return a ", "return a", (0.94, 0.94, 1)),
        ("code", "", "return a", (0, 0, 0)),
        ("code", " \n", "return a", (0.2, 0.2, 0)),  # 1 - 8/10: the space counts
    ],
)
def test_marks_by_hand(kind: str, prediction: str, gold: str, trace_lenient_strict: tuple[float, ...]) -> None:
    assert one(kind, prediction, gold) == pytest.approx(trace_lenient_strict)


def test_the_line_break_of_the_lenient_rouge() -> None:
    """After a full stop it makes an empty word: precision 2/3 instead of 2/2."""
    assert one("summary", "a b.", "a b.") == pytest.approx((1, 0.8, 1), abs=1e-7)
    assert one("summary", "a b", "a b.") == pytest.approx((1, 1, 1), abs=1e-7)
    assert one("summary", "a b.\nc", "a b.\nc") == pytest.approx((1, 1, 1), abs=1e-7)
    assert one("summary", "", "a b.") == (0, 0, 0)
    assert one("summary", "...", "a b.") == (0, 0, 0)


def test_sari_compares_with_the_prompt() -> None:
    kind = KINDS["simplification"]
    assert kind.score("strict", ["a c", "a b"], ["a c", "a c"], ["a b", "a b"]) == pytest.approx([1, 26 / 36])
    assert kind.score("trace", [""], ["a c"], ["a c"])[0] > 0  # deletions alone


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("10-3", "10"),
        ("x = -3", "-3"),
        (".5 litres", "0.5"),
        ("No.5", "5"),
        ("1,5", "1"),
        ("1,234,567.5", "1234567.5"),
        ("1,2345", "1"),
        ("18.", "18"),
        ("H2O weighs 18", "18"),
        ("v1.2.3", "v123"),
        ("½", "½"),
        ("-" * 50, None),
        ("", None),
    ],
)
def test_read_number(answer: str, said: str | None) -> None:
    read = read_number(answer)
    assert read == (Decimal(said) if isinstance(read, Decimal) and said else said)


@pytest.mark.parametrize(
    ("kind", "answers", "options", "invalid"),
    [
        ("letter", ["A", "D", "I'm", "", " \n", "(A)", "C. neutral"], "ABC", [0, 1, 1, 1, 1, 1, 0]),
        ("choice", ["B", "E\nwhy", "Be", "?!"], ["A\nyes", "B\nno"], [0, 1, 1, 1]),
        ("number", ["7 cm", "May", "may 2", "seven", "--", ""], ["4", "May"], [0, 0, 0, 1, 1, 1]),
        ("label", ["bad!", "Bad\nText", "awful", "not bad", "..."], ["Good", "Bad"], [0, 0, 1, 1, 1]),
        ("summary", ["x", "...", " \n", ""], [], [0, 0, 1, 1]),
        ("code", ["<STR_LIT>", ""], [], [0, 1]),
        ("simplification", ["ß", "\u3000"], [], [0, 1]),
    ],
)
def test_invalid(kind: str, answers: list[str], options: list[str], invalid: list[int]) -> None:
    assert KINDS[kind].invalid(answers, options).tolist() == list(map(bool, invalid))


@pytest.mark.parametrize(
    ("kind", "train", "golds", "floors"),
    [
        ("letter", list("ABBC"), list("BBAC"), (0.5, 0.5, 0.5)),
        # Most choose B, each for another reason.
        ("choice", ["A\nx", "A\nx", "B\nx", "B\ny", "B\nz"], ["B\nv", "A\nx"], (0.5, 0.5, 0.5)),
        ("number", ["1", "1", "2"], ["1", "1.0", "18", "2"], (0.25, 0.25, 0.5)),
        ("label", ["Good", "Bad", "Bad"], ["bad", "Badly", "Good", "Bad"], (0.5, 0.25, 0.5)),
        ("code", ["else :", "else :", "pass"], ["else :", "x"], (0.5, 0.5, 0.5)),
        ("letter", [], ["A"], (0, 0, 0)),
    ],
)
def test_floor(kind: str, train: list[str], golds: list[str], floors: tuple[float, ...]) -> None:
    prompts = ["prompt"] * len(golds)
    found = [KINDS[kind].floor(train, golds, prompts, variant) for variant in VARIANTS]
    assert found == pytest.approx(floors)


def test_floor_of_a_text_may_be_the_empty_answer() -> None:
    kind = KINDS["simplification"]
    prompt = ["a b c d e f"]
    empty = kind.score("strict", [""], ["a b"], prompt)[0]
    poor = kind.score("strict", ["a b c d e z"], ["a b"], prompt)[0]
    assert poor < empty == kind.floor(["a b c d e z"], ["a b"], prompt, "strict")


def test_equally_frequent_answers_do_not_depend_on_order() -> None:
    floors = {KINDS["letter"].floor(train, ["A"], [""], "strict") for train in ("AB", "BA")}
    assert floors == {0}


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        KINDS["letter"].score("trace", ["A"], ["A", "B"], ["", ""])
    with pytest.raises(ValueError, match="no examples"):
        KINDS["letter"].floor(["A"], [], [], "strict")


def test_no_answers_give_no_marks() -> None:
    for kind in KINDS.values():
        marks, invalid = kind.score(PRIMARY, [], [], []), kind.invalid([], ["A"])
        assert (marks.shape, marks.dtype) == ((0,), np.float64)
        assert (invalid.shape, invalid.dtype) == ((0,), np.bool_)


@pytest.mark.parametrize("kind", KINDS)
@given(prediction=st.text(max_size=40), data=st.data())
def test_marks_lie_between_0_and_1(kind: str, prediction: str, data: st.DataObject) -> None:
    assert all(0 <= mark <= 1 for mark in one(kind, prediction, data.draw(GOLDS[kind])))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_gold_answer_is_right_and_valid(kind: str, data: st.DataObject) -> None:
    gold = data.draw(GOLDS[kind])
    assert not KINDS[kind].invalid([gold, f" {gold}\n"], [gold]).any()
    if kind == "summary":  # the lenient one loses to its own line break
        assert one(kind, gold, gold)[::2] == pytest.approx((1, 1), abs=1e-7)
    elif kind != "simplification":  # SARI does not reach 1 where a word is to be deleted more than once
        assert one(kind, gold, gold) == (1, 1, 1)


@pytest.mark.parametrize("kind", SHORT)
@given(prediction=st.text(max_size=20), data=st.data())
def test_a_right_short_answer_is_valid(kind: str, prediction: str, data: st.DataObject) -> None:
    gold = data.draw(GOLDS[kind])
    for answer in (prediction, gold + prediction):
        assert one(kind, answer, gold)[-1] <= 1 - KINDS[kind].invalid([answer], [gold])[0]


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("answer", ["9" * 20_000, "1," * 10_000, "\n" * 20_000, "-" * 20_000, "v" + "1" * 20_000])
def test_over_long_short_answers_are_wrong(kind: str, answer: str) -> None:
    assert one(kind, answer, "B")[-1] == 0


def test_a_letter_is_not_sought_behind_the_first() -> None:
    assert [read_letter(text) for text in ("(B)", "option B", "5 B", "B", "B5", "AB")] == [None] * 3 + ["B", "B", None]


KIND_OF = {
    **{"C-STANCE": "letter", "FOMC": "letter", "ScienceQA": "choice", "NumGLUE-cm": "number", "NumGLUE-ds": "number"},
    **{"Py150": "code", "20Minuten": "simplification"},
}


@pytest.mark.real_data
def test_the_answers_of_trace() -> None:
    if not (folder := os.environ.get("CLBENCH_TEST_DATA")):
        pytest.skip("CLBENCH_TEST_DATA names no folder with trace.tar.xz")
    with tarfile.open(Path(folder) / "trace.tar.xz") as archive:
        files = {Path(member.name).parts[1:]: member for member in archive if member.isfile()}

        def rows(task: str, split: str) -> list[dict[str, str]]:
            file = archive.extractfile(files["LLM-CL-Benchmark_500", task, f"{split}.json"])
            assert file
            return list(json.load(file))

        tasks = {task: (rows(task, "train"), rows(task, "test")) for task in KIND_OF}
    floors = {}
    for task, (train, test) in tasks.items():
        kind, options = KINDS[KIND_OF[task]], [row["answer"] for row in train]
        golds, prompts = [row["answer"] for row in test], [row["prompt"] for row in test]
        unseen = [gold for gold, bad in zip(golds, kind.invalid(golds, options), strict=True) if bad]
        assert unseen == (["October"] if task == "NumGLUE-cm" else [])
        itself = kind.score("strict", golds, golds, prompts).mean()
        assert itself == (pytest.approx(0.996, abs=1e-3) if task == "20Minuten" else 1)
        floors[task] = round(100 * kind.floor(options, golds, prompts, "strict"), 1)
    # NumGLUE-cm: 4 is the most frequent answer of training, and none of the test's.
    assert floors == {
        **{"C-STANCE": 38, "FOMC": 53, "ScienceQA": 43, "NumGLUE-cm": 0, "NumGLUE-ds": 14},
        **{"Py150": 5.9, "20Minuten": 40.0},
    }
