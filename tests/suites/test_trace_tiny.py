"""The embedded twin of TRACE: sizes, balance, and answers that a rule of the task gives."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from clbench import text, words
from clbench.backbones.tiny_lm import CONTEXT_BYTES, ByteTokenizer
from clbench.scoring.answers import KINDS
from clbench.suites import _trace_tiny
from clbench.text import Row, TextTask

TASKS = {task.name: task for task in _trace_tiny.read()}
MOODS = {verb: mood for mood, verbs in words.ATTITUDES.items() for verb in verbs}
FAMILY = {member: family for family, members in words.FAMILIES.items() for member in members}
EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def rows(task: TextTask) -> tuple[Row, ...]:
    return task.train + task.validation + task.test


def body(task: TextTask, row: Row) -> str:
    return row.prompt.removeprefix(task.prefix).removesuffix(task.cue)


def test_the_rows_are_the_same_everywhere() -> None:
    parts = [(task.name, text.sha256(rows(task))) for task in TASKS.values()]
    assert [(task.name, text.sha256(rows(task))) for task in _trace_tiny.read()] == parts
    assert hashlib.sha256(repr(parts).encode()).hexdigest()[:16] == "99d4da8964de7798"


def test_there_are_eight_tasks_of_traces_kinds_in_its_order() -> None:
    kinds = ["letter", "letter", "summary", "code", "choice", "number", "number", "simplification"]
    assert [task.kind for task in TASKS.values()] == kinds
    assert set(kinds) <= set(KINDS)


@EVERY_TASK
def test_sizes_and_ends(task: TextTask) -> None:
    assert (len(task.train), len(task.validation), len(task.test)) == (500, 100, 100)
    assert all(row.prompt.startswith(task.prefix) and row.prompt.endswith(task.cue) for row in rows(task))
    assert all(body(task, row).strip() for row in rows(task))


@EVERY_TASK
def test_no_prompt_stands_twice(task: TextTask) -> None:
    assert len({row.prompt for row in rows(task)}) == 700
    assert len({body(task, row) for row in rows(task)}) == 700


@EVERY_TASK
def test_rows_fit_the_context_and_answers_their_limit(task: TextTask) -> None:
    length = ByteTokenizer().encode
    assert max(len(length(row.prompt + row.answer)) + 2 for row in rows(task)) <= CONTEXT_BYTES
    assert max(len(length(row.prompt)) for row in rows(task)) <= 135
    assert max(len(length(row.answer)) + 1 for row in rows(task)) <= task.answer_tokens


@pytest.mark.parametrize(
    ("name", "highest"),
    [("Stance", 0.34), ("Tone", 0.34), ("Science", 0.34), ("Sums", 0.06), ("Differences", 0.12)],
)
def test_classes_are_balanced_in_every_part(name: str, highest: float) -> None:
    task = TASKS[name]
    for part in (task.train, task.validation, task.test):
        counts = Counter(KINDS[task.kind].read(row.answer) for row in part)
        assert max(counts.values()) <= highest * len(part) + 0.5
        assert len(counts) == {0.34: 3, 0.06: 17, 0.12: 9}[highest]


@pytest.mark.parametrize(("name", "highest"), [("Meeting", 0.10), ("Code", 0.40), ("German", 0.50)])
def test_one_answer_to_everything_scores_low(name: str, highest: float) -> None:
    task = TASKS[name]
    golds, prompts = [row.answer for row in task.test], [row.prompt for row in task.test]
    assert KINDS[task.kind].floor([row.answer for row in task.train], golds, prompts, "strict") <= highest


def test_stance_and_tone_read_the_same_verbs_differently() -> None:
    letters: dict[str, dict[str, str]] = {"Stance": {}, "Tone": {}}
    for name in letters:
        for row in rows(TASKS[name]):
            (verb,) = set(re.findall(r"\w+", body(TASKS[name], row))) & set(MOODS)
            assert letters[name].setdefault(MOODS[verb], row.answer) == row.answer
    assert letters == {
        "Stance": {"good": "A", "bad": "B", "plain": "C"},
        "Tone": {"good": "B", "bad": "C", "plain": "A"},
    }


@pytest.mark.parametrize(("name", "sign", "verbs"), [("Sums", 1, words.GAINS), ("Differences", -1, words.LOSSES)])
def test_numbers_follow_from_the_question(name: str, sign: int, verbs: tuple[str, ...]) -> None:
    for row in rows(TASKS[name]):
        has, changes = map(int, re.findall(r"\d+", body(TASKS[name], row)))
        assert int(row.answer) == has + sign * changes
        assert set(re.findall(r"\w+", row.prompt)) & set(verbs)


def test_the_summary_names_who_will_do_what() -> None:
    for row in rows(TASKS["Meeting"]):
        ((name, action, thing),) = re.findall(r"(\w+): I will (\w+) the ([\w ]+)\.", row.prompt)
        assert row.answer == f"{name} {action}s {thing}."


def test_the_choice_and_its_reason_follow_from_the_thing() -> None:
    kinds = {"bird": "animal", "fish": "animal", "tree": "plant", "flower": "plant", "tool": "tool"}
    for row in rows(TASKS["Science"]):
        ((thing, choices),) = re.findall(
            r"an? (\w+)\. What is it\?\n\nChoices:\n(.*)\n\nAnswer:", row.prompt, re.DOTALL
        )
        letter, reason = row.answer.split("\n")
        assert dict(line.split(". ") for line in choices.split("\n"))[letter] == kinds[FAMILY[thing]]
        assert reason == f"{words.article(FAMILY[thing]).capitalize()}."


def test_the_simplification_changes_three_words() -> None:
    plain = {**words.QUALITIES, **words.DEEDS, **words.MOMENTS}
    for row in rows(TASKS["German"]):
        hard = body(TASKS["German"], row).split()
        assert row.answer.split() == [plain.get(word, word) for word in hard]
        assert sum(word in plain for word in hard) == 3


def test_the_next_line_uses_a_name_of_the_program() -> None:
    forms: Counter[str] = Counter()
    for row in rows(TASKS["Code"]):
        known = set(re.findall(r"[a-z]+", row.prompt)) | {"print", "return"}
        assert set(re.findall(r"[a-z]+", row.answer)) <= known
        forms[re.sub(r"[a-z]{3,}|\d", "x", row.answer)] += 1
    assert len(forms) == 4  # print and a loop's call look alike


def test_files_in_traces_layout_hold_the_same_rows(tmp_path: Path) -> None:
    _trace_tiny.write(tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 24
    for task in TASKS.values():
        for part, expected in (("train", task.train), ("eval", task.validation), ("test", task.test)):
            read = json.loads((tmp_path / task.name / f"{part}.json").read_text(encoding="utf-8"))
            assert tuple(Row(**row) for row in read) == expected
