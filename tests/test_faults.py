"""Whatever happens to a comparison, at any moment, the same command goes on: nothing is lost and no number is wrong.

Moments are drawn from a seed and told by how long a process has computed, so that they do not depend on how busy the
machine is. CLBENCH_FAULT_MOMENTS says how many there are of each fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clbench import upkeep
from clbench.record import Record
from clbench.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's account of a process's time"),
]

MOMENTS = range(int(os.environ.get("CLBENCH_FAULT_MOMENTS", "3")))
METHODS = ("seqlora", "replay")
TASKS = 3
SETTINGS = ("--set", "recipe.epochs=1", "--threads", "1")


@dataclass
class Child:
    """A process that runs `clbench`."""

    server: Server
    pid: int
    out: Path

    def at(self, seconds: float) -> bool:
        """Wait until it has computed so long; False where it ends before."""
        return computed(self.pid, seconds)

    def end(self) -> int:
        """Its exit code; negative where a signal ended it."""
        code: int = self.server.ask(wait=self.pid)["code"]
        return code

    def said(self) -> str:
        return self.out.read_text(errors="replace")


@dataclass
class Server:
    """The process that children are forked from."""

    process: subprocess.Popen[str]
    folder: Path
    count: int = 0

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(self, *words: str, **order: Any) -> Child:
        self.count += 1
        out = self.folder / f"said-{self.count}"
        return Child(self, self.ask(words=words, out=str(out), **order)["pid"], out)

    def compare(self, store: Path, *more: str, **order: Any) -> Child:
        """The comparison that all tests make."""
        named = [word for method in METHODS for word in ("--method", method)]
        return self.start("run", "tiny", *named, *SETTINGS, "--store", str(store), *more, **order)


def computed(pid: int, seconds: float) -> bool:
    """Wait until process `pid` has computed for `seconds`; False where it ends before."""
    try:
        while int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) < seconds * 1e9:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return False
            time.sleep(0.001)
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    command = [sys.executable, str(Path(__file__).with_name("fault_driver.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Server(process, tmp_path_factory.mktemp("said"))
        assert process.stdin is not None
        process.stdin.close()


@dataclass
class Whole:
    """The comparison undisturbed."""

    facts: dict[str, Any]
    bytes: int
    """On the disk."""
    cpu: float


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    store = tmp_path_factory.mktemp("whole")
    child = server.compare(store)
    answer = server.ask(wait=child.pid)
    assert answer["code"] == 0, child.said()
    used = sum(path.stat().st_blocks * 512 for path in store.rglob("*") if path.is_file())
    return Whole(facts(store), used, answer["cpu"])


def facts(store: Path) -> dict[str, Any]:
    """Of each cell with a result, by key, what does not depend on time, and the bytes of its outcomes."""
    found = {}
    for path in records(store):
        record = Record.model_validate_json(path.read_bytes())
        kept = record.model_dump(include={"status", "reason", "scores", "weights_sha256", "audit", "notes", "marks"})
        found[record.key] = (kept, path.with_name("outcomes.npz").read_bytes())
    return found


def records(store: Path) -> dict[Path, bytes]:
    """Those of results; one of a cell that took too long gives way to a result."""
    found = {path: path.read_bytes() for path in store.glob("runs/*/*/*/record.json")}
    return {path: text for path, text in found.items() if b"--timeout and was ended" not in text}


def draw(fault: str, moment: int) -> random.Random:
    return random.Random(f"{fault} {moment}")


def refuse_torn(store: Path, whole: Whole) -> None:
    """Whatever is there now is whole and right."""
    if not (store / "runs").is_dir():
        return
    assert upkeep.check(Store(store)).wrong == []
    assert Store(store).load().problems == []
    assert facts(store).items() <= whole.facts.items()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def goes_on(server: Server, store: Path, whole: Whole, repeats: int = 1) -> None:
    """The same command again gives everything, keeps what was finished, and repeats no task that was."""
    refuse_torn(store, whole)
    before = records(store)
    again = server.compare(store)
    assert again.end() == 0, again.said()
    assert facts(store) == whole.facts
    assert before.items() <= records(store).items()
    checked = upkeep.check(Store(store))
    assert (checked.wrong, checked.cells, checked.unfinished, checked.unlisted) == ([], len(METHODS), 0, 0)
    assert list(store.glob("runs/[!.]*/**/*.tmp")) == []
    assert list((store / "runs" / ".running").iterdir()) == []
    for path in store.glob("runs/*/*/*/log.jsonl"):
        done = Counter(line["finished"] for line in lines(path) if line["event"] == "task_done")
        assert max(done.values(), default=0) <= repeats, path.read_text()


# who computes is ended


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_ended_by_a_signal(server: Server, whole: Whole, tmp_path: Path, name: str, moment: int) -> None:
    number, child = signal.Signals[name], server.compare(tmp_path)
    ended = child.at(draw(name, moment).uniform(0, whole.cpu)) and not os.kill(child.pid, number)
    code = child.end()
    assert code in (0, 130 if name == "SIGINT" else -number), child.said()
    assert ended or code == 0
    assert "Traceback" not in child.said(), child.said()
    goes_on(server, tmp_path, whole)


# the store


@contextlib.contextmanager
def mounted(*words: str, at: Path) -> Iterator[None]:
    """Something mounted for the length of the block; skips where that is not permitted."""
    done = subprocess.run(["mount", *words, str(at)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def room(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_disk_is_full(server: Server, whole: Whole, tmp_path: Path, moment: int) -> None:
    """A file system of its own with room for a part of what is written."""
    with mounted("-t", "tmpfs", "-o", "size=16m", "clbench-test", at=tmp_path):
        ballast, left = tmp_path / "ballast", draw("full", moment).randrange(2 * whole.bytes)
        ballast.write_bytes(b"\0" * (room(tmp_path) - left))
        child = server.compare(tmp_path / "store")
        code = child.end()
        assert code in (0, 2), child.said()
        assert ("no space left to write" in child.said()) == (code == 2)
        assert "Traceback" not in child.said()
        refuse_torn(tmp_path / "store", whole)
        ballast.unlink()
        goes_on(server, tmp_path / "store", whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_store_can_only_be_read(server: Server, whole: Whole, tmp_path: Path, moment: int) -> None:
    """From a moment on; what is there can still be listed, and stays."""
    child = server.compare(tmp_path)
    if child.at(draw("read-only", moment).uniform(0, whole.cpu)):
        os.kill(child.pid, signal.SIGKILL)
    child.end()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with mounted("--bind", str(tmp_path), at=tmp_path):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path)], check=True)
        refused = server.compare(tmp_path)
        assert refused.end() == 2, refused.said()
        assert "is not writable" in refused.said()
        assert "Traceback" not in refused.said()
        listed = server.start("list", "runs", "--store", str(tmp_path))
        assert listed.end() == 0, listed.said()
        assert all((key in listed.said()) == (key in facts(tmp_path)) for key in whole.facts)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    goes_on(server, tmp_path, whole)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_a_checkpoint_is_spoiled(server: Server, whole: Whole, tmp_path: Path, how: str, moment: int) -> None:
    """Cut off anywhere, or one byte of a tensor is another."""
    draws = draw(how, moment)
    count = draws.choice([n for n in range(1, TASKS * len(METHODS) + 1) if n % TASKS])
    child = server.compare(tmp_path, die=["task_done", count])
    assert child.end() == -signal.SIGKILL
    (path,) = tmp_path.rglob("*.safetensors")
    if how == "truncated":
        os.truncate(path, draws.randrange(path.stat().st_size))
    else:
        content = bytearray(path.read_bytes())
        content[draws.randrange(8 + int.from_bytes(content[:8], "little"), len(content))] ^= draws.randrange(1, 256)
        path.write_bytes(content)
    spoiled = path.read_bytes()
    goes_on(server, tmp_path, whole, repeats=2)
    (aside,) = tmp_path.rglob("*.aside-*")
    assert aside.read_bytes() == spoiled
    assert "checkpoint_set_aside" in {line["event"] for line in lines(aside.parents[1] / "log.jsonl")}


# several, and clocks


def taken_up(store: Path) -> dict[str, int]:
    """Key of each cell -> how often a process began it."""
    return {
        path.parent.name: sum(line["event"] == "started" for line in lines(path))
        for path in store.glob("runs/*/*/*/log.jsonl")
    }


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_drivers_on_one_store(server: Server, whole: Whole, tmp_path: Path, moment: int) -> None:
    """One of them is killed at every other moment; the other does what is left."""
    draws = draw("two", moment)
    first = server.compare(tmp_path)
    first.at(draws.uniform(0, whole.cpu / 2))
    second = server.compare(tmp_path)
    killed = moment % 2 == 0 and first.at(draws.uniform(0, whole.cpu)) and not os.kill(first.pid, signal.SIGKILL)
    assert first.end() in ((0, -signal.SIGKILL) if killed else (0,)), first.said()
    assert second.end() == 0, second.said()
    assert max(taken_up(tmp_path).values()) <= 1 + bool(killed)
    assert facts(tmp_path) == whole.facts
    goes_on(server, tmp_path, whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_clocks_jump(server: Server, whole: Whole, tmp_path: Path, moment: int) -> None:
    """By years, in either of two drivers, while one waits for what the other holds: none takes over from the other."""
    draws = draw("clock", moment)
    both = [server.compare(tmp_path, jump=[2 * moment + one, draws.uniform(0, whole.cpu)]) for one in range(2)]
    assert [child.end() for child in both] == [0, 0], [child.said() for child in both]
    assert taken_up(tmp_path) == dict.fromkeys(whole.facts, 1)
    goes_on(server, tmp_path, whole)


# workers


def worker_of(driver: Child) -> int:
    """The process that a driver has started; 0 where it ends before."""
    while computed(driver.pid, 0):
        with contextlib.suppress(OSError):
            if started := Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split():
                return int(started[0])
        time.sleep(0.001)
    return 0


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_is_killed(server: Server, whole: Whole, tmp_path: Path, moment: int) -> None:
    """Another goes on for it, and the person need do nothing."""
    driver = server.compare(tmp_path / "store", "--executor", "process", workers=str(tmp_path / "hung"))
    worker = worker_of(driver)
    if killed := computed(worker, draw("worker", moment).uniform(0, whole.cpu)):
        os.kill(worker, signal.SIGKILL)
    assert driver.end() == 0, driver.said()
    assert killed or "was ended by SIGKILL" not in driver.said()
    assert facts(tmp_path / "store") == whole.facts
    goes_on(server, tmp_path / "store", whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_hangs(server: Server, whole: Whole, tmp_path: Path, moment: int) -> None:
    """Its cell is ended by the time-out, the other cells are done."""
    hung, store = tmp_path / "hung", tmp_path / "store"
    driver = server.compare(store, "--executor", "process", "--timeout", "10h", workers=str(hung))
    worker = worker_of(driver)
    if stopped := computed(worker, draw("hang", moment).uniform(0.02, whole.cpu)):
        os.kill(worker, signal.SIGSTOP)
        while computed(worker, 0):  # hours pass, again and again: what it has said may not have been heard yet
            with hung.open("a") as hours:
                hours.write(".")
            time.sleep(0.5)
    code = driver.end()
    late = "took longer than the 36000 seconds of --timeout and was ended" in driver.said()
    assert code == int(late), driver.said()
    assert stopped or not late
    assert len(facts(store)) == len(METHODS) - late
    goes_on(server, store, whole)
