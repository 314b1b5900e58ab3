"""Leases: one holder at a time, none for ever, and no living holder loses its own to a clock."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from clbench import lease as leases
from clbench.errors import StoreError
from clbench.files import write_atomically
from clbench.lease import MISSED, Watch, held
from clbench.processes import Process

BEAT = 5.0
HOLD = """
import sys, time
from pathlib import Path
from clbench.lease import Watch, held
with held(Path(sys.argv[1]), Watch()) as mine:
    print(mine is not None, flush=True)
    if sys.argv[2:]:
        time.sleep(60)
"""


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watch(clock: Clock | None = None) -> Watch:
    return Watch(clock or Clock(), beat=BEAT)


def far(folder: Path, number: int = 1, beats: int = 1, **changes: object) -> Path:
    """The lease of a process of another machine."""
    facts = {"state": "held", "beat": beats, "host": "elsewhere", "pid": 1, "began": "1", "token": "t", **changes}
    path = folder / f".lease-{number}"
    path.write_text(json.dumps(facts))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def other(folder: Path, *more: str) -> str:
    """Whether another process of this machine could hold the folder."""
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_one_holder_at_a_time_and_the_next_after_it(tmp_path: Path) -> None:
    with held(tmp_path, watch()) as mine:
        assert mine is not None
        assert other(tmp_path) == "False"
        with held(tmp_path, watch()) as again:
            assert again is None
        assert not mine.lost()
    assert other(tmp_path) == "True"
    assert names(tmp_path) == [".lease-2"]
    with held(tmp_path, watch()) as mine:
        assert mine is not None
    assert names(tmp_path) == [".lease-3"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path, how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "long"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        with held(tmp_path, watch()) as mine:
            assert mine is None
        process.send_signal(how)
        # Until `wait` it is a zombie: its number is taken and it is dead all the same.
        deadline = time.monotonic() + 30
        while True:
            with held(tmp_path, watch()) as mine:
                if mine is not None:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.wait()
    assert names(tmp_path) == [".lease-2"]


def test_a_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    facts = Process.here().facts()
    assert not Process.of(facts).ended
    if facts["began"]:  # only Linux tells
        assert Process.of({**facts, "began": "1"}).ended
    assert not Process.of({**facts, "host": "elsewhere", "pid": 2**22 + 1}).ended


def test_another_machines_lease_ends_after_many_missed_beats(tmp_path: Path) -> None:
    clock = Clock()
    seen = watch(clock)
    far(tmp_path)
    for _ in range(MISSED):
        assert seen.acquire(tmp_path) is None
        clock.now += BEAT
    mine = seen.acquire(tmp_path)
    assert mine is not None
    mine.release()
    assert names(tmp_path) == [".lease-2"]


def test_a_beat_begins_the_count_anew(tmp_path: Path) -> None:
    clock = Clock()
    seen = watch(clock)
    for beats in range(5):
        far(tmp_path, beats=beats)
        for _ in range(MISSED):
            assert seen.acquire(tmp_path) is None
            clock.now += BEAT


@pytest.mark.parametrize("jump", [1e9, -1e9, 3600.0])
def test_a_jump_of_the_clock_steals_no_living_lease(tmp_path: Path, jump: float) -> None:
    """Neither of one's own clock, nor of the holder's, which is never looked at."""
    clock = Clock()
    seen = watch(clock)
    for beats in range(3 * MISSED):
        path = far(tmp_path, beats=beats)
        os.utime(path, (clock.now + jump, clock.now - jump))
        clock.now += jump
        assert seen.acquire(tmp_path) is None
        assert seen.acquire(tmp_path) is None


def test_what_stood_still_for_both_is_one_missed_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that hangs for an hour lets nobody beat, and lets the observer read the old content twice."""
    clock = Clock()
    seen = watch(clock)
    far(tmp_path)
    read = Path.read_bytes

    def hanging(path: Path) -> bytes:
        clock.now += 3600
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", hanging)
    for _ in range(MISSED - 1):
        assert seen.acquire(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "held"}', "x" * 5000])
