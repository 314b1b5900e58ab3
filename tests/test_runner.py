from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin

from clbench import catalog, checkpoint, plan, runner, tiny
from clbench.method import Method, Resources, Workbench
from clbench.pace import Pace
from clbench.plan import Cell, Row
from clbench.record import Record
from clbench.store import CellFolder, Store
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream
from clbench.suite import Suite

CPU = torch.device("cpu")
TRAIN, TEST = 2 * tiny.TRAIN, 2 * tiny.TEST
Hook = Callable[[Strategy], None]


@pytest.fixture(scope="module", autouse=True)
def _light_heap() -> Iterator[None]:
    # The meter collects garbage before it measures; without what the libraries hold that takes no time.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Hooked(Plugin):
    """Does what a test says, after a task and before each scoring batch."""

    def __init__(self, learned: Hook, asked: Hook) -> None:
        super().__init__()
        self.learned, self.asked = learned, asked

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.learned(strategy)

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.asked(strategy)


def nothing(strategy: Strategy) -> None:
    pass


class Probe(Method):
    """Trains the head alone; what else it does is set on the class by `probe`."""

    name = "probe"
    learned: ClassVar[Hook]
    asked: ClassVar[Hook]
    hands_in: ClassVar[Sequence[Any]] = ()
    declared: ClassVar[Resources] = Resources()

    def resources(self) -> Resources:
        return type(self).declared

    def plugins(self, bench: Workbench) -> Sequence[Any]:
        return [Hooked(type(self).learned, type(self).asked), *type(self).hands_in]


def probe(learned: Hook = nothing, asked: Hook = nothing, **more: Any) -> Method:
    fields = {"learned": staticmethod(learned), "asked": staticmethod(asked), **more}
    made: type[Method] = type("Probing", (Probe,), {"__module__": __name__, **fields})
    return made()


def cell_of(
    method: Method, stream: Stream, suite: Suite = tiny.tiny, seed: int = 0, order_seed: int = 0, **card: Any
) -> Cell:
    cell = plan.cells(suite, stream, [Row(method, "", "fp")], [seed], order_seed, "cpu")[0]
    return replace(cell, protocol=cell.protocol.model_copy(update=card))


def taught(
    method: Method, stream: Stream | None = None, folder: CellFolder | None = None, **words: Any
) -> tuple[Record, runner.Outcomes]:
    stream = stream or tiny.stream()
    return runner.run(cell_of(method, stream, **words), stream, device=CPU, folder=folder)


def failure(method: Method, **words: Any) -> str:
    record, outcomes = taught(method, **words)
    assert record.status == "failed"
    assert record.reason is not None
    assert outcomes == {}
    assert "\n" not in record.reason
    assert record.scores == ()
    return record.reason


@cache
def listed(name: str) -> tuple[Record, runner.Outcomes]:
    (row,) = catalog.rows(tiny.tiny, [name], {})
    return taught(row.method)


# scores


@pytest.mark.parametrize("name", ["seqlora", "joint", "ncm"])
def test_scores_are_the_shares_of_right_answers(name: str) -> None:
    record, outcomes = listed(name)
    assert record.status == "done"
    for i, row in enumerate(record.scores):
        answers = outcomes.get(f"round_{i}")
        for j, score in enumerate(row):
            if answers is None or j >= i:
                assert score is None
                continue
            mine = outcomes["tasks"] == j
            right = sum(int(a) == int(b) for a, b in zip(answers[mine], outcomes["labels"][mine], strict=True))
            assert score == right / TEST
    assert record.test_sizes == (TEST, TEST, TEST)


def test_a_joint_run_knows_only_the_last_row() -> None:
    record, outcomes = listed("joint")
    assert [row.count(None) for row in record.scores] == [3, 3, 3, 0]
    assert set(outcomes) == {"labels", "tasks", "round_3"}
    assert len(record.costs) == 1


def test_answers_to_tasks_not_yet_seen_are_missing() -> None:
    _, outcomes = listed("seqlora")
    first = outcomes["round_1"]
    assert set(first[outcomes["tasks"] > 0].tolist()) == {-1}
    assert set(first[outcomes["tasks"] == 0].tolist()) <= {0, 1}
    assert outcomes["labels"].dtype == np.int32


