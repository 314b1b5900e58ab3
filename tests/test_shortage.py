"""A device whose memory runs out: recognised, written down with the forecast, and gone on with less at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clbench import catalog, plan, runner, shortage, tiny
from clbench.compare import Request
from clbench.model import ImageClassifier
from clbench.pace import Pace
from clbench.plan import Cell
from clbench.record import Record
from clbench.store import CellFolder, Store
from clbench.strategy import Strategy
from clbench.suite import Suite

CPU = torch.device("cpu")
STREAMS = {"tiny": tiny.stream(tasks=2), "tiny-text": tiny.text_stream(tasks=2)}
SUITES = {"tiny": tiny.tiny, "tiny-text": tiny.tiny_text}


def suite_with(name: str = "tiny", **changes: Any) -> Suite:
    return replace(SUITES[name], recipe=SUITES[name].recipe.model_copy(update={"epochs": 1, **changes}))


def cell_of(suite: Suite, method: str = "seqlora", retries: int = 0) -> Cell:
    (cell,) = plan.cells(suite, STREAMS[suite.name], catalog.rows(suite, [method], {}), [0], 0, "cpu")
    return replace(cell, retries=retries)


def finish(cell: Cell, folder: CellFolder | None = None, progress: Any = None) -> Record:
    return runner.run(cell, STREAMS[cell.suite.name], device=CPU, folder=folder, progress=progress)[0]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A device that has room for so many samples in a learning pass, from a task on."""

    def of(samples: int, task: int = 0) -> None:
        forward = Strategy.forward

        def limited(self: Strategy) -> Any:
            if self.task_index >= task and len(self.mb_x) > samples:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
            return forward(self)

        monkeypatch.setattr(Strategy, "forward", limited)

    return of


@pytest.fixture
def folder(tmp_path: Path) -> CellFolder:
    return Store.create(tmp_path).cell("tiny", "any", "key")


class Counting(runner.Silent):
    """Which tasks had an epoch that ended."""

    def __init__(self) -> None:
        self.tasks: list[int] = []

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        self.tasks.append(task)


def events(folder: CellFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]


def test_it_goes_on_with_as_few_at_a_time_as_fit_and_teaches_the_same_batches(
    limit: Callable[..., None], folder: CellFolder
) -> None:
    pieces = finish(cell_of(suite_with(micro_batch=4, eval_batch_size=64)))
    limit(5)
    record = finish(cell_of(suite_with(eval_batch_size=256), retries=3), folder)
    assert (record.status, record.weights_sha256, record.scores) == ("done", pieces.weights_sha256, pieces.scores)
    plain = cell_of(suite_with(eval_batch_size=256))
    assert (record.key, record.recipe) == (plain.key, plain.suite.recipe.facts())
    assert record.marks == ("out of memory: from task 1 on 4 samples at a time, gradients added up over 16",)
    met = record.notes["out_of_memory"]
    assert [(one["micro_batch"], one["then"]) for one in met] == [
        (16, {"micro_batch": 8, "eval_batch_size": 128}),
        (8, {"micro_batch": 4, "eval_batch_size": 64}),
    ]
    assert [event["event"] for event in events(folder)].count("out_of_memory") == 2
    assert finish(cell_of(suite_with())).marks == ()


def test_it_goes_on_after_the_last_finished_task(limit: Callable[..., None], folder: CellFolder) -> None:
    first = runner.Run(cell_of(suite_with()), STREAMS["tiny"], CPU, runner.Silent())
    for index, task in first.lessons():
        first.learn(index, task)
        first.strategy.recipe = first.strategy.recipe.model_copy(update={"micro_batch": 8})
    limit(8, task=1)
    counting = Counting()
    record = finish(cell_of(suite_with(), retries=1), folder, counting)
    assert counting.tasks == [0, 1]
    assert record.weights_sha256 == first.facts()["weights_sha256"]
    assert record.marks == ("out of memory: from task 2 on 8 samples at a time, gradients added up over 16",)


def test_a_killed_run_goes_on_with_as_little(limit: Callable[..., None], folder: CellFolder) -> None:
    class Interrupt(runner.Silent):
        def task(self, task: int, tasks: int) -> None:
            raise KeyboardInterrupt

    limit(8)
    whole = finish(cell_of(suite_with(), retries=1))
    with pytest.raises(KeyboardInterrupt):
        finish(cell_of(suite_with(), retries=1), folder, Interrupt())
    record = finish(cell_of(suite_with()), folder)
    assert (record.weights_sha256, record.marks) == (whole.weights_sha256, whole.marks)
    assert record.notes == whole.notes