def test_a_torn_lease_is_followed_like_a_silent_one(tmp_path: Path, content: str) -> None:
    clock = Clock()
    seen = watch(clock)
    (tmp_path / ".lease-7").write_text(content)
    for _ in range(MISSED):
        assert seen.acquire(tmp_path) is None
        clock.now += BEAT
    mine = seen.acquire(tmp_path)
    assert mine is not None
    mine.release()
    assert names(tmp_path) == [".lease-8"]


def test_a_holder_that_stood_still_finds_that_it_was_followed(tmp_path: Path) -> None:
    clock = Clock()
    seen = watch(clock)
    still = watch().acquire(tmp_path)
    assert still is not None
    content = still.path.read_bytes()
    for _ in range(MISSED + 1):
        next_one = seen.acquire(tmp_path)
        clock.now += BEAT
    assert next_one is not None
    assert still.lost()
    assert not next_one.lost()
    still.beat()  # it goes nowhere
    still.release()
    assert not next_one.lost()
    assert names(tmp_path) == [".lease-2"]
    assert json.loads(next_one.path.read_bytes())["token"] != json.loads(content)["token"]
    assert other(tmp_path) == "False"
    next_one.release()
    assert other(tmp_path) == "True"


def test_an_observer_that_slept_since_its_look_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saw a free lease 1; before it makes lease 2, others have made 2 and 3 and removed 2."""
    far(tmp_path, state="free")
    make = leases._made

    def late(folder: Path, number: int, beat: float) -> leases.Lease | None:
        far(tmp_path, number=number + 1)
        (tmp_path / ".lease-1").unlink()
        return make(folder, number, beat)

    monkeypatch.setattr(leases, "_made", late)
    assert watch().acquire(tmp_path) is None
    assert names(tmp_path) == [".lease-3"]


def test_many_at_once_and_one_gets_it(tmp_path: Path) -> None:
    far(tmp_path, state="free")
    won: list[leases.Lease] = []
    start = threading.Barrier(16)

    def grab() -> None:
        start.wait()
        mine = watch().acquire(tmp_path)
        if mine is not None:
            won.append(mine)

    threads = [threading.Thread(target=grab) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (mine,) = won
    assert not mine.lost()
    mine.release()


def test_a_holder_beats_by_itself(tmp_path: Path) -> None:
    with held(tmp_path, Watch(beat=0.01)) as mine:
        assert mine is not None
        before = mine.path.read_bytes()
        deadline = time.monotonic() + 30
        while mine.path.read_bytes() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(mine.path.read_bytes()) == len(before)


def test_who_insists_waits_until_it_is_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), []

    def sleep(seconds: float) -> None:
        clock.now += seconds
        looks.append(seconds)
        if beating:
            far(tmp_path, beats=1 + len(looks))

    monkeypatch.setattr(leases.time, "sleep", sleep)
    far(tmp_path)
    beating = True
    with held(tmp_path, watch(clock), insist=True) as mine:
        assert mine is None
    assert len(looks) == 1
    beating = False
    with held(tmp_path, watch(clock), insist=True) as mine:
        assert mine is not None
    assert sum(looks) == pytest.approx((MISSED + 0.5) * BEAT)


def test_a_full_disk_leaves_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(leases.os, "fsync", full)
        with pytest.raises(StoreError, match="no space left"), held(tmp_path, watch()):
            pass
    assert names(tmp_path) == []
    with held(tmp_path, watch()) as mine:
        assert mine is not None
        monkeypatch.setattr(leases.os, "fsync", full)  # on release, too
    monkeypatch.undo()
    assert other(tmp_path) == "True"


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"")
    with pytest.raises(StoreError, match="needs a folder"), held(tmp_path / "file", watch()):
        pass


@pytest.mark.parametrize("what", ["a folder", "a link", "a pipe"])
def test_what_is_no_file_holds_nothing_for_ever(tmp_path: Path, what: str) -> None:
    path, clock = tmp_path / ".lease-1", Clock()
    {"a folder": path.mkdir, "a link": lambda: path.symlink_to("/dev/zero"), "a pipe": lambda: os.mkfifo(path)}[what]()
    observer = watch(clock)
    assert observer.state(path) == "unsure"
    for _ in range(MISSED + 1):
        clock.now += BEAT
        state = observer.state(path)
    assert state == "free"
    with held(tmp_path, observer) as mine:
        assert mine is not None