def test_validation_takes_the_tests_place() -> None:
    method = catalog.rows(tiny.tiny, ["ncm"], {})[0].method
    record, outcomes = taught(method, scored_on="validation")
    assert record.test_sizes == (2 * tiny.VALIDATION,) * 3
    assert len(outcomes["labels"]) == 6 * tiny.VALIDATION
    assert record.protocol["scored_on"] == "validation"


def test_the_order_seed_is_the_streams_and_the_seed_the_learners() -> None:
    method = catalog.rows(tiny.tiny, ["ncm"], {})[0].method
    plain, _ = listed("ncm")
    other, _ = taught(method, tiny.stream(order_seed=1), order_seed=1)
    assert (other.order_seed, other.suite_hash == plain.suite_hash) == (1, False)
    assert other.weights_sha256 != plain.weights_sha256
    lora = catalog.rows(tiny.tiny, ["seqlora"], {})[0].method
    seeds = [taught(lora, seed=seed)[0] for seed in (0, 1)]
    assert seeds[0].weights_sha256 == listed("seqlora")[0].weights_sha256
    assert seeds[0].weights_sha256 != seeds[1].weights_sha256
    assert seeds[0].suite_hash == seeds[1].suite_hash


# failures


class Unable(Probe):
    """Declines."""

    def unsupported(self, stream: Stream) -> str | None:
        return f"cannot learn {len(stream)} tasks"


class Curious(Probe):
    """Looks at the test examples while it is asked whether it can do the suite."""

    def unsupported(self, stream: Stream) -> str | None:
        return str(stream.tasks[0].test[0])


def test_a_method_may_decline() -> None:
    record, outcomes = taught(Unable())
    assert (record.status, record.reason, outcomes) == ("unsupported", "cannot learn 3 tasks", {})


def test_declining_does_not_need_the_test_examples() -> None:
    assert "test examples were read while learning" in failure(Curious())


class Odd(Exception):
    """What no harness expects."""


@pytest.mark.parametrize("error", [Odd, ZeroDivisionError, OSError, StopIteration, KeyError, UserWarning])
def test_whatever_a_method_raises_is_a_failed_record(error: type[Exception], tmp_path: Path) -> None:
    def break_down(strategy: Strategy) -> None:
        raise error("went wrong\nand on")

    folder = CellFolder(tmp_path)
    reason = failure(probe(break_down), folder=folder)
    assert reason.startswith(f"{error.__name__} at test_runner.py:")
    assert "went wrong" in reason
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "break_down" in line["traceback"]


def test_the_reason_names_the_line_in_the_methods_own_module() -> None:
    def deep_in_torch(strategy: Strategy) -> None:
        torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(3, 4))

    line = deep_in_torch.__code__.co_firstlineno + 1
    assert failure(probe(deep_in_torch)).startswith(f"RuntimeError at test_runner.py:{line}: ")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_no_memory_is_said_plainly(error: Exception) -> None:
    def run_out(strategy: Strategy) -> None:
        raise error

    assert failure(probe(run_out)).startswith("out of memory while learning task 1 (forecast 0 MiB); lower recipe.bat")


def test_a_loss_that_is_no_number_fails_the_cell() -> None:
    method = catalog.rows(tiny.tiny, ["seqlora"], {"seqlora": {"learning_rate": "1e30"}})[0].method
    reason = failure(method)
    assert "the loss became" in reason
    assert "lower the learning rate" in reason


def test_an_interruption_is_no_failure() -> None:
    def interrupt(strategy: Strategy) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(probe(interrupt))


def test_notes_that_are_no_json_fail_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hooked, "notes", lambda self: {"share": float("nan")}, raising=False)
    assert "notes: Value error, must be plain JSON without NaN" in failure(probe())


# leaks


def test_test_examples_cannot_be_read_while_learning() -> None:
    held: list[Any] = []

    class Holding(Probe):
        learned = staticmethod(lambda strategy: held[0].tasks[0].test[0])
        asked = staticmethod(nothing)

        def unsupported(self, stream: Stream) -> str | None:
            held.append(stream)
            return None

    assert "test examples were read while learning" in failure(Holding())


def test_the_last_scoring_batch_is_gone_before_learning_goes_on() -> None:
    left: list[Any] = []

    class Late(Hooked):
        def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
            left.append(strategy.mbatch)

    record, _ = taught(probe(hands_in=[Late(nothing, nothing)]))
    assert record.status == "done"
    assert not any(left)
    assert len(left) == 3


