from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clbench import plan, runner, tiny
from clbench.backbones.reading import Bytes
from clbench.errors import BadValue, LeakError
from clbench.methods.icl import ICL, INTRODUCTION, Shown, example, stop
from clbench.padding import IGNORED, NOTHING
from clbench.strategy import Plugin
from clbench.stream import Stream
from clbench.text import Row, TextTask

ROWS = tuple(Row(f"Add.\nQuestion:\n{a} and {b}\nAnswer:", str(a + b)) for a in range(6) for b in range(6))


def body(row: Row) -> str:
    return row.prompt.removeprefix("Add.\nQuestion:\n")


def task(kind: str = "number", rows: tuple[Row, ...] = ROWS, **fields: Any) -> TextTask:
    whole: dict[str, Any] = {"name": kind, "prefix": "Add.\nQuestion:\n", "cue": "\nAnswer:", "answer_tokens": 4}
    return TextTask(kind=kind, train=rows, validation=rows[:2], test=rows[:4], **{**whole, **fields})


def stream(*tasks: TextTask) -> Stream:
    return Stream.of_text(tasks)


class Asked(Plugin):
    """The questions as they were put to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.longest = 0

    def before_eval_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        for tokens, roles in strategy.mb_x:
            kept = tokens[roles != NOTHING].tolist()
            self.longest = max(self.longest, len(kept))
            self.texts.append(strategy.model.tokenizer.decode(kept))


def asked(run: runner.Run, teach: Any) -> Asked:
    probe = Asked()
    run.strategy.plugins.append(probe)
    teach(run)
    return probe


def shown(run: runner.Run) -> list[Shown]:
    found: list[Shown] = run.plugins[0].shown  # type: ignore[attr-defined]
    return found


def test_a_question_stands_behind_the_instruction_and_six_examples(begin_text: Any, teach: Any) -> None:
    run = begin_text(ICL(), stream=stream(task()))
    found = asked(run, teach)
    (mine,) = shown(run)
    assert len(mine.rows) == 6
    bodies = "".join(
        ROWS[place].prompt.removeprefix("Add.\nQuestion:\n") + ROWS[place].answer + "\n\n" for place in mine.rows
    )
    head = f"Add.\nQuestion:\n{INTRODUCTION}{bodies}"
    assert sorted(found.texts) == sorted(head + body(row) for row in ROWS[:4])
    assert len({ROWS[place].answer for place in mine.rows}) == 6  # all answers differ
    assert run.plugins[0].notes() == {"examples": [mine.rows]}


def test_examples_hang_on_the_seed_and_the_task_alone(begin_text: Any, teach: Any) -> None:
    two = stream(task(), task(name="again"))
    first, same, other = (shown(teach(begin_text(ICL(), stream=two, seed=seed))) for seed in (0, 0, 1))
    assert first == same
    assert first[0].rows != other[0].rows
    assert first[0].rows != first[1].rows
    assert shown(teach(begin_text(ICL(), stream=stream(task())), 0))[0] == first[0]


def test_they_are_training_rows_and_no_test_row_is_looked_at(begin_text: Any, teach: Any) -> None:
    """Where training and test have no row in common, no test question is among the examples."""
    apart = stream(replace(task(rows=ROWS[:20]), test=ROWS[20:]))
    run = begin_text(ICL(), stream=apart)
    found = asked(run, teach)
    assert all(place < 20 for place in shown(run)[0].rows)
    for text in found.texts:
        examples = text.partition(INTRODUCTION)[2].rpartition("\n\n")[0]
        assert not any(body(row) in examples for row in ROWS[20:])


@pytest.mark.parametrize(("kind", "most"), [("letter", 2), ("label", 2), ("number", 1), ("choice", 1)])
def test_how_often_an_answer_may_come(kind: str, most: int, begin_text: Any, teach: Any) -> None:
    rows = tuple(Row(f"Add.\nQuestion:\n{n // 2}\nAnswer:", "AB"[n % 2]) for n in range(30))  # each question twice
    run = teach(begin_text(ICL(), stream=stream(task(kind, rows))))
    chosen = [rows[place] for place in shown(run)[0].rows]
    assert Counter(row.answer for row in chosen) == {"A": most, "B": most}
    assert len({row.prompt for row in chosen}) == len(chosen)


def test_long_rows_give_no_examples_and_one_of_many_is_passed_over(begin_text: Any, teach: Any) -> None:
    long = "word " * 40
    mostly_long = tuple(Row(f"Add.\nQuestion:\n{long if n % 3 else ''}{n}\nAnswer:", str(n)) for n in range(30))
    mostly_short = tuple(Row(f"Add.\nQuestion:\n{'' if n % 3 else long}{n}\nAnswer:", str(n)) for n in range(30))
    run = begin_text(ICL(), stream=stream(task(rows=mostly_long), task(rows=mostly_short)))
    found = asked(run, teach)
    none, some = shown(run)
    assert none.rows == []
    assert all(place % 3 for place in some.rows)
    assert len(some.rows) == 6
    assert mostly_long[0].prompt in found.texts  # as it is


@pytest.mark.parametrize(("budget", "count"), [(300, 0), (480, 6), (3584, 6)])
def test_a_question_with_its_examples_keeps_within_the_budget(
    budget: int, count: int, begin_text: Any, teach: Any
) -> None:
    rows = (*ROWS, Row(f"Add.\nQuestion:\n{'word ' * 60}1 and 1\nAnswer:", "2"))
    whole = replace(task(rows=rows), test=rows[-4:])
    run = begin_text(ICL(budget_tokens=budget), stream=stream(whole))
    found = asked(run, teach)
    (mine,) = shown(run)
    limit = min(budget, 512 - 4)  # what the model's context leaves beside the answer
    assert found.longest == limit
    assert len(mine.rows) == count
    longest = max(found.texts, key=lambda text: text.count("word"))
    assert longest.startswith(f"Add.\nQuestion:\n{INTRODUCTION if count else ''}")
    assert longest.endswith("word 1 and 1\nAnswer:")
    share = (limit - len("<Add.\nQuestion:\n") - len(INTRODUCTION)) / 12  # "<": the opening token
    assert all(len(example(whole, rows[place])) <= share for place in mine.rows)


def test_an_instruction_above_the_budget_is_refused(begin_text: Any, teach: Any) -> None:
    with pytest.raises(BadValue, match=r"'number' has 16 tokens and a question with its examples may have 16; raise"):
        teach(begin_text(ICL(budget_tokens=16), stream=stream(task())))


def test_code_has_a_mark_before_each_piece_and_no_instruction(begin_text: Any, teach: Any) -> None:
    rows = tuple(Row(f"<s> x = {n} <EOL>", f"y = {n}") for n in range(20))
    run = begin_text(ICL(shots=2), stream=stream(task("code", rows, prefix="<s> ", cue=" <EOL>")))
    found = asked(run, teach)
    one, two = shown(run)[0].rows
    pieces = f"Code:\n<s> x = {one} <EOL>y = {one}\n\nCode:\n<s> x = {two} <EOL>y = {two}\n\n"
    assert f"{INTRODUCTION}{pieces}Code:\n<s> x = 0 <EOL>" in found.texts


def test_a_question_of_another_task_or_with_a_joined_token_keeps_all_its_tokens() -> None:
    mine = Shown([0], [1, 5, 6, 7], [90, 91], 100, "", False)
    assert mine.before([1, 5, 6, 7, 8, 9]) == [1, 5, 6, 7, 90, 91, 8, 9]
    assert mine.before([1, 5, 6, 78, 9]) == [1, 5, 6, 90, 91, 78, 9]
    assert mine.before([1, 30, 31]) == [1, 90, 91, 30, 31]
    assert replace(mine, budget=7).before([1, 5, 6, 7, 8, 9]) == [1, 5, 6, 7, 90, 91, 9]
    assert replace(mine, examples=[]).before([1, 5, 6, 7, 8]) == [1, 5, 6, 7, 8]
    assert replace(mine, examples=[], budget=5).before([1, 5, 6, 7, 8, 9]) == [1, 5, 6, 7, 9]


CUTS = [
    ("letter", "", "A\n\nB", "A"),
    ("letter", "", "", ""),
    ("number", "Add.\nQuestion:\n", "12\n\nQuestion: 4", "12"),
    ("number", "", "\n12", ""),
    ("label", "", "very good\n", "very good"),
    ("choice", "Choose.\n\nQuestion:\n", "B\nIt rains.\n\nQuestion:\nWhy?", "B\nIt rains.\n\n"),
    ("summary", "Sum up.\nMeeting transcripts:\n", "They met.\n\nMeeting transcripts:\nx", "They met.\n\n"),
    ("simplification", "Simplify.\n\nParagraph:\n", "Es regnet über Öl.\n\nParagraph:\nx", "Es regnet über Öl.\n\n"),
    ("code", "", "x = 1 <EOL> y", "x = 1 "),
    ("summary", "", "no instruction, nothing to look for", "no instruction, nothing to look for"),
]


@pytest.mark.parametrize(("kind", "prefix", "said", "kept"), CUTS)
def test_answers_are_cut_where_the_next_example_would_begin(
    kind: str, prefix: str, said: str, kept: str, begin_text: Any
) -> None:
    run = begin_text(ICL(), stream=stream(task()))
    plugin, tokens = run.plugins[0], Bytes()
    given = [*said.encode(), IGNORED, IGNORED]
    plugin.asked = [Shown([], [], [], 0, stop(task(kind, prefix=prefix)), kind == "letter")]
    run.strategy.mb_output = torch.tensor([given]), torch.ones(1)
    plugin.after_eval_forward(run.strategy)
    cut, margins = run.strategy.mb_output
    assert cut.shape == (1, len(given))
    assert tokens.decode([token for token in cut[0].tolist() if token >= 0]) == kept
    assert margins.tolist() == [1]


def test_nothing_is_cut_unless_it_is_asked_for_and_cutting_is_told(begin_text: Any) -> None:
    cutting, plain = begin_text(ICL()), begin_text(ICL(cut_answers=False))
    reply = torch.tensor([[65, 10, 66]]), torch.ones(1)
    plain.strategy.mb_output = reply
    plain.plugins[0].after_eval_forward(plain.strategy)
    assert plain.strategy.mb_output is reply
    assert (cutting.plugins[0].marks(), plain.plugins[0].marks()) == (
        ["answers are cut where a next example would begin"],
        [],
    )


def test_nothing_is_trained_and_the_task_is_inferred(begin_text: Any, teach: Any) -> None:
    run = begin_text(ICL(), tasks=3)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    teach(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.state_dict().items())
    assert run.model.trainable() == []
    assert (run.cell.protocol.epochs, run.cell.protocol.schedule) == (0, "none")
    assert run.state.router() == (1.0, 1.0, 1.0)
    assert not run.cell.protocol.task_id_at_test
    assert run.plugins[0].kept_samples() == 3 * 4  # of two letters, two each
    audit = run.audit()
    assert (audit.batch_flips, audit.label_flips) == (0, 0)


def test_what_is_kept_survives_a_checkpoint_and_is_bounded(begin_text: Any, teach: Any) -> None:
    whole, resumed = teach(begin_text(ICL(), tasks=2), 0), begin_text(ICL(), tasks=2)
    assert resumed.unpack(whole.pack()) == 1
    assert shown(resumed) == shown(whole)
    teach(whole, 1)
    teach(resumed, 1)
    assert resumed.outcomes().keys() == whole.outcomes().keys()
    for name, values in whole.outcomes().items():
        np.testing.assert_array_equal(resumed.outcomes()[name], values)
    with pytest.raises(LeakError, match="icl keeps 8 samples and declared 7"):
        teach(begin_text(ICL(buffer_samples=7), tasks=2))


def test_images_are_declined() -> None:
    cell = plan.cells(tiny.tiny, tiny.stream(), [plan.Row(ICL(), "", "")], [0], 0, "cpu")[0]
    record, _ = runner.run(cell, tiny.stream(), device=torch.device("cpu"))
    assert (record.status, record.reason) == (
        "unsupported",
        "its examples stand in the question, and images have no text to stand in",
    )
