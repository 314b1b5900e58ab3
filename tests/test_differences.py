"""`clbench compare`: what tells two runs apart, and who wins each task, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner, Result

from clbench.cli import app
from clbench.differences import Absent, explain
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.stats import Outcomes
from clbench.store import Store

CARD = {"suite": "digits", "stream_sha256": "5eed", "scored_on": "test", "epochs": 5, "head_masking": "current"}
TASKS = np.repeat([0, 1], [60, 40]).astype(np.int32)
LABELS = np.zeros(100, dtype=np.int32)


def run(method: str, **changes: Any) -> Record:
    card = {**CARD, **changes.pop("protocol", {})}
    origin = Record.example().origin.model_copy(update=changes.pop("origin", {}))
    fields = {"key": f"{method}0", "protocol": card, "suite_protocol": CARD, "test_sizes": (60, 40), "origin": origin}
    return Record.example(**{**fields, "method": method, **changes})


def right(first: int, second: int) -> Outcomes:
    """Answers that are right on the first so many examples of either task."""
    answers = np.ones(100, dtype=np.int32)
    answers[:first] = answers[60 : 60 + second] = 0
    return {"tasks": TASKS, "labels": LABELS, "round_1": answers, "round_2": answers}


def kept(**outcomes: Outcomes | None) -> Any:
    return lambda record: outcomes[record.method]


def test_only_what_differs_is_named_group_by_group() -> None:
    first = run("a", params={"rank": 4, "kept": 1, "same": 2}, recipe={"epochs": 5}, variant="rank=4")
    second = run(
        "a",
        key="a1",
        params={"rank": 8, "same": 2},
        recipe={"epochs": 5},
        variant="rank=8",
        protocol={"epochs": 9},
        origin={"device": "NVIDIA H200", "device_kind": "cuda", "versions": {"torch": "2.15"}},
    )
    found = explain(first, second, kept(a=None))
    assert [(c.group, c.name, c.old, c.new) for c in found.changes] == [
        ("run", "variant", "rank=4", "rank=8"),
        ("protocol", "epochs", 5, 9),
        ("parameters", "rank", 4, 8),
        ("parameters", "kept", 1, Absent.ABSENT),
        ("versions", "torch", Absent.ABSENT, "2.15"),
        ("hardware", "device", "cpu", "NVIDIA H200"),
        ("hardware", "device_kind", "cpu", "cuda"),
    ]
    assert "seconds and memory are of two devices, cpu and NVIDIA H200, and not comparable" in found.warnings
    assert "they learned for 5 and 9 epochs: compare seconds a sample, not in total" in found.warnings


def test_each_task_is_tested_by_mcnemar_and_adjusted_over_the_tasks() -> None:
    found = explain(run("a"), run("b"), kept(a=right(50, 20), b=right(40, 21)))
    one, two = found.tasks
    assert one.test == two.test == "mcnemar"
    assert not isinstance(one.difference, Undefined)
    assert not isinstance(two.difference, Undefined)
    assert one.difference.p == pytest.approx(binomtest(10, 10).pvalue)
    assert one.difference.mean == pytest.approx(-10 / 60)
    assert one.p_holm == pytest.approx(2 * binomtest(10, 10).pvalue)
    assert (two.difference.p, two.p_holm) == (1.0, 1.0)
    assert (one.winner, two.winner) == (1, 0)
    overall = found.overall.difference
    assert not isinstance(overall, Undefined)
    assert overall.mean == pytest.approx((-10 / 60 + 1 / 40) / 2)
    assert overall.low < overall.mean < overall.high < 0.0
    assert (found.overall.test, found.overall.winner, found.untested) == ("bootstrap", 1, "")


def test_scores_between_right_and_wrong_are_drawn_again() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.2, 0.6, 100).astype(np.float32)
    better = {"tasks": TASKS, "score_2": scores + np.where(TASKS == 0, 0.2, 0.0).astype(np.float32)}
    found = explain(run("a"), run("b"), kept(a={"tasks": TASKS, "score_2": scores}, b=better))
    assert [verdict.test for verdict in found.tasks] == ["bootstrap", "bootstrap"]
    assert [verdict.winner for verdict in found.tasks] == [2, 0]
    assert not isinstance(found.tasks[0].difference, Undefined)
    assert found.tasks[0].difference.mean == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": {"stream_sha256": "07he"}}, "they were asked different test examples, so no paired test"),
        ({"protocol": {"scored_on": "validation"}}, "they were asked different test examples, so no paired test"),
        ({"protocol": {"stream_sha256": "unknown"}}, "it is not known whether they were asked the same test examples"),
        ({"score_name": "strict"}, "their scores are not of one kind, accuracy and strict"),
        ({"status": "failed", "reason": "no luck", "scores": ()}, "the second run is not finished (failed: no luck)"),
    ],
)
def test_why_there_is_no_paired_test(changes: dict[str, Any], reason: str) -> None:
    found = explain(run("a"), run("b", **changes), kept(a=right(50, 20), b=right(40, 21)))
    assert found.untested.startswith(reason)
    assert [verdict.winner for verdict in (*found.tasks, found.overall)] == [0, 0, 0]
    assert [verdict.first for verdict in found.tasks] == [0.5, 0.9]


def test_without_outcomes_there_is_no_paired_test() -> None:
    assert "not kept" in explain(run("a"), run("b"), kept(a=right(50, 20), b=None)).untested


def test_tasks_in_another_order_meet_by_name() -> None:
    turned = run("b", tasks=("b", "a", "c"), test_sizes=(1, 1, 1), scores=((None,) * 3,) * 3 + ((0.1, 0.2, 0.3),))
    found = explain(run("a"), turned, kept(a=None, b=None))
    assert [(v.task, v.first, v.second) for v in found.tasks] == [("a", 0.5, 0.2), ("b", 0.9, 0.1)]


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_shared_device_is_named(which: str) -> None:
    runs = {"first": run("a"), "second": run("b")}
    runs[which] = runs[which].model_copy(update={"contended": True})
    found = explain(runs["first"], runs["second"], kept(a=None, b=None))
    assert found.warnings == (f"the {which} run shared its device with others: its seconds are too long",)


# the command


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("planted"))
    for record, outcomes in ((run("a"), right(50, 20)), (run("b", params={"rank": 8}), right(40, 21))):
        store.cell(record.suite, record.method, record.key).save(record, outcomes)
        store.publish(record, outcomes)
    return store.root


@pytest.mark.parametrize("more", [(), ("--published",)])
def test_the_command_as_text(planted: Path, more: tuple[str, ...]) -> None:
    done = ask("compare", "a", "digits/b/seed0", *more, "--store", planted)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:2] == ["1  digits/a/seed0/a0", "2  digits/b/seed0/b0"]
    assert "  rank          –        → 8" in lines
    assert "  head_masking  current  → –" in lines
    (task,) = [line.split() for line in lines if line.startswith("  a ")]
    assert task[:4] == ["a", "50.00", "50.00", "+0.00"]
    assert task[-3:] == ["0.0039", "mcnemar", "1"]


def test_the_command_as_json(planted: Path) -> None:
    shown = json.loads(ask("compare", "a", "b", "--format", "json", "--store", planted).stdout)
    assert {"group": "parameters", "name": "rank", "new": 8} in shown["changes"]
    assert shown["tasks"][0]["difference"] == pytest.approx(-1000 / 60, rel=1e-5)
    assert (shown["tasks"][0]["winner"], shown["tasks"][1]["winner"]) == (1, None)
    assert shown["sides"]["train_seconds_mean"] == {"unit": "s", "first": 2.0, "second": 2.0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a", "a0"), "'a' and 'a0' are the same run"),
        (("a", "c"), "no run called 'c'. Known: a, b, digits/a, digits/b."),
        (("a", "seed0"), "'seed0' fits 2 runs; name one by its key"),
        (("a", "b", "--format", "csv"), "no format of a comparison called 'csv'"),
    ],
)
def test_the_command_asked_wrongly(planted: Path, words: tuple[str, ...], said: str) -> None:
    done = ask("compare", *words, "--store", planted)
    assert done.exit_code == 2
    assert said in done.stderr
