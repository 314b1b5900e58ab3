"""Runs cells of the tiny suite in children that kill themselves at a given moment; see test_resume.

One order a line on the standard input, one answer a line on the standard output. Importing Avalanche
takes seconds, so all children are forked from this process, which itself never computes anything.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from clbench import catalog, files, plan
from clbench.executors import Quiet, inline
from clbench.model import ImageClassifier
from clbench.pace import Pace
from clbench.plan import Cell
from clbench.store import CellFolder, Store
from clbench.strategy import Strategy

SUITE = catalog.suite("tiny")


class Witness(Quiet):
    """Writes down every epoch that is learned, in a file that outlives the process."""

    def __init__(self, path: Path, partners: int) -> None:
        self.path, self.partners = path, partners

    def cell_started(self, cell: Cell) -> None:
        self.cell = cell.key

    def epoch(self, task: int, tasks: int, epoch: int, epochs: int, loss: float, pace: Pace) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([self.cell, task, epoch, os.getpid()]) + "\n")
        deadline = time.monotonic() + 60
        while self.running() < self.partners and time.monotonic() < deadline:
            time.sleep(0.01)

    def running(self) -> int:
        """How many processes have learned an epoch."""
        return len({json.loads(line)[3] for line in self.path.read_text().splitlines()})


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str, count: int) -> None:
    """Arrange that this process dies when `moment` comes for the `count`-th time."""
    left = itertools.count(count, -1)
    kind, _, what = moment.partition(" ")
    if kind == "forward":  # in the middle of an epoch
        forward = Strategy.forward

        def dying_forward(self: Strategy) -> Any:
            return die() if next(left) == 1 else forward(self)

        Strategy.forward = dying_forward  # type: ignore[method-assign]
    elif kind == "reply":  # while test examples are answered
        reply = ImageClassifier.reply

        def dying_reply(self: ImageClassifier, *args: Any) -> Any:
            return die() if next(left) == 1 else reply(self, *args)

        ImageClassifier.reply = dying_reply  # type: ignore[method-assign]
    elif kind == "writing":  # a file is half written
        mkstemp = tempfile.mkstemp

        def dying_mkstemp(**words: Any) -> tuple[int, str]:
            handle, name = mkstemp(**words)
            if words["prefix"] == f".{what}." and next(left) == 1:
                os.write(handle, b"half of it")
                die()
            return handle, name

        files.tempfile.mkstemp = dying_mkstemp  # type: ignore[assignment]
    elif kind == "logging":  # what is logged has been done
        log = CellFolder.log

        def dying_log(self: CellFolder, event: str, **facts: Any) -> None:
            if event == what and next(left) == 1:
                die()
            log(self, event, **facts)

        CellFolder.log = dying_log  # type: ignore[method-assign]
    else:
        raise ValueError(moment)


def work(order: dict[str, Any]) -> None:
    """What a child does."""
    if order.get("die"):
        die_at(*order["die"])
    stream = SUITE.stream()
    rows = catalog.rows(SUITE, order["methods"], {})
    cells = plan.cells(SUITE, stream, rows, [0], 0, "cpu")
    witness = Witness(Path(order["store"]) / "epochs.jsonl", order.get("children", 1))
    inline(cells, stream, Store.create(Path(order["store"])), torch.device("cpu"), witness)


def child(order: dict[str, Any]) -> int:
    """Fork; returns the child's id."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        work(order)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    import clbench.runner  # noqa: F401  (so that no child has to)

    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        numbers = [child(order) for _ in range(order.get("children", 1))]
        codes = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]
        print(json.dumps(codes), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
