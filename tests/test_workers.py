"""Workers in other processes, on nodes and in jobs make the records that an inline run makes, whatever is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clbench.store import Store

pytestmark = pytest.mark.slow
MISHAPS = Path(__file__).with_name("mishaps.py")
UNLUCKY = f"{MISHAPS}:Unlucky"
METHODS = ("seqlora", "ncm", UNLUCKY)


def command(store: Path, *words: str, methods: tuple[str, ...] = METHODS) -> list[str]:
    named = [word for method in methods for word in ("--method", method)]
    plain = ["--device", "cpu", "--threads", "1", "--store", str(store)]
    return [sys.executable, "-m", "clbench", "run", "tiny", *named, *plain, *words]


def environment(mishap: str = "") -> dict[str, str]:
    return {**os.environ, "CLBENCH_TEST_MISHAP": mishap}


def run(store: Path, *words: str, mishap: str = "", **kwargs: Any) -> subprocess.CompletedProcess[str]:
    asked = command(store, *words, **kwargs)
    return subprocess.run(asked, env=environment(mishap), capture_output=True, text=True, check=False, timeout=600)


def results(store: Path) -> dict[str, tuple[Any, ...]]:
    """Method -> everything in its only record that does not depend on time or place, and its outcomes."""
    loaded = Store(store).load()
    assert loaded.problems == []
    found = {}
    for record in loaded.records:
        assert record.status == "done", record.reason
        outcomes = loaded.outcomes(record)
        assert outcomes is not None
        facts = record.model_dump(include={"key", "scores", "weights_sha256", "audit", "notes", "test_sizes"})
        counts = [(cost.steps, cost.epochs, cost.train_samples, cost.stored_bytes) for cost in record.costs]
        found[record.method] = (facts, counts, {name: array.tolist() for name, array in outcomes.items()})
    assert len(found) == len(loaded.records)
    return found


def log(store: Path, method: str) -> list[dict[str, Any]]:
    (path,) = store.glob(f"runs/*/{method}/*/log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(store: Path, method: str) -> list[str]:
    return [line["event"] for line in log(store, method)]


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    """What stands in the file once it is there."""
    until = time.monotonic() + 300
    while not (path.exists() and path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    return path.read_text()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """The results of an inline run."""
    store = tmp_path_factory.mktemp("inline")
    done = run(store)
    assert done.returncode == 0, done.stderr
    return results(store)


def test_two_processes_of_which_one_is_killed(inline: dict[str, tuple[Any, ...]], tmp_path: Path) -> None:
    words = ("--executor", "process", "--workers", "2")
    done = run(tmp_path, *words, mishap=f"kill:{tmp_path / 'marker'}")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == inline
    assert "unlucky seed 0: a worker was ended by SIGKILL; another one goes on" in done.stderr
    (lost,) = [line for line in log(tmp_path, "unlucky") if line["event"] == "worker_lost"]
    assert lost["how"].startswith("was ended by SIGKILL")
    (resumed,) = [line for line in log(tmp_path, "unlucky") if line["event"] == "resumed"]
    assert resumed["reused"] == ["0 1"]
    pids = {
        line["pid"] for method in ("seqlora", "ncm") for line in log(tmp_path, method) if line["event"] == "started"
    }
    assert os.getpid() not in pids


def test_a_cell_that_fails_takes_no_other_down(tmp_path: Path) -> None:
    methods = (f"{MISHAPS}:Leaving", f"{MISHAPS}:Raising", "ncm")
    done = run(tmp_path, "--executor", "process", methods=methods)
    assert done.returncode == 1, done.stderr
    records = {record.method: record for record in Store(tmp_path).load().records}
    assert {name: record.status for name, record in records.items()} == {
        "leaving": "failed",
        "raising": "failed",
        "ncm": "done",
    }
    assert str(records["raising"].reason).endswith("out of luck")
    assert records["leaving"].reason == (
        "a worker left with exit code 7; 3 were lost without finishing a task in between."
    )
    assert events(tmp_path, "leaving") == [*(["started", "worker_lost"] * 3), "failed"]


def test_ctrl_c_ends_the_workers_and_leaves_what_to_resume(inline: dict[str, tuple[Any, ...]], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    asked = command(tmp_path, "--executor", "process", methods=(UNLUCKY,))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(asked, env=environment(f"wait:{marker}"), **pipes) as driver:
        worker = int(wait_for(marker, driver))
        driver.send_signal(signal.SIGINT)
        _, told = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert "Interrupted. 0 of 1 cell are finished and kept" in told
    assert gone(worker)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["state.safetensors"]
    assert list((tmp_path / "runs" / ".running").iterdir()) == []
    done = run(tmp_path, "--executor", "process", methods=(UNLUCKY,))
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == {"unlucky": inline["unlucky"]}
    assert events(tmp_path, "unlucky")[:4] == ["started", "task_done", "started", "resumed"]


def test_jobs_of_slurms_stand_in(inline: dict[str, tuple[Any, ...]], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    words = ("--executor", "slurm", "--workers", "2")
    done = run(tmp_path, *words, mishap=f"kill:{tmp_path / 'marker'}")
    assert done.returncode == 0, done.stderr
    assert "there is no Slurm here; submitit runs the cells as processes of this machine." in done.stderr
    assert results(tmp_path) == inline
    assert "resumed" in events(tmp_path, "unlucky")


# Ray


class Cluster:
    """A Ray cluster with two nodes that have room for one cell each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.orders = process.stdin
        line = process.stdout.readline()
        assert line, process.communicate()
        self.address, self.raylets = json.loads(line).values()

    def lose_node_of(self, worker: int) -> None:
        """Kill the node that a worker is on."""
        (raylet,) = set(ancestors(worker)) & set(self.raylets)
        self.orders.write(f"{raylet}\n")
        self.orders.flush()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    asked = [sys.executable, str(Path(__file__).with_name("ray_cluster.py"))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    own = {**os.environ, "RAY_worker_niceness": "0"}
    with subprocess.Popen(asked, env=own, text=True, **pipes) as process:
        yield Cluster(process)
        process.communicate(timeout=120)


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_a_node_that_is_lost_in_mid_run(inline: dict[str, tuple[Any, ...]], cluster: Cluster, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    own = {**environment(f"wait:{marker}"), "RAY_ADDRESS": cluster.address}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    methods = (UNLUCKY, "seqlora", "ncm")
    with subprocess.Popen(command(tmp_path, "--executor", "ray", methods=methods), env=own, **pipes) as driver:
        worker = int(wait_for(marker, driver))
        cluster.lose_node_of(worker)
        _, told = driver.communicate(timeout=400)
    assert driver.returncode == 0, told
    assert gone(worker)
    assert results(tmp_path) == inline
    # Ray's word of the lost node and the end of the process on it race for the driver's ear.
    assert any(f"unlucky seed 0: a worker was {how}" in told for how in ("lost", "ended by"))
    (resumed,) = [line for line in log(tmp_path, "unlucky") if line["event"] == "resumed"]
    assert resumed["reused"] == ["0 1"]
    assert events(tmp_path, "unlucky").count("task_done") == 3
    assert "worker_lost" not in events(tmp_path, "seqlora") + events(tmp_path, "ncm")
