from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clbench.answers import Answers
from clbench.errors import UnknownName
from clbench.marking import SCORE, ClassMarker, TextMarker
from clbench.stream import Stream
from clbench.text import Row, TextTask


def task(name: str, kind: str, cap: int, test: list[tuple[str, str]], train: list[tuple[str, str]]) -> TextTask:
    rows = {"train": train, "validation": train[:1], "test": test}
    made = {part: tuple(Row(*row) for row in held) for part, held in rows.items()}
    return TextTask(name=name, kind=kind, prefix="", cue="", answer_tokens=cap, **made)


LETTERS = task(
    "letters",
    "letter",
    4,
    [("a long question", "A"), ("why", "B"), ("a question", "A")],
    [("x", "B"), ("y", "B"), ("z", "A"), ("v", "C")],
)
NUMBERS = task("numbers", "number", 16, [("1+1", "2"), ("1+10", "11")], [("2+2", "4"), ("4+0", "4"), ("1+0", "1")])
STREAM = Stream.of_text([LETTERS, NUMBERS])
EVERYTHING = torch.arange(5)


def said(*words: str) -> Answers:
    return Answers(torch.zeros(len(words), 1), torch.ones(len(words)), None, list(words))


def test_every_variant_is_marked_and_the_suites_own_comes_as_the_score() -> None:
    """'A.' is the letter A strictly, begins with A, and is not equal to it."""
    answers = said("A.", "Because", "A", "2 apples", "12")
    by_variant = {
        "strict": [1.0, 0.0, 1.0, 1.0, 0.0],
        "trace": [0.0, 0.0, 1.0, 0.0, 0.0],
        "lenient": [1.0, 1.0, 1.0, 1.0, 0.0],
    }
    for primary, own in by_variant.items():
        marks = TextMarker(STREAM, primary).mark(answers, EVERYTHING, torch.zeros(5))
        assert set(marks.scores) == {SCORE, "invalid", *set(by_variant) - {primary}}
        assert marks.scores[SCORE].tolist() == own
        for other in set(by_variant) - {primary}:
            assert marks.scores[other].tolist() == by_variant[other]
        assert marks.scores["invalid"].tolist() == [0, 1, 0, 0, 0]
        assert {name: values.dtype for name, values in marks.facts.items()} == dict.fromkeys(
            marks.scores, torch.float32
        )


def test_the_order_of_asking_changes_no_mark() -> None:
    marker, words = TextMarker(STREAM, "strict"), ["A.", "Because", "A", "2 apples", "12"]
    straight = marker.mark(said(*words), EVERYTHING, torch.zeros(5))
    for order in (torch.tensor([4, 0, 2, 1, 3]), torch.tensor([3, 1])):
        mixed = marker.mark(said(*(words[i] for i in order.tolist())), order, torch.zeros(len(order)))
        for name, values in straight.scores.items():
            assert torch.equal(mixed.scores[name], values[order])


def test_longest_questions_come_together_among_answers_of_one_length() -> None:
    order = TextMarker(STREAM, "strict").order(torch.tensor([0, 1, 2, 3, 4]))
    assert order.tolist() == [4, 3, 0, 2, 1]
    assert TextMarker(STREAM, "strict").order(torch.tensor([1, 3, 0])).tolist() == [3, 0, 1]


def test_the_floor_is_the_most_frequent_training_answers_score() -> None:
    assert TextMarker(STREAM, "strict").floors()[SCORE] == pytest.approx((1 / 3, 0.0))
    only_b = task("b", "letter", 4, [("q", "B"), ("r", "B")], [("x", "B")])
    assert TextMarker(Stream.of_text([only_b]), "trace").floors() == dict.fromkeys((SCORE, "lenient", "strict"), (1.0,))


def test_a_constant_answer_that_begins_rightly_scores_more_by_the_lenient_mark() -> None:
    sums = task("sums", "number", 4, [("x", "1"), ("y", "18"), ("z", "2")], [("q", "18"), ("r", "18")])
    floors = TextMarker(Stream.of_text([sums]), "strict").floors()
    assert floors == {
        SCORE: (pytest.approx(1 / 3),),
        "trace": (pytest.approx(1 / 3),),
        "lenient": (pytest.approx(2 / 3),),
    }


def test_an_unknown_score_is_refused_before_anything_is_taught() -> None:
    with pytest.raises(UnknownName, match=r"no score of text called 'accuracy'.*Known: lenient, strict, trace"):
        TextMarker(STREAM, "accuracy")


def test_classes_are_right_or_wrong_and_asked_as_they_come() -> None:
    marker = ClassMarker()
    answers = Answers(torch.tensor([2, 1, 0]), torch.ones(3), None, None)
    marks = marker.mark(answers, torch.tensor([5, 3, 4]), torch.tensor([2, 0, 0]))
    assert marks.scores[SCORE].tolist() == [1.0, 0.0, 1.0]
    assert marks.facts["round"].tolist() == [2, 1, 0]
    assert marker.order(torch.tensor([5, 3, 4])).tolist() == [5, 3, 4]
    assert marker.floors() == {}


def test_no_answer_is_marked_twice() -> None:
    """Places of a later task are not those of the first."""
    marker = TextMarker(STREAM, "strict")
    found: Tensor = marker.mark(said("2", "11"), torch.tensor([3, 4]), torch.zeros(2)).scores[SCORE]
    assert found.tolist() == [1.0, 1.0]
