"""Worker: a process that does the cells that it is told by key; started by `clbench.executors`, not by a person.

Its one argument is a `clbench.job.Job` as JSON. Its standard input holds orders, see `clbench.executors.wire`; when
that ends, nobody waits any more and the worker leaves at once. On its standard output it says how far it has come.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from clbench import __version__, interrupts
from clbench.compare import Request
from clbench.errors import ClbenchError
from clbench.job import Job

LEAVE_SECONDS = 5.0
"""So long a cell that nobody waits for may take to put down what it holds."""
INTERRUPTED = 130


class Orders:
    """What stands on the standard input, read by a thread of its own."""

    def __init__(self, source: IO[str]) -> None:
        self._source, self._orders = source, queue.SimpleQueue[str]()
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Key and mark of each cell, until there is nothing more to do."""
        while order := self._orders.get():
            key, _, mark = order.partition(" ")
            yield key, mark

    def _listen(self) -> None:
        for line in self._source:
            self._orders.put(line.strip())
        self._orders.put("")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(LEAVE_SECONDS)
        os._exit(INTERRUPTED)  # something does not let itself be interrupted


def _channel() -> IO[str]:
    """The standard output, which from now on is nobody else's: what others print goes to the standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


class Bench:
    """The cells of a job, planned once."""

    def __init__(self, job: Job) -> None:
        import torch

        from clbench.executors import choose_device
        from clbench.store import Store

        if job.clbench != __version__:
            raise ClbenchError(f"a worker has clbench {__version__}, and the cells were planned by {job.clbench}.")
        sys.argv[1:] = job.told
        torch.set_num_threads(job.threads)
        self.device = choose_device(job.device)
        self.store = Store.create(Path(job.store))
        request = Request(**job.request)
        self.stream, cells = request.cells(*request.built(), job.device, job.deterministic)
        self.cells = {cell.key: cell for cell in cells}

    def do(self, key: str, old: str, told: Any) -> tuple[str, str]:
        """Do a cell; what became of it, and its record's mark if there is one now."""
        from clbench.executors.here import attempt, folder_of
        from clbench.executors.wire import mark

        if key not in self.cells:
            raise ClbenchError(
                "a worker plans other cells from the same words: the sources of clbench or of a method, the data or "
                "the backbone's weights are not the same there."
            )
        cell = self.cells[key]
        place = folder_of(self.store, cell).path
        while (done := attempt(cell, old, self.stream, self.store, self.device, told)) is None:
            if place in self.store.watch.settle([place]):
                return "held", ""
        return "made" if done.ours else "elsewhere", mark(done.record)


def work(job: Job, orders: Iterable[tuple[str, str]], channel: IO[str]) -> None:
    """Do all cells that are ordered."""
    from clbench import determinism
    from clbench.executors.wire import Speaker

    def say(line: str) -> None:
        try:
            channel.write(f"{line}\n")
            channel.flush()
        except OSError as error:
            raise KeyboardInterrupt from error  # nobody listens any more

    speaker, bench = Speaker(say), None
    with determinism.asked(job.deterministic):
        for key, old in orders:
            speaker.key = key
            speaker.say("taken")
            try:
                bench = bench or Bench(job)
                answer, mark = bench.do(key, old, speaker)
                speaker.say(answer, mark=mark)
            except ClbenchError as error:
                speaker.say("refused", why=str(error))


def main() -> None:
    """Be a worker."""
    signal.signal(signal.SIGINT, interrupts.interrupt)  # also where a shell had it ignored
    channel, code = _channel(), 0
    try:
        work(Job.loaded(sys.argv[1]), Orders(sys.stdin), channel)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception:  # its last line is what the driver tells
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # at once: the thread that waits for orders holds the standard input


if __name__ == "__main__":
    main()