def test_unasked_it_fails_and_says_what_could_be_done(limit: Callable[..., None], folder: CellFolder) -> None:
    limit(5, task=1)
    record = finish(cell_of(suite_with()), folder)
    assert record.status == "failed"
    assert str(record.reason).startswith("out of memory while learning task 2 (forecast 0 MiB); lower recipe.batch")
    assert "--retry-oom N" in str(record.reason)
    assert record.notes["out_of_memory"][0]["micro_batch"] == 16
    assert record.notes["out_of_memory"][0]["forecast_mib"] > 0
    assert folder.checkpoint_path.exists()


def test_where_one_sample_is_too_much_it_fails(limit: Callable[..., None]) -> None:
    limit(0)
    record = finish(cell_of(suite_with(batch_size=4), retries=9))
    assert record.status == "failed"
    assert [one["micro_batch"] for one in record.notes["out_of_memory"]] == [4, 2, 1]


def test_of_text_the_forecast_is_written_down(limit: Callable[..., None]) -> None:
    limit(8)
    (met,) = finish(cell_of(suite_with("tiny-text"), retries=1)).notes["out_of_memory"]
    halved = finish(cell_of(suite_with("tiny-text", micro_batch=8)))
    limit(0)
    failed = finish(cell_of(suite_with("tiny-text")))
    assert halved.status == "done"
    assert met["forecast_mib"] > 1
    assert f"forecast {met['forecast_mib']:,.0f} MiB" in str(failed.reason)


def test_while_scoring_only_scoring_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, reply = finish(cell_of(suite_with())), ImageClassifier.reply

    def limited(self: ImageClassifier, inputs: torch.Tensor, *rest: Any) -> Any:
        if len(inputs) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return reply(self, inputs, *rest)

    monkeypatch.setattr(ImageClassifier, "reply", limited)
    record = finish(cell_of(suite_with(eval_batch_size=64), retries=4))
    assert (record.status, record.scores, record.weights_sha256) == ("done", plain.scores, plain.weights_sha256)
    assert record.marks == ("out of memory: from task 1 on fewer samples at a time are scored",)
    assert [one["then"] for one in record.notes["out_of_memory"]] == [{"eval_batch_size": 32}, {"eval_batch_size": 16}]


def test_kept_samples_that_do_not_divide_are_named() -> None:
    cell = cell_of(suite_with(), "replay")  # 8 kept ones to a batch of 16
    marks = [shortage.marks(cell, [{"task": 2, "then": {"micro_batch": size}}], False)[0] for size in (8, 1)]
    assert marks[0] == "out of memory: from task 2 on 8 samples at a time, gradients added up over 16"
    assert "on 1 samples at a time with 1 kept ones (of 8 to a batch), gradients" in marks[1]


def test_that_a_methods_own_terms_see_one_pass_is_said(limit: Callable[..., None]) -> None:
    limit(8)
    (mark,) = finish(cell_of(suite_with(), "olora", retries=1)).marks
    assert mark.endswith("added up over 16; terms of the method's own see one pass at a time")


@pytest.mark.parametrize("name", SUITES)
def test_the_mean_is_that_of_the_batch_also_of_a_last_smaller_one(name: str) -> None:
    """64 samples are batches of 24, 24 and 16; pieces of 7 leave ends of 3 and 2."""

    def learned(**changes: Any) -> torch.Tensor:
        suite = suite_with(name, optimizer="sgd", batch_size=24, learning_rate=0.1, **changes)
        running = runner.Run(cell_of(suite), STREAMS[name], CPU, runner.Silent())
        running.learn(*running.lessons()[0])
        return torch.cat([p.detach().flatten() for p in running.model.trainable()])

    torch.testing.assert_close(learned(micro_batch=7), learned(), rtol=1e-4, atol=1e-5)


def test_the_option_reaches_every_cell_and_changes_no_key() -> None:
    def cells(**asked: Any) -> list[Cell]:
        request = Request(suite="tiny", **asked)
        return request.cells(*request.built(), "cpu", False)[1]

    assert {cell.retries for cell in cells(retry_oom=3)} == {3}
    assert [cell.key for cell in cells(retry_oom=3)] == [cell.key for cell in cells()]
