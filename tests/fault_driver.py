"""Runs `clbench`, and its workers, in children whose clock may jump or who may kill themselves; see test_faults.

One order a line on the standard input, one answer a line on the standard output. Importing Avalanche takes seconds, so
all children are forked from this process, which itself never computes anything.
"""

from __future__ import annotations

import datetime
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch

from clbench import worker

WARM = (
    *("clbench.cli", "clbench.compare", "clbench.runner", "clbench.executors", "clbench.live", "clbench.journal"),
    *("clbench.tiny", "clbench.views", "clbench.table", "clbench.again", "clbench.report.render"),
    *("clbench.report.triangle", "clbench.report.markup", "clbench.methods.seqlora", "clbench.methods.replay"),
    *("clbench.job", "clbench.executors.needs", "clbench.worker", "rich.progress", "scipy.stats"),
)


def jump(seed: int, moment: float) -> None:
    """When this process has computed for `moment` seconds, let it be another day, and much time have passed."""
    from clbench import lease, state, store

    draws = random.Random(seed)
    away, slept = draws.uniform(-1e8, 1e8), draws.choice([0.0, draws.uniform(0, 1e6)])
    real = {name: getattr(time, name) for name in ("time", "monotonic")}

    def jumped(name: str, by: float) -> Callable[[], float]:
        return lambda: real[name]() + (by if time.process_time() >= moment else 0.0)

    class Jumped(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(time.time(), tz)

    time.time, time.monotonic = jumped("time", away), jumped("monotonic", slept)
    lease.Watch.__init__.__defaults__ = (time.monotonic, lease.BEAT_SECONDS, lease.MISSED)
    state.datetime = store.datetime = Jumped  # type: ignore[attr-defined,misc]


def die_after(event: str, count: int) -> None:
    """Arrange that this process is killed before it writes down that `event` came for the `count`-th time."""
    from clbench.store import CellFolder

    log, seen = CellFolder.log, list[str]()

    def dying(self: CellFolder, name: str, **facts: Any) -> None:
        if name == event:
            seen.append(name)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, name, **facts)

    CellFolder.log = dying  # type: ignore[method-assign]


class Forked:
    """In the place of a `subprocess.Popen` of a worker: the same without importing everything anew."""

    def __init__(self, command: Sequence[str], *, stderr: IO[bytes], **rest: Any) -> None:
        theirs_in, mine_out = os.pipe()
        mine_in, theirs_out = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            for standard, handle in enumerate((theirs_in, theirs_out, stderr.fileno())):
                os.dup2(handle, standard)
            os.closerange(3, 1024)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv[1:] = command[-1:]
            worker.main()
        os.close(theirs_in)
        os.close(theirs_out)
        self.stdin, self.stdout = os.fdopen(mine_out, "w"), os.fdopen(mine_in)
        self.returncode: int | None = None
        self._turn = threading.Lock()

    def wait(self, timeout: float = 1e9) -> int:
        end = time.perf_counter() + timeout
        while True:
            with self._turn:
                if self.returncode is None:
                    ended, status = os.waitpid(self.pid, os.WNOHANG)
                    self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            if self.returncode is not None:
                return self.returncode
            if time.perf_counter() > end:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)


def fork_workers(hung: str) -> None:
    """Workers are forked; hours pass for whoever waits for them with each byte of the file `hung`."""
    from clbench import child
    from clbench.executors import driver

    child.subprocess = SimpleNamespace(  # type: ignore[attr-defined,assignment]
        Popen=Forked, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    child.Child.stop.__defaults__ = (0.5,)  # seconds of grace

    def later() -> float:
        return time.monotonic() + 1e5 * (Path(hung).stat().st_size if Path(hung).exists() else 0)

    driver.Driver.__init__.__defaults__ = (None, later)


def run_child(order: dict[str, Any]) -> int:
    """Fork; returns the child's id."""
    number = os.fork()
    if number:
        return number
    os.setpgid(0, 0)
    handle = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):
        os.dup2(handle, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["clbench", *order["words"]]
    if "jump" in order:
        jump(*order["jump"])
    if "workers" in order:
        fork_workers(order["workers"])
    if "die" in order:
        die_after(*order["die"])
    code = 1
    try:
        from clbench import cli

        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status, used = os.wait4(order["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime}
        else:
            answer = {"pid": run_child(order)}
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
