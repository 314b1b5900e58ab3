"""Compare: one `clbench run`, from what was asked to the table."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from clbench import catalog, memo, views
from clbench.errors import UnknownName
from clbench.live import duration, ending, reporter
from clbench.store import Loaded, Store
from clbench.trackers import watchers

if TYPE_CHECKING:
    import torch

    from clbench.executors import Watcher
    from clbench.plan import Cell, Row
    from clbench.record import Record
    from clbench.stream import Stream
    from clbench.suite import Suite
    from clbench.tune import Trial

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asked to compare; everything that the cells' keys depend on, in words."""

    suite: str
    methods: tuple[str, ...] = ()
    """Listed names or `FILE.py:CLASS`; empty for the suite's own."""
    settings: tuple[str, ...] = ()
    """The words after `--set`."""
    seeds: tuple[int, ...] = (0,)
    order_seed: int = 0
    device: str = "auto"
    backbone: str = ""
    """In the place of the suite's."""
    weights: str = "default"
    folder: str = ""
    """Where the suite's files lie; empty for their usual place."""
    tasks: tuple[str, ...] = ()
    """Only these of the files' tasks."""

    def fingerprints(self) -> list[str]:
        """Of the sources of the methods named; raises where a name or a setting's form is wrong."""
        self._suite({})
        catalog.settings(self.settings)
        return [catalog.current_fingerprint(spec) for spec in self.methods]

    def built(self) -> tuple[Suite, list[Row]]:
        """The suite as it was asked for, and the methods to compare on it."""
        said = catalog.settings(self.settings)
        suite = self._suite(said.pop("recipe", {}))
        return suite, catalog.rows(suite, self.methods, said)

    def rests_on_files(self) -> bool:
        """Whether the cells' keys depend on files that may change: data, or weights at a path."""
        return self._suite({}).reads is not None or "@" in self.backbone

    def _suite(self, recipe: dict[str, str]) -> Suite:
        from clbench.suite import Files

        files = Files(folder=Path(self.folder) if self.folder else None, tasks=self.tasks)
        return catalog.suite(self.suite, recipe, files=files, backbone=self.backbone, weights=self.weights)


def run(
    request: Request,
    root: Path,
    *,
    threads: int | None,
    dry_run: bool,
    publish: bool,
    log: Path | None = None,
    track: Sequence[str] = (),
) -> int:
    """Run what is missing, print the table; returns the exit code. `log`, `track`: see `clbench.trackers.watchers`.

    0: every cell is done or declined; 1: one failed; 130: interrupted. Raises ClbenchError for what was asked wrongly.
    """
    fingerprints = request.fingerprints()  # refuse unknown names before anything is loaded or written
    store = Store.existing(root) if dry_run and root.exists() else Store(root) if dry_run else Store.create(root)
    told = [] if dry_run else watchers(log, track, root)
    device_kind = _device_kind(request.device)
    question = memo.question({**vars(request), "device": device_kind, "fingerprints": fingerprints})
    loaded = store.load(request.suite)
    views.problems(loaded)
    keys = None if request.rests_on_files() else memo.recall(store, question)
    if keys is None or not _finished(loaded, keys):
        with _patience("loading PyTorch and Avalanche"):
            suite, rows = _built(request, threads)
            if dry_run:
                _print_memory(suite, rows)
            device, stream, cells = _planned(request, suite, rows, device_kind)
        keys = [cell.key for cell in cells]
        interrupted = _teach(cells, stream, store, device, loaded, dry_run, told)
        if dry_run or interrupted:
            return INTERRUPTED if interrupted else 0
        memo.keep(store, question, keys)
        loaded = store.load(request.suite)
    else:
        typer.echo(f"{_counted(len(keys))} of {request.suite}; nothing is missing.", err=True)
        if dry_run:
            return 0
    return _conclude(store, loaded, keys, publish)


def _device_kind(name: str) -> str:
    if name == "cpu":
        return name
    from clbench.executors import choose_device

    return choose_device(name).type


def _finished(loaded: Loaded, keys: Sequence[str]) -> bool:
    return set(keys) <= {record.key for record in loaded.records if record.status != "failed"}


def _patience(what: str) -> contextlib.AbstractContextManager[object]:
    console = Console(stderr=True)
    return console.status(what) if console.is_terminal else contextlib.nullcontext()


def _print_memory(suite: Suite, rows: Sequence[Row]) -> None:
    """What each method will need, where that can be told from shapes; before any file of data or weights is read."""
    from clbench import memory

    lines, reasons = memory.told(suite, rows)
    if lines:
        typer.echo("\n".join([memory.TITLE, views.columns(lines), *reasons, ""]))


def _built(request: Request, threads: int | None) -> tuple[Suite, list[Row]]:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return request.built()


def _planned(
    request: Request, suite: Suite, rows: Sequence[Row], device_kind: str
) -> tuple[torch.device, Stream, list[Cell]]:
    """The device, the stream and every cell that was asked for."""
    from clbench import plan
    from clbench.executors import choose_device

    stream = suite.stream(request.order_seed)
    cells = plan.cells(suite, stream, rows, request.seeds, request.order_seed, device_kind)
    return choose_device(device_kind), stream, cells


