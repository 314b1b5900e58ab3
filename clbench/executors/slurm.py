"""Slurm: workers as jobs of a Slurm cluster, through submitit; without Slurm as processes here, through the same."""

from __future__ import annotations

import contextlib
import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clbench.child import show
from clbench.errors import NotAvailable
from clbench.executors.wire import LAST
from clbench.plan import Cell

USUAL_SECONDS = 24 * 3600.0
"""A job's limit where no --timeout is given; SBATCH_TIMELIMIT overrules it."""
START_SECONDS = 600.0
"""More than a cell may take: its worker must load and plan."""


class Submitted:
    """A worker that does one cell as a job."""

    def __init__(self, job: Any) -> None:
        self._job, self._read, self._over = job, 0, False
        self.answered = False

    def said(self) -> list[str]:
        """What its log has got since last asked, whole lines."""
        try:
            with Path(self._job.paths.stdout).open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:  # not begun, or not seen yet on a shared file system
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

    def ended(self) -> str | None:
        """How it ended; asked of Slurm once a minute at most."""
        if not self._job.done():
            return None
        if not self._over:  # once more, for what was said since
            self._over = True
            return None
        last = _last_words(Path(self._job.paths.stderr)).removeprefix("RuntimeError: ")
        return f"in job {self._job.job_id} {last or f'ended ({self._job.state})'}"

    def release(self) -> None:
        """It leaves by itself."""
        self.answered = True

    def stop(self) -> None:
        """Cancel the job."""
        with contextlib.suppress(Exception):  # it has ended, or Slurm does not answer
            self._job.cancel(check=False)


class Jobs:
    """A place: Slurm where there is one, else processes of this machine by submitit's local executor.

    What else a job needs (partition, account, memory) sbatch takes from its own variables, SBATCH_PARTITION and so on.
    Raises NotAvailable where submitit is not installed.
    """

    patience: float | None = None

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        cpus: int,
        gpus: float,
        workers: int | None,
        timeout_seconds: float | None,
    ) -> None:
        submitit = _imported()
        self._command, self._workers, self._jobs = list(command), workers, list[Submitted]()
        self._executor = submitit.AutoExecutor(folder=folder.resolve())
        self.is_local = self._executor.cluster == "local"
        if self.is_local and workers is None:
            self._workers = 1
        limit = timeout_seconds + START_SECONDS if timeout_seconds is not None else USUAL_SECONDS
        self._executor.update_parameters(
            name="clbench",
            timeout_min=math.ceil(limit / 60),
            tasks_per_node=1,
            cpus_per_task=cpus,
            gpus_per_node=int(gpus),
        )

    def start(self, cell: Cell, order: str) -> Submitted | None:
        """Submit it; Slurm's queue does the waiting."""
        if self._workers is not None:
            self._jobs = [job for job in self._jobs if job.ended() is None]
            if len(self._jobs) >= self._workers:
                return None
        job = Submitted(self._executor.submit(show, self._command, str(Path.cwd()), {}, [order, LAST]))
        self._jobs.append(job)
        return job

    def close(self) -> None:
        """Cancel what is left."""
        for job in self._jobs:
            if not job.answered and job.ended() is None:
                job.stop()


def _last_words(path: Path) -> str:
    """The last line of a log that says something, without what submitit puts before it."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in path.read_text("utf-8", "replace").splitlines()]
        said = [line for line in lines if line and not re.match(r"submitit|srun: ", line)]
        return said[-1][:300] if said else ""
    return ""


def _imported() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise NotAvailable(
            "--executor slurm was asked for and submitit is not installed here "
            f"({error}); pip install 'clbench[slurm]'."
        ) from error
