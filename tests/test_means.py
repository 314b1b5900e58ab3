"""By what means cells are run: what a person says, what is chosen where nothing is said, and where there is room."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from clbench import catalog, executors, plan, tiny
from clbench.cli import app
from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.executors.needs import needs
from clbench.executors.process import CONTEXT_BYTES, Gpu, Processes
from clbench.job import Job
from clbench.means import Means, seconds
from clbench.memory import MIB
from clbench.origin import identity
from clbench.plan import Cell
from clbench.record import Record

GIB = 2**30


def cells(suite_name: str, *methods: str) -> list[Cell]:
    suite = catalog.suite(suite_name)
    return plan.cells(suite, suite.stream(), catalog.rows(suite, methods, {}), [0, 1], 0, "cuda")


def ask(*words: str) -> Result:
    return CliRunner().invoke(app, ["run", "tiny", *words])


# what a person says


@pytest.mark.parametrize("text", ["", "h", "-1", "0", "2 weeks", "1e3", "2h30"])
def test_no_time(text: str) -> None:
    with pytest.raises(BadValue, match="write seconds, or a number with s, min, h or d"):
        seconds(text)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"workers": 2}, "inline is one cell after another"),
        ({"timeout_seconds": 2.0}, "nobody is left to end a cell that hangs"),
        ({"executor": "process", "gpus_per_cell": 1.0}, "on this machine a cell has one GPU"),
        ({"executor": "slurm", "gpus_per_cell": 0.5}, "Slurm gives whole GPUs"),
    ],
)
def test_what_does_not_go_together(said: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadValue, match=reason):
        Means(**said)


def test_an_executor_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no executor called 'rai'.*'ray'"):
        Means(executor="rai")
    done = ask("--executor", "rai", "--store", str(tmp_path / "store"))
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_an_executor_that_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[name], None)
    done = ask("--device", "cpu", "--executor", name, "--store", str(tmp_path))
    assert done.exit_code == 2
    assert f"--executor {name} was asked for" in done.stderr
    assert f"pip install 'clbench[{name}]'" in done.stderr


def test_a_dry_run_says_what_would_run_the_cells(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--threads", "1", "--dry-run", "--store", str(tmp_path / "new"))
    assert "Executor: inline, one cell after another, with 1 thread.\n" in ask(*words).stderr
    done = ask(*words, "--executor", "process", "--workers", "3", "--timeout", "2min")
    assert "Executor: process, 3 workers, each with 1 thread, at most 120 seconds a cell.\n" in done.stderr
    done = ask(*words, "--executor", "ray")
    assert "Executor: ray, as many workers as there is room for, each with 1 thread.\n" in done.stderr
    done = ask(*words[2:], "--executor", "slurm", "--gpus-per-cell", "2", "--device", "cuda")
    assert "on cuda; 3 missing" in done.stderr
    assert "each with 1 thread and 2 GPUs.\n" in done.stderr


# what is chosen


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [10 * GIB, 20 * GIB]
    told = [SimpleNamespace(total_memory=size, uuid=f"0000-{number}") for number, size in enumerate(sizes)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(told))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told[torch.device(device).index or 0])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f,3")


@pytest.mark.usefixtures("two_gpus")
def test_a_process_a_gpu_unless_more_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    means = executors.settled(Means(executor="process"), "cuda")
    assert (means.workers, means.threads) == (2, 4)
    assert executors.in_words(means, "cuda") == "process, 2 workers on 2 GPUs, each with 4 threads"
    assert executors.settled(Means(executor="process"), "cpu").workers == 1
    assert executors.settled(Means(executor="process", workers=3, threads=5), "cpu").threads == 5
    elsewhere = executors.settled(Means(executor="ray"), "cuda")
    assert (elsewhere.workers, elsewhere.threads, elsewhere.gpus_per_cell) == (None, 8, 1.0)
    assert executors.settled(Means(executor="ray", gpus_per_cell=0.5), "cpu").gpus_per_cell is None


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_known_whatever_a_process_calls_it() -> None:
    assert identity(torch.device("cpu")) == "cpu"
    assert identity(torch.device("cuda")) == identity(torch.device("cuda", 0)) == "cuda 0000-0"
    assert identity(torch.device("cuda", 1)) == "cuda 0000-1"


# room on this machine

WORKER = (
    "import json, os, sys, time\n"
    "for line in sys.stdin:\n"
    "    key = line.split()[0]\n"
    "    print(json.dumps({'event': 'taken', 'cell': key, 'gpu': os.environ.get('CUDA_VISIBLE_DEVICES'),\n"
    "                      'pid': os.getpid()}), flush=True)\n"
)
"""Takes whatever it is given, and never answers."""


def told(seat: Any) -> dict[str, Any]:
    """The first line of a worker."""
    until = time.monotonic() + 60
    while not (lines := seat.said()):
        assert time.monotonic() < until
        time.sleep(0.01)
    (line,) = lines
    found: dict[str, Any] = json.loads(line)
    return found


def test_gpus_are_shared_by_what_fits() -> None:
    small, large, big, unknown = (cell(key) for key in ("small", "large", "big", "unknown"))
    sizes = {"small": GIB, "large": 3 * GIB, "big": 12 * GIB}
    place = Processes([sys.executable, "-c", WORKER], 5, [Gpu("7", 10 * GIB), Gpu("GPU-8f", 20 * GIB)], sizes)
    try:
        seats = [place.start(big, "big -"), place.start(large, "large -"), place.start(small, "small -")]
        assert [told(seat)["gpu"] for seat in seats] == ["7", "GPU-8f", "GPU-8f"]
        assert place.start(unknown, "unknown -") is None
        first = seats[0]
        assert first is not None
        first.release()
        alone = place.start(unknown, "unknown -")
        assert alone is first
        assert told(alone)["gpu"] == "7"
        assert place.start(cell("other"), "other -") is None
    finally:
        place.close()


def test_a_worker_stays_for_the_next_cell_and_a_dead_one_is_replaced() -> None:
    place = Processes([sys.executable, "-c", WORKER], 1)
    try:
        seat = place.start(cell("one"), "one -")
        assert seat is not None
        first = told(seat)["pid"]
        assert place.start(cell("two"), "two -") is None
        seat.release()
        assert place.start(cell("two"), "two -") is seat
        assert told(seat) == {
            "event": "taken",
            "cell": "two",
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "pid": first,
        }
        os.kill(first, 9)
        until = time.monotonic() + 60
        while seat.ended() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert seat.ended() == "was ended by SIGKILL"
        seat.stop()
        assert place.start(cell("two"), "two -") is seat
        assert told(seat)["pid"] != first
    finally:
        place.close()


def cell(key: str) -> Any:
    return SimpleNamespace(key=key)


def test_a_cell_needs_what_was_measured_or_else_what_is_forecast() -> None:
    text, images = cells("tiny-text", "seqlora", "joint"), cells("tiny", "ncm")
    first = text[0]
    costs = [cost.model_copy(update={"peak_memory_mib": mib}) for cost in Record.example().costs for mib in (5, 700)]
    on_gpu = Record.example().origin.model_copy(update={"device_kind": "cuda"})
    card = first.protocol.model_dump(mode="json")
    facts = {"suite": "tiny-text", "method": first.method.name, "protocol": card, "costs": tuple(costs[:2])}
    records = [Record.example(origin=on_gpu, **facts), Record.example(**facts)]
    found = needs([*text, *images], tiny.stream(tasks=2), records)
    assert found[first.key] == 700 * MIB
    for cell in (text[1], *images):
        forecast = found[cell.key]
        assert forecast is not None
        assert 0 < forecast < CONTEXT_BYTES


def test_a_cell_of_which_nothing_can_be_told_has_a_card_to_itself() -> None:
    cell = replace(cells("tiny-text", "icl")[0], suite=tiny.tiny)  # a method for text
    assert needs([cell], tiny.stream(tasks=2), []) == {cell.key: None}


# what a worker is told


def test_a_job_goes_over_the_wire_as_text() -> None:
    from clbench.compare import Request

    request = Request(suite="tiny", methods=("ncm",), seeds=(0, 1), tasks=("a",))
    job = Job(request=vars(request), store="s", device="cpu", threads=2, told=("run", "tiny"))
    assert Job.loaded(job.dumped()) == job
    assert Request(**Job.loaded(job.dumped()).request) == request
    assert replace(job, clbench="0").clbench in json.loads(replace(job, clbench="0").dumped())["clbench"]
    assert set(asdict(job)) == set(json.loads(job.dumped()))


def test_ray_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from clbench.executors.ray import Cluster

    def refuse(**named: Any) -> None:
        raise ConnectionError("nobody there.\nmore words")

    stub = SimpleNamespace(init=refuse)
    monkeypatch.setitem(sys.modules, "ray", stub)  # type: ignore[arg-type]
    with pytest.raises(NotAvailable, match=r"Ray cannot be reached \(ConnectionError: nobody there\)"):
        Cluster([], cpus=1, gpus=0.0, workers=None)
