"""Options: what several commands ask for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clbench.store import Store

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="See 'clbench list suites'.")]
SuiteNames = Annotated[list[str] | None, typer.Argument(metavar="[SUITE]...", help="All when not given.")]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Folder of the records; $CLBENCH_STORE or 'results' when not given."),
]
Published = Annotated[bool, typer.Option("--published", help="Read the published records instead of the runs.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="METHOD.field=value", help="Or recipe.field=value, suite.field=value. See 'clbench show NAME'."
    ),
]
Log = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Append what happens to it, as JSON lines with the time.")
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="tensorboard|wandb", help="Also tell this program; again for more."),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where to learn.")]
RetryOom = Annotated[
    int, typer.Option(min=0, metavar="N", help="Out of memory, go on with half the samples at a time, up to N times.")
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="On a GPU only operations that give equal bits in equal runs.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads, if not PyTorch's choice.")]
Executor = Annotated[
    str,
    typer.Option(
        "--executor", metavar="inline|process|ray|slurm", help="What runs the cells; inline: one by one here."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Cells at once. When not given: processes, one a GPU or one; ray and slurm, as there is room.",
    ),
]
GpusPerCell = Annotated[
    float | None, typer.Option("--gpus-per-cell", min=0.01, help="For ray, also parts, and slurm; 1 on GPUs.")
]
Timeout = Annotated[
    str, typer.Option("--timeout", metavar="TIME", help="End a cell that takes longer, as 90, 30min or 2h; not inline.")
]
DataParallel = Annotated[
    int,
    typer.Option("--data-parallel", min=1, metavar="N", help="Processes that share a cell's batches, a device each."),
]
Backbone = Annotated[
    str,
    typer.Option(
        "--backbone", metavar="NAME[@PATH]", help="In the place of the suite's; see 'clbench list backbones'."
    ),
]
Weights = Annotated[
    str,
    typer.Option("--weights", metavar="default|random", help="The backbone's weights; random ones are for timing."),
]
From = Annotated[
    Path | None, typer.Option("--from", metavar="DIR", help="Where the suite's files lie, if it reads any.")
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method", metavar="NAME|FILE.py:CLASS", help="A method; again for more. The suite's own when not given."
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME", help="Only this task of the suite's files; again for more."),
]
EvalSamples = Annotated[
    int | None,
    typer.Option("--eval-samples", min=1, help="Ask so many test examples of a task, all of them after the last task."),
]
Measure = Annotated[
    bool,
    typer.Option("--measure", help="With --dry-run: try a few steps of each method; hours, memory and disk of it all."),
]
Budget = Annotated[
    str,
    typer.Option(
        "--budget", metavar="TIME", help="Start only what is forecast to end in it, whole seeds first: 90m, 2h30m, 1d."
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that came with the backbone; it may do anything."),
]
Format = Annotated[str, typer.Option("--format", metavar="text|json", help="How to print it.")]


def root(store: Path | None) -> Path:
    """The folder of the records."""
    return store or Path(os.environ.get("CLBENCH_STORE") or "results")


def existing(store: Path | None) -> Store:
    """The store, which must be there."""
    from clbench.store import Store

    return Store.existing(root(store))