def _teach(
    cells: Sequence[Cell],
    stream: Stream,
    store: Store,
    device: torch.device,
    loaded: Loaded,
    dry_run: bool,
    told: Sequence[Watcher],
) -> bool:
    """Run the missing cells, or only name them; True where the person interrupted it."""
    from clbench import executors, plan

    todo = executors.missing(cells, store)
    expected = {cell.key: plan.forecast_seconds(cell, loaded.records) for cell in todo}
    typer.echo(_announcement(cells, expected), err=True)
    if dry_run:
        typer.echo(views.columns([(cell.name, _state(cell, expected)) for cell in cells]))
        return False
    if not todo:
        return False
    console = Console(stderr=True, highlight=False)
    try:
        with reporter(console, len(todo), expected, told) as everyone:
            executors.inline(cells, stream, store, device, everyone)
    except KeyboardInterrupt:
        kept = len(cells) - len(executors.missing(cells, store))
        typer.echo(
            f"Interrupted. {kept} of {_counted(len(cells))} are finished and kept; "
            "the same command goes on after the last finished task.",
            err=True,
        )
        return True
    return False


def _announcement(cells: Sequence[Cell], expected: dict[str, float | None]) -> str:
    known = [seconds for seconds in expected.values() if seconds is not None]
    head = f"{_counted(len(cells))} of {cells[0].suite.name} on {cells[0].device_kind}; "
    if not expected:
        return f"{head}nothing is missing."
    head += f"{len(expected)} missing"
    if not known:
        return f"{head}."
    part = "" if len(known) == len(expected) else f" for {len(known)} of them, the others were never timed here"
    return f"{head}, about {duration(sum(known))}{part}."


def _state(cell: Cell, expected: dict[str, float | None]) -> str:
    if cell.key not in expected:
        return "finished"
    seconds = expected[cell.key]
    return "missing" if seconds is None else f"missing, about {duration(seconds)}"


def _counted(cells: int) -> str:
    return f"{cells} cell{'s' if cells != 1 else ''}"


def _conclude(store: Store, loaded: Loaded, keys: Collection[str], publish: bool) -> int:
    """Print the table that the cells belong to, publish them where asked, and tell what failed."""
    mine = [record for record in loaded.records if record.key in keys]
    exams = {record.suite_hash for record in mine}
    known = {record.method: record.fingerprint for record in mine}
    views.print_tables(views.tables(loaded, [r for r in loaded.records if r.suite_hash in exams], known))
    _print_scores(loaded, mine)
    if publish:
        _publish(store, loaded, mine)
    for record in mine:
        if record.status != "done":
            views.warn(f"{_name(record)} {ending(record)}")
    return int(any(record.status == "failed" for record in mine))


def _print_scores(loaded: Loaded, records: Sequence[Record]) -> None:
    """Where one method was run, its scores task by task, seed by seed."""
    from clbench.report import triangle

    scored = [record for record in records if record.status == "done"]
    if len({record.method for record in scored}) == 1:
        width = shutil.get_terminal_size((120, 24)).columns
        for record in scored:
            typer.echo(f"\n{triangle.text(record, loaded.outcomes(record), width)}")


def _name(record: Record) -> str:
    return f"{record.method}{f' ({record.variant})' if record.variant else ''} seed {record.seed}"


def _publish(store: Store, loaded: Loaded, records: Sequence[Record]) -> None:
    finished = [record for record in records if record.status != "failed"]
    for record in finished:
        store.publish(record, loaded.outcomes(record))
    place = store.root / "records"
    typer.echo(f"{len(finished)} record{'s' if len(finished) != 1 else ''} published in '{place}'.", err=True)


def tune(suite_name: str, spec: str, trials: int, seed: int, device: str, root: Path) -> None:
    """Search a method's settings and print every trial and the `--set` words of the best."""
    if suite_name not in catalog.suites():
        raise UnknownName("suite", suite_name, catalog.suites())
    catalog.current_fingerprint(spec)
    store = Store.create(root)
    with _patience("loading PyTorch and Avalanche"):
        from clbench import tune as search
        from clbench.executors import choose_device

        where = choose_device(device)
        suite, kind = catalog.suite(suite_name), catalog.method_type(spec)
    with reporter(Console(stderr=True, highlight=False), trials, {}) as told:
        result = search.tune(suite, kind, trials=trials, seed=seed, device=where, store=store, reporter=told)
    typer.echo(views.columns([_trial(trial) for trial in result.trials]))
    typer.echo(f"best: trial {result.best.number}; written to '{result.summary_path}'", err=True)
    typer.echo(result.line or f"{result.method} is best as the suite sets it; nothing to --set")


def _trial(trial: Trial) -> tuple[str, ...]:
    score = trial.reason or "failed" if trial.score is None else f"{100 * trial.score:.2f} %"
    values = " ".join(f"{name}={value:g}" for name, value in trial.values.items())
    return f"trial {trial.number}", score, values or "the suite's own settings"
