"""Ray: workers on the nodes of a Ray cluster, wherever it finds room for a cell."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clbench.child import talk
from clbench.errors import NotAvailable
from clbench.executors.wire import LAST
from clbench.plan import Cell

LEAVE_SECONDS = 2.0
"""So long workers may take together to leave before the cluster is left."""
FORWARDED = ("CLBENCH_", "HF_")
"""How the environment's variables begin that a worker must have as they are here."""


class Task:
    """A worker that does one cell on some node."""

    def __init__(self, ray: Any, generator: Any) -> None:
        self._ray, self._generator = ray, generator
        self._lines, self._how = queue.SimpleQueue[str](), ""
        self.answered = False
        self._listener = threading.Thread(target=self._listen, name="ray", daemon=True)
        self._listener.start()

    def said(self) -> list[str]:
        """Its lines."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return lines

    def ended(self) -> str | None:
        """How it ended; also that of a node that was lost."""
        return None if self._listener.is_alive() or not self._lines.empty() else self._how

    def release(self) -> None:
        """It leaves by itself."""
        self.answered = True

    def stop(self) -> None:
        """Have Ray end it; the worker sees that nobody waits any more."""
        with contextlib.suppress(Exception):  # it has ended, or the cluster is gone
            self._ray.cancel(self._generator, force=True)

    def join(self, seconds: float) -> None:
        """Wait until it has left, so long at most."""
        self._listener.join(seconds)

    def _listen(self) -> None:
        try:
            for line in self._generator:
                self._lines.put(self._ray.get(line))
        except Exception as error:  # of Ray's, for whatever was lost, or the task's own
            self._how = _words(error)


def _words(error: Exception) -> str:
    """What Ray says of a lost task, in a few words."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, RuntimeError):
        return str(cause)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"was lost ({type(error).__name__}: {first[:200].rstrip('.')})"


class Cluster:
    """A place: the cluster that RAY_ADDRESS names or that runs here, else one started on this machine.

    Raises NotAvailable where Ray is not installed or the cluster cannot be reached.
    """

    patience: float | None = None

    def __init__(self, command: Sequence[str], *, cpus: int, gpus: float, workers: int | None) -> None:
        ray = _imported()
        self._ray, self._command, self._workers = ray, list(command), workers
        self._needs = {"CPU": float(cpus), "GPU": float(gpus)}
        try:
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
        except Exception as error:
            first = str(error).partition("\n")[0].rstrip(".")
            raise NotAvailable(
                f"Ray cannot be reached ({type(error).__name__}: {first}); see RAY_ADDRESS and 'ray status'."
            ) from error
        needs = {"num_cpus": cpus, "num_gpus": gpus}
        # Lost workers are replaced by the driver, which sees whether they come further.
        self._talk = ray.remote(talk).options(num_returns="streaming", max_retries=0, **needs)
        self._tasks = list[Task]()

    def start(self, cell: Cell, order: str) -> Task | None:
        """Hand it to Ray, which places it when a node has room."""
        self._tasks = [task for task in self._tasks if task.ended() is None]
        if self._workers is not None and len(self._tasks) >= self._workers:
            return None
        given = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
        task = Task(self._ray, self._talk.remote(self._command, str(Path.cwd()), given, [order, LAST]))
        self._tasks.append(task)
        return task

    def lacks(self) -> str:
        """A sentence for who waits in vain; '' where some node can take a cell."""
        wanted = {name: amount for name, amount in self._needs.items() if amount}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
            return ""
        words = " and ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        return f"no node of the Ray cluster has {words}, which a cell asks for; cells wait until one joins."

    def close(self) -> None:
        """End what is left and take leave; a cluster started here ends."""
        for task in self._tasks:
            if not task.answered and task.ended() is None:
                task.stop()
        until = time.monotonic() + LEAVE_SECONDS
        for task in self._tasks:
            task.join(max(0.0, until - time.monotonic()))
        self._ray.shutdown()


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # who listens on must not start another cluster
    os.environ.setdefault("RAY_worker_niceness", "0")  # of one started here: its seconds are compared with others
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise NotAvailable(
            f"--executor ray was asked for and Ray is not installed here ({error}); pip install 'clbench[ray]'."
        ) from error
