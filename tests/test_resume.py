"""Killed at any moment and run again, a cell gives what an uninterrupted run gives and repeats no finished task."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clbench import catalog, checkpoint, plan, runner
from clbench.errors import StoreError
from clbench.files import write_atomically
from clbench.plan import Cell
from clbench.record import Record
from clbench.store import CellFolder, Store
from clbench.strategy import Plugin

CPU = torch.device("cpu")
METHODS = ("replay", "olora", "ewc")
TASKS, EPOCHS = 3, 3
SUITE = catalog.suite("tiny")


@dataclass
class Driver:
    """A process that runs cells in children that may kill themselves."""

    process: subprocess.Popen[str]
    references: dict[str, Path] = field(default_factory=dict)

    def __call__(self, store: Path, *methods: str, **order: Any) -> list[int]:
        """Exit codes of the children; -9 for a killed one."""
        store.mkdir(exist_ok=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"store": str(store), "methods": methods, **order}) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    command = [sys.executable, str(Path(__file__).with_name("resume_driver.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Driver(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def uninterrupted(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """method -> a store in which its cell was run without being disturbed."""

    def made(method: str) -> Path:
        if method not in driver.references:
            driver.references[method] = tmp_path_factory.mktemp(method)
            assert driver(driver.references[method], method) == [0]
        return driver.references[method]

    return made


def result(store: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """Everything in the only record that does not depend on time, and its outcomes."""
    loaded = Store(store).load()
    assert loaded.problems == []
    (record,) = loaded.records
    assert record.status == "done", record.reason
    counts = ("train_samples", "steps", "epochs", "eval_samples", "stored_bytes", "trainable_parameters")
    facts = record.model_dump(include={"key", "scores", "weights_sha256", "audit", "notes", "test_sizes"})
    facts["costs"] = [cost.model_dump(include=set(counts)) for cost in record.costs]
    outcomes = loaded.outcomes(record)
    assert outcomes is not None
    return facts, {name: array.tolist() for name, array in outcomes.items()}


def log(store: Path) -> list[dict[str, Any]]:
    (path,) = store.glob("runs/*/*/*/log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def lessons_learned(store: Path) -> Counter[int]:
    """Task -> how often its last epoch was learned."""
    lines = [json.loads(line) for line in (store / "epochs.jsonl").read_text().splitlines()]
    return Counter(task for _, task, epoch, _ in lines if epoch == EPOCHS)


# A task has 12 steps and each scoring pass one batch a round. What is reused: the tasks finished before.
MOMENTS: dict[str, tuple[list[Any], int]] = {
    "in the middle of the first task": (["forward", 6], 0),
    "in the middle of the second task": (["forward", 18], 1),
    "while writing the first checkpoint": (["writing state.safetensors", 1], 0),
    "while writing the second checkpoint": (["writing state.safetensors", 2], 1),
    "between a checkpoint and its line in the log": (["logging task_done", 2], 2),
    "while scoring for the audit": (["reply", 5], 3),
    "while writing the outcomes": (["writing outcomes.npz", 1], 3),
    "between outcomes and record": (["writing record.json", 1], 3),
}
QUICK = [
    ("replay", "in the middle of the second task"),
    ("replay", "while writing the second checkpoint"),
    ("olora", "in the middle of the first task"),
    ("olora", "between a checkpoint and its line in the log"),
    ("ewc", "in the middle of the second task"),
    ("ewc", "between outcomes and record"),
]
SLOW = [(method, moment) for method in (*METHODS, "treelora", "l2p", "finetune") for moment in MOMENTS]


@pytest.mark.parametrize(
    ("method", "moment"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW if case not in QUICK)],
)
def test_killed_and_run_again(
    driver: Driver, uninterrupted: Callable[[str], Path], tmp_path: Path, method: str, moment: str
) -> None:
    die, finished = MOMENTS[moment]
    assert driver(tmp_path, method, die=die) == [-signal.SIGKILL]
    assert Store(tmp_path).load().records == []
    assert driver(tmp_path, method) == [0]
    assert result(tmp_path) == result(uninterrupted(method))

    reused = [line["reused"] for line in log(tmp_path) if line["event"] == "resumed"]
    names = [task.name for task in SUITE.stream()]
    assert reused == ([names[:finished]] if finished else [])
    unsaved = {1: moment == "while writing the second checkpoint", 0: moment == "while writing the first checkpoint"}
    assert lessons_learned(tmp_path) == {task: 1 + unsaved.get(task, False) for task in range(TASKS)}
    assert {line["event"] for line in log(tmp_path)} <= {"started", "task_done", "resumed", "done"}
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_cell_that_is_killed_again_and_again_still_ends(
    driver: Driver, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    for die in (["forward", 3], ["forward", 20], ["writing state.safetensors", 1], ["forward", 15]):
        assert driver(tmp_path, "olora", die=die) == [-signal.SIGKILL]
    assert driver(tmp_path, "olora") == [0]
    assert result(tmp_path) == result(uninterrupted("olora"))


def test_two_at_once_share_the_cells(driver: Driver, uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    methods = (*METHODS, "seqlora")
    assert driver(tmp_path, *methods, children=2) == [0, 0]
    loaded = Store(tmp_path).load()
    assert loaded.problems == []
    assert sorted(record.method for record in loaded.records) == sorted(methods)
    logs = {path.parent.parent.name: path.read_text().splitlines() for path in tmp_path.glob("runs/*/*/*/log.jsonl")}
    for lines in logs.values():
        events = Counter(json.loads(line)["event"] for line in lines)
        assert events == {"started": 1, "task_done": TASKS, "done": 1}
    epochs = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert Counter((cell, task, epoch) for cell, task, epoch, _ in epochs).most_common(1)[0][1] == 1

    # Each process waits in its first cell until the other has begun one, so these two overlap.
    firsts = {next(cell for cell, _, _, pid in epochs if pid == p) for p in {pid for _, _, _, pid in epochs}}
    assert len(firsts) == 2
    assert firsts <= {record.key for record in loaded.records if record.contended}
    (alone,) = Store(uninterrupted("olora")).load().records
    assert not alone.contended
    (shared,) = [record for record in loaded.records if record.method == "olora"]
    assert (shared.scores, shared.weights_sha256) == (alone.scores, alone.weights_sha256)
    assert list((tmp_path / "runs" / ".running").iterdir()) == []


# checkpoints that are no good, without processes


class Interrupt(runner.Silent):
    """Ctrl-C after a task."""

    def __init__(self, after: int) -> None:
        self.after = after

    def task(self, task: int, tasks: int) -> None:
        if task == self.after:
            raise KeyboardInterrupt


def a_cell(method: str = "seqlora", seed: int = 0) -> Cell:
    return plan.cells(SUITE, SUITE.stream(), catalog.rows(SUITE, [method], {}), [seed], 0, "cpu")[0]


def finish(cell: Cell, folder: CellFolder | None) -> tuple[Record, runner.Outcomes]:
    return runner.run(cell, SUITE.stream(), device=CPU, folder=folder)


@pytest.fixture
def interrupted(tmp_path: Path) -> CellFolder:
    """A cell that has learned two of three tasks."""
    cell = a_cell()
    folder = Store.create(tmp_path).cell("tiny", "seqlora", cell.key)
    with pytest.raises(KeyboardInterrupt):
        runner.run(cell, SUITE.stream(), device=CPU, folder=folder, progress=Interrupt(1))
    assert folder.checkpoint_path.exists()
    return folder


@pytest.fixture(scope="module")
def whole() -> tuple[Record, runner.Outcomes]:
    return finish(a_cell(), None)


def with_changes(content: bytes, **changes: Any) -> bytes:
    return checkpoint.pack({**checkpoint.unpack(content), **changes})


def without_a_tensor(content: bytes) -> bytes:
    state = checkpoint.unpack(content)
    del state["learned"]["model"]["head.bias"]
    return checkpoint.pack(state)


def altered(content: bytes, seed: int) -> bytes:
    """With one byte of a tensor changed."""
    draws, header = random.Random(seed), 8 + int.from_bytes(content[:8], "little")
    place = draws.randrange(header, len(content))
    return content[:place] + bytes([content[place] ^ draws.randrange(1, 256)]) + content[place + 1 :]


SPOILED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "torn": (lambda content: content[: len(content) // 2], "no checkpoint"),
    "empty": (lambda content: b"", "no checkpoint"),
    "foreign": (lambda content: b"{}" * 1000, "no checkpoint"),
    "incomplete": (lambda content: checkpoint.pack({"key": 1}), "of another cell"),
    "of another cell": (lambda content: with_changes(content, key="other"), "of another cell"),
    "of another version": (lambda content: with_changes(content, made_by={"torch": "1.0"}), "made by"),
    "without a tensor": (without_a_tensor, "tensors are not those"),
    "altered": (lambda content: altered(content, 0), "does not have the hash"),
    "altered elsewhere": (lambda content: altered(content, 1), "does not have the hash"),
    "altered at the end": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "does not have the hash"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_bad_checkpoint_is_set_aside_and_the_cell_starts_afresh(
    interrupted: CellFolder, whole: tuple[Record, runner.Outcomes], how: str
) -> None:
    spoil, reason = SPOILED[how]
    content = spoil(interrupted.checkpoint_path.read_bytes())
    interrupted.checkpoint_path.write_bytes(content)
    threads = torch.get_num_threads()
    record, outcomes = finish(a_cell(), interrupted)
    assert (record.scores, record.weights_sha256) == (whole[0].scores, whole[0].weights_sha256)
    assert all(np.array_equal(outcomes[name], whole[1][name]) for name in whole[1])
    lines = [json.loads(line) for line in (interrupted.path / "log.jsonl").read_text().splitlines()]
    (aside,) = [line for line in lines if line["event"] == "checkpoint_set_aside"]
    assert reason in aside["reason"]
    assert interrupted.checkpoint_path.with_name(aside["file"]).read_bytes() == content
    assert torch.get_num_threads() == threads


def test_a_resumed_run_keeps_threads_start_and_what_was_measured(
    interrupted: CellFolder, whole: tuple[Record, runner.Outcomes]
) -> None:
    before = checkpoint.unpack(interrupted.checkpoint_path.read_bytes())["state"]
    early = {**before, "started": "2026-01-01T00:00:00+00:00", "contended": True}
    interrupted.checkpoint_path.write_bytes(with_changes(interrupted.checkpoint_path.read_bytes(), state=early))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        record, _ = finish(a_cell(), interrupted)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert record.origin.threads == threads
    assert record.origin.started == "2026-01-01T00:00:00+00:00"
    assert record.contended
    assert [cost.model_dump() for cost in record.costs[:2]] == before["costs"]
    assert record.scores == whole[0].scores


def test_a_checkpoint_that_cannot_be_written_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Record, runner.Outcomes]
) -> None:
    """A full disk is no fault of the method: no failed record, and what was saved before stays."""
    cell = a_cell()
    folder = Store.create(tmp_path).cell("tiny", "seqlora", cell.key)
    saved: list[Path] = []

    def full(path: Path, content: bytes) -> None:
        if saved:
            raise StoreError(f"no space left to write '{path}'")
        saved.append(path)
        write_atomically(path, content)

    monkeypatch.setattr(runner, "write_atomically", full)
    with pytest.raises(StoreError, match="no space left"):
        finish(cell, folder)
    assert saved == [folder.checkpoint_path]
    monkeypatch.undo()
    record, _ = finish(cell, folder)
    assert record.weights_sha256 == whole[0].weights_sha256
    reused = [json.loads(line).get("reused") for line in (folder.path / "log.jsonl").read_text().splitlines()]
    assert [SUITE.stream().tasks[0].name] in reused


def test_a_plugin_that_refuses_its_state_starts_afresh(
    interrupted: CellFolder, whole: tuple[Record, runner.Outcomes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: runner.Run, content: bytes) -> int:
        self.model.head.weight.data.zero_()
        raise RuntimeError("no")

    monkeypatch.setattr(runner.Run, "unpack", refuse)
    record, _ = finish(a_cell(), interrupted)
    assert record.weights_sha256 == whole[0].weights_sha256


def test_every_listed_plugin_that_has_a_state_takes_it_back() -> None:
    """A plugin that gives a state and takes none back would lose its memory silently."""
    for name in catalog.methods():
        if a_cell(name).method.unsupported(SUITE.stream()):
            continue
        running = runner.Run(a_cell(name), SUITE.stream(), CPU, runner.Silent())
        for plugin in running.ours:
            kind = type(plugin)
            assert kind.state is Plugin.state or kind.load_state is not Plugin.load_state, kind
