"""What a method infers and says, on its way from a plugin to the record."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clbench import plan, runner, tiny
from clbench.method import Method, Workbench
from clbench.plan import Row
from clbench.record import Record
from clbench.store import CellFolder
from clbench.strategy import Plugin, Strategy

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _light_heap() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # the meter collects garbage before it measures
    yield
    gc.unfreeze()


class Router(Plugin):
    """Infers the task whose class has the best logit, once `since` tasks are taught."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self.since, self.taught = since, 0

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.taught += 1

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        if self.taught >= self.since:
            logits = strategy.model(strategy.mb_x)[:, : 2 * (strategy.task_index + 1)]
            strategy.inferred = logits.argmax(dim=1) // 2

    def state(self) -> dict[str, Any]:
        return {"taught": self.taught}

    def load_state(self, state: dict[str, Any]) -> None:
        self.taught = state["taught"]

    def marks(self) -> list[str]:
        return [f"{self.taught} lessons were heard", "a router"]


class Routing(Method):
    """Trains the head and infers tasks."""

    name = "routing"
    since: int = 1

    def plugins(self, bench: Workbench) -> Sequence[Any]:
        return [Router(self.since)]


class Together(Routing):
    """The same for all tasks at once."""

    name = "together"
    schedule = "joint"


class Twice(Routing):
    """Says everything twice."""

    name = "twice"

    def plugins(self, bench: Workbench) -> Sequence[Any]:
        return [Router(9), Router(9)]


def taught(method: Method, folder: CellFolder | None = None, stop_after: int = -1) -> tuple[Record, runner.Outcomes]:
    """The finished run; interrupted after task `stop_after`."""

    class Stop(runner.Silent):
        def task(self, task: int, tasks: int) -> None:
            if task == stop_after:
                raise KeyboardInterrupt

    stream = tiny.stream()
    (cell,) = plan.cells(tiny.tiny, stream, [Row(method, "", "fp")], [0], 0, "cpu")
    record, outcomes = runner.run(cell, stream, device=CPU, folder=folder, progress=Stop())
    assert record.status == "done", record.reason
    return record, outcomes


@pytest.mark.parametrize(
    ("method", "rounds"),
    [
        (Routing(), [1, 2, 3]),
        (Routing(since=2), [2, 3]),
        (Together(head_masking="seen"), [3]),
        (Routing(since=9), []),
    ],
)
def test_the_record_has_the_share_of_rightly_inferred_tasks_of_each_round(method: Method, rounds: list[int]) -> None:
    record, outcomes = taught(method)
    assert [name for name in outcomes if name.startswith("inferred_")] == [f"inferred_{i}" for i in rounds]
    expected: list[float | None] = [None] * 3
    for i in rounds:
        inferred, seen = outcomes[f"inferred_{i}"], outcomes["tasks"] < i
        assert inferred.dtype == np.int32
        assert inferred[seen].tolist() == (outcomes[f"round_{i}"][seen] // 2).tolist()
        assert set(inferred[~seen].tolist()) <= {-1}
        expected[i - 1] = float((inferred[seen] == outcomes["tasks"][seen]).mean())
    assert list(record.router_accuracy) == (expected if rounds else [])


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_resumed_run_has_the_same_inferred_tasks_and_marks(stop_after: int, tmp_path: Path) -> None:
    folder = CellFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        taught(Routing(), folder, stop_after)
    resumed, whole = taught(Routing(), folder), taught(Routing())
    assert "resumed" in (tmp_path / "log.jsonl").read_text()
    for field in ("router_accuracy", "marks", "scores", "weights_sha256", "audit"):
        assert getattr(resumed[0], field) == getattr(whole[0], field)
    assert set(resumed[1]) == set(whole[1])
    assert all(np.array_equal(resumed[1][name], array) for name, array in whole[1].items())


def test_marks_are_asked_after_the_last_task_and_kept_once() -> None:
    assert taught(Routing())[0].marks == ("3 lessons were heard", "a router")
    assert taught(Twice())[0].marks == ("3 lessons were heard", "a router")


def test_a_method_that_marks_with_something_else_than_sentences_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "marks", lambda self: [0.5])
    with pytest.raises(AssertionError, match=r"marks\.0: Input should be a valid string"):
        taught(Routing())
