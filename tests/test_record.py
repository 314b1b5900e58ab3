from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clbench.methods import CONTENTS
from clbench.record import SCHEMA, Audit, Record, TaskCosts

SHARE = st.floats(0, 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = {
    name: st.integers(0, 2**60) if field.annotation is int else st.floats(0, 1e9)
    for name, field in TaskCosts.model_fields.items()
    if name != "phase_seconds"
}
COSTS = st.builds(TaskCosts, **NUMBERS, phase_seconds=st.dictionaries(st.text(), st.floats(0, 1e9), max_size=3))


@st.composite
def records(draw: st.DrawFn) -> Record:
    tasks = draw(st.integers(1, 4))
    row = st.lists(st.none() | SHARE, min_size=tasks, max_size=tasks)
    return Record.example(
        tasks=tuple(draw(st.lists(st.text(), min_size=tasks, max_size=tasks))),
        test_sizes=tuple(draw(st.lists(st.integers(1, 100), min_size=tasks, max_size=tasks))),
        scores=tuple(map(tuple, draw(st.lists(row, min_size=tasks + 1, max_size=tasks + 1)))),
        costs=tuple(draw(st.lists(COSTS, max_size=tasks))),
        router_accuracy=tuple(draw(st.just([]) | row)),
        marks=tuple(draw(st.lists(st.text(), max_size=3))),
        notes=draw(st.dictionaries(st.text(), JSON, max_size=3)),
        params=draw(st.dictionaries(st.text(), JSON, max_size=3)),
        audit=draw(st.none() | st.builds(Audit, samples=st.just(32), batch_flips=st.just(0), label_flips=st.just(1))),
        variant=draw(st.text()),
        contended=draw(st.booleans()),
    )


@given(records())
def test_json_and_back_is_the_same_record(record: Record) -> None:
    text = record.model_dump_json()
    assert Record.model_validate_json(text) == record
    assert Record.model_validate(json.loads(text)) == record


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["scores", "notes", "params", "costs", "router_accuracy"])
def test_no_number_that_json_lacks_is_stored(number: float, place: str) -> None:
    cost = Record.example().costs[0]
    changes: dict[str, Any] = {
        "scores": ((None, None), (number, None), (0.5, 0.9)),
        "notes": {"share": [0.5, {"deep": number}]},
        "params": {"weight": number},
        "costs": ({**cost.model_dump(), "phase_seconds": {"search": number}},),
        "router_accuracy": (None, number),
    }
    with pytest.raises(ValidationError, match=r"finite|NaN"):
        Record.example(**{place: changes[place]})


def test_notes_are_what_will_be_read_back() -> None:
    assert Record.example(notes={"pair": (1, 2)}).notes == {"pair": [1, 2]}
    with pytest.raises(ValidationError, match="plain JSON"):
        Record.example(notes={"set": {1}})


def test_a_record_of_schema_1_has_no_phases_no_inferred_tasks_and_no_marks() -> None:
    example = Record.example()
    content = json.loads(example.model_dump_json())
    content["schema_version"] = 1
    del content["router_accuracy"], content["marks"]
    for cost in content["costs"]:
        del cost["phase_seconds"]
    old = Record.model_validate(content)
    assert old == example.model_copy(update={"schema_version": 1})
    assert (old.router_accuracy, old.marks, old.costs[0].phase_seconds) == ((), (), {})


def test_a_record_of_schema_3_tells_less_of_where_it_was_made() -> None:
    example = Record.example()
    content = json.loads(example.model_dump_json())
    content["schema_version"] = 3
    for name in ("again", "cpu", "driver", "determinism"):
        del content["origin"][name]
    old = Record.model_validate(content)
    assert old == example.model_copy(update={"schema_version": 3})
    assert (old.origin.again, old.origin.determinism) == ("", {})


def test_unknown_fields_are_refused() -> None:
    content = json.loads(Record.example().model_dump_json())
    assert content["schema_version"] == SCHEMA
    with pytest.raises(ValidationError, match="colour"):
        Record.model_validate({**content, "colour": "red"})
    content["origin"]["colour"] = "red"
    with pytest.raises(ValidationError, match="colour"):
        Record.model_validate(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"test_sizes": (10,)},
        {"scores": ((None, None), (1.0, None))},
        {"scores": ((None,), (1.0,), (0.5,))},
        {"router_accuracy": (1.0,)},
        {"status": "done", "reason": "because"},
        {"status": "failed"},
        {"status": "done", "scores": ()},
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Record.example(**changes)


def test_the_example_names_no_method() -> None:
    assert Record.example().method not in CONTENTS
