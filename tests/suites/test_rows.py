"""Rows of text as tasks: what of a task's parts cannot be used."""

from __future__ import annotations

import pytest

from clbench.errors import BadValue
from clbench.suites import _rows
from clbench.suites._rows import Parts, Shape
from clbench.text import Row

SHAPE = Shape("letter", "", ":", 8)


@pytest.mark.parametrize("blank", ["", " \n", "\u3000"])
def test_a_task_that_would_teach_only_silence_is_refused(blank: str) -> None:
    rows = [Row(f"{i}:", "A") for i in range(6)]
    silent = [Row(row.prompt, blank) for row in rows[:2]]
    with pytest.raises(BadValue, match="no training row of task 'moods' has an answer; give it some, or leave"):
        _rows.assemble("moods", SHAPE, Parts(silent, rows[2:4], rows[4:]))
    mixed = _rows.assemble("moods", SHAPE, Parts([*silent, rows[2]], rows[3:4], rows[4:]))
    assert mixed.train == (rows[2],)


def test_prompts_that_come_again_in_the_test_are_counted() -> None:
    train, test = [Row("a:", "A"), Row("b:", "B")], [Row("c:", "A"), Row("c:", "A"), Row("d:", "B")]
    assert list(_rows.repetitions(train, test)) == ["The 3 test rows hold 2 different prompts."]