class Hoarder(Hooked):
    """Keeps what a test says."""

    def __init__(self, samples: int = 0, kib_a_task: int = 0) -> None:
        super().__init__(self.keep, nothing)
        self.samples, self.kib = samples, kib_a_task
        self.hoard = torch.zeros(0, 256)

    def keep(self, strategy: Strategy) -> None:
        self.hoard = torch.cat([self.hoard, torch.zeros(self.kib, 256)])

    def kept_samples(self) -> int:
        return self.samples

    def state(self) -> dict[str, Any]:
        return {"hoard": self.hoard}


def test_more_samples_than_declared_fail_the_cell() -> None:
    declared = Resources(buffer_samples=5)
    assert taught(probe(hands_in=[Hoarder(5)], declared=declared))[0].status == "done"
    assert "probe keeps 6 samples and declared 5" in failure(probe(hands_in=[Hoarder(6)], declared=declared))


def test_more_bytes_than_declared_fail_the_cell() -> None:
    declared = Resources(stored_mib_per_task=0.5)
    assert taught(probe(hands_in=[Hoarder(0, 512)], declared=declared))[0].status == "done"
    reason = failure(probe(hands_in=[Hoarder(0, 513)], declared=declared))
    assert "stored 0.50 MiB more after a task and declared 0.50" in reason


def test_learning_from_test_examples_fails_the_cell() -> None:
    def adapt(strategy: Strategy) -> None:
        with torch.no_grad():
            strategy.model.head.bias += 1e-3

    assert "changed what it has learned while it answered" in failure(probe(asked=adapt))


def test_scoring_and_audit_leave_what_was_learned() -> None:
    stream = tiny.stream()
    running = runner.Run(cell_of(probe(), stream), stream, CPU, runner.Silent())
    running.learn(*running.lessons()[0])
    before = checkpoint.sha256(running.learned())
    running.exam.score(0)
    running.audit()
    running.outcomes()
    assert checkpoint.sha256(running.learned()) == before
    running.learn(*running.lessons()[1])
    assert checkpoint.sha256(running.learned()) != before


@pytest.mark.parametrize("answers", [[True], [False] * 6, [False, False, False, True]])
def test_a_run_that_shared_its_device_says_so(answers: list[bool]) -> None:
    stream, waiting = tiny.stream(), list(answers)
    record, _ = runner.run(
        cell_of(probe(), stream), stream, device=CPU, contended=lambda: waiting.pop(0) if waiting else False
    )
    assert record.contended is any(answers)


# progress


class Diary(runner.Silent):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        assert loss > 0
        assert pace.unit == "images"
        assert pace.amount % tiny.TRAIN == 0
        assert pace.per_second > 0
        self.lines.append(("epoch", task, tasks, epoch, epochs))

    def task(self, task: int, tasks: int) -> None:
        self.lines.append(("task", task, tasks))


@pytest.mark.parametrize(("schedule", "tasks"), [("sequential", [0, 1, 2]), ("joint", [2])])
def test_progress_is_told(schedule: Literal["sequential", "joint"], tasks: list[int]) -> None:
    stream, diary = tiny.stream(), Diary()
    method = probe(schedule=schedule)
    runner.run(cell_of(method.model_copy(update={"head_masking": "seen"}), stream), stream, device=CPU, progress=diary)
    assert diary.lines == [
        line for task in tasks for line in [*(("epoch", task, 3, e, 3) for e in (1, 2, 3)), ("task", task, 3)]
    ]


# Avalanche's own plugins


class Ready(Method):
    """Avalanche's EWC, as it is."""

    name = "ready"

    def plugins(self, bench: Workbench) -> Sequence[Any]:
        return [EWCPlugin(0.1)]


def test_an_avalanche_plugin_runs_and_restarts(tmp_path: Path) -> None:
    stream = tiny.stream()
    cell = cell_of(Ready(), stream)
    folder = Store.create(tmp_path).cell("tiny", "ready", cell.key)

    class Stop(runner.Silent):
        def task(self, task: int, tasks: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(cell, stream, device=CPU, folder=folder, progress=Stop())
    assert not folder.checkpoint_path.exists()
    resumed, _ = runner.run(cell, stream, device=CPU, folder=folder)
    assert resumed.status == "done", resumed.reason
    assert resumed.notes == {"uncounted_plugins": ["EWCPlugin"]}
    whole, _ = runner.run(cell, stream, device=CPU)
    assert (resumed.scores, resumed.weights_sha256) == (whole.scores, whole.weights_sha256)
