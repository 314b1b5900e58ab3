"""Executors: run the missing cells of a plan and put their records into a store."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from clbench.executors.driver import Place, drive
from clbench.executors.here import DEVICES, Summary, choose_device, follow, inline, missing
from clbench.executors.process import Gpu, Processes, gpus, threads_of
from clbench.executors.reports import Quiet, Reporter, Watcher
from clbench.job import Job
from clbench.means import Means

__all__ = [
    "DEVICES",
    "Quiet",
    "Reporter",
    "Summary",
    "Watcher",
    "choose_device",
    "drive",
    "follow",
    "in_words",
    "inline",
    "missing",
    "place",
    "settled",
]


def settled(means: Means, device_kind: str) -> Means:
    """The same with numbers where the person left the choice: of processes, of threads, of GPUs elsewhere."""
    usual = torch.get_num_threads()
    if means.executor == "process":
        workers = means.workers or max(1, len(_seen(device_kind)))
        return replace(means, workers=workers, threads=threads_of(means.threads, usual, workers))
    on_gpus = (means.gpus_per_cell or 1.0) if device_kind == "cuda" and means.elsewhere else None
    return replace(means, threads=means.threads or usual, gpus_per_cell=on_gpus)


def in_words(means: Means, device_kind: str) -> str:
    """By what cells will be run; `means` as `settled` gave them."""
    each = _counted(means.threads or 1, "thread")
    if means.executor == "inline":
        shared = f" in each of {means.processes} processes" if means.processes > 1 else ""
        return f"inline, one cell after another, with {each}{shared}"
    workers = "as many workers as there is room for" if means.workers is None else _counted(means.workers, "worker")
    many = len(_seen(device_kind)) if means.executor == "process" else 0
    where = f" on {_counted(many, 'GPU')}" if many else ""
    more = f" and {means.gpus_per_cell:g} GPU{'s' if means.gpus_per_cell > 1 else ''}" if means.gpus_per_cell else ""
    limit = f", at most {means.timeout_seconds:g} seconds a cell" if means.timeout_seconds else ""
    return f"{means.executor}, {workers}{where}, each with {each}{more}{limit}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _seen(device_kind: str) -> list[Gpu]:
    """The GPUs of this machine that workers can be shown; none for a CPU."""
    if device_kind != "cuda":
        return []
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), sizes)


def place(
    means: Means, device_kind: str, job: Job, reporter: Reporter, needs: Callable[[], Mapping[str, int | None]]
) -> Place:
    """Where the cells of `job` are run, by `means` as `settled` gave them, which are not inline.

    `needs()`: key -> bytes that a cell is forecast to take; asked for where several share a GPU. Raises NotAvailable
    where a program is not installed or cannot be reached.
    """
    command = [sys.executable, "-P", "-m", "clbench.worker", job.dumped()]
    workers, cpus, on_gpus = means.workers, means.threads or 1, means.gpus_per_cell or 0.0
    if means.executor == "process":
        seen, several = _seen(device_kind), workers or 1
        return Processes(command, several, seen, needs() if several > len(seen) > 0 else {})
    if means.executor == "ray":
        from clbench.executors.ray import Cluster

        cluster = Cluster(command, cpus=cpus, gpus=on_gpus, workers=workers)
        if sentence := cluster.lacks():
            reporter.message(sentence)
        return cluster
    from clbench.executors.slurm import Jobs

    limit, folder = means.timeout_seconds, Path(job.store) / "runs" / ".slurm"
    jobs = Jobs(command, folder, cpus=cpus, gpus=on_gpus, workers=workers, timeout_seconds=limit)
    if jobs.is_local:
        reporter.message("there is no Slurm here; submitit runs the cells as processes of this machine.")
    return jobs
