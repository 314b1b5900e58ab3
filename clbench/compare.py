"""Compare: one `clbench run`, from what was asked to the table."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from clbench import catalog, forecast, memo, views
from clbench.budget import NO_LIMITS, Limits
from clbench.errors import ClbenchError, Parted, UnknownName
from clbench.live import duration, ending, reporter
from clbench.means import Means
from clbench.store import Loaded, Store
from clbench.team import Team, asked, post
from clbench.trackers import watchers

if TYPE_CHECKING:
    from clbench.executors import Reporter, Watcher
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
    remote_code: bool = False
    """Whether code that came with the backbone may run."""
    folder: str = ""
    """Where the suite's files lie; empty for their usual place."""
    tasks: tuple[str, ...] = ()
    """Only these of the files' tasks."""
    retry_oom: int = 0
    """How often a cell may go on with less at a time after its device's memory ran out; no key depends on it."""

    def fingerprints(self) -> list[str]:
        """Of the sources of the methods named; raises where a name or a setting's form is wrong."""
        self._suite({}, catalog.settings(self.settings).get("suite", {}))
        return [catalog.current_fingerprint(spec) for spec in self.methods]

    def built(self) -> tuple[Suite, list[Row]]:
        """The suite as it was asked for, whose stream is made but once, and the methods to compare on it."""
        said = catalog.settings(self.settings)
        suite = self._suite(said.pop("recipe", {}), said.pop("suite", {}))
        suite = replace(suite, make_stream=functools.cache(suite.make_stream))
        return suite, catalog.rows(suite, self.methods, said)

    def cells(
        self, suite: Suite, rows: Sequence[Row], device_kind: str, deterministic: bool, processes: int = 1
    ) -> tuple[Stream, list[Cell]]:
        """The stream, and every cell that was asked for, each with the command that makes it again."""
        import torch

        from clbench import again, plan

        stream = suite.stream(self.order_seed)
        cells = plan.cells(suite, stream, rows, self.seeds, self.order_seed, device_kind)
        told = again.told(cells, threads=torch.get_num_threads(), deterministic=deterministic, processes=processes)
        return stream, [replace(cell, retries=self.retry_oom) for cell in told]

    def rests_on_files(self) -> bool:
        """Whether the cells' keys depend on files that may change: data, or weights at a path."""
        return self._suite({}, {}).reads is not None or "@" in self.backbone

    def _suite(self, recipe: dict[str, str], choices: dict[str, str]) -> Suite:
        from clbench.suite import Files

        folder = Path(self.folder) if self.folder else None
        files = Files(folder=folder, tasks=self.tasks, choices=tuple(choices.items()))
        model: dict[str, Any] = {"backbone": self.backbone, "weights": self.weights, "remote_code": self.remote_code}
        return catalog.suite(self.suite, recipe, files=files, **model)


def run(
    request: Request,
    root: Path,
    *,
    means: Means,
    dry_run: bool,
    publish: bool,
    deterministic: bool = False,
    log: Path | None = None,
    track: Sequence[str] = (),
    limits: Limits = NO_LIMITS,
) -> int:
    """Run what is missing, print the table; returns the exit code.

    `deterministic`: see `clbench.determinism`; `log`, `track`: see `clbench.trackers.watchers`.
    0: every cell is done or declined; 1: one failed, or a process that learned with this one did; 3: the budget did
    not suffice for all; 130: interrupted.
    Raises ClbenchError for what was asked wrongly. A process that only follows prints nothing.
    """
    means = replace(means, processes=asked(means.processes))
    forecast.refuse(limits, dry_run, means.processes)
    here, team = post(), Team(means.processes)
    if here is not None and here.rank:
        return 0 if dry_run else _follow_quietly(request, means, deterministic)
    told: dict[str, Any] = {"deterministic": deterministic, "log": log, "track": track, "limits": limits}
    try:
        with team:
            return _lead(request, root, team, means=means, dry_run=dry_run, publish=publish, **told)
    except Parted as error:
        views.warn(team.loss or str(error))
        return 1


def _lead(
    request: Request,
    root: Path,
    team: Team,
    *,
    means: Means,
    dry_run: bool,
    publish: bool,
    deterministic: bool,
    log: Path | None,
    track: Sequence[str],
    limits: Limits,
) -> int:
    fingerprints = request.fingerprints()  # refuse unknown names before anything is loaded or written
    store = Store.existing(root) if dry_run and root.exists() else Store(root) if dry_run else Store.create(root)
    told = [] if dry_run else watchers(log, track, root)
    device_kind = _device_kind(request.device, means)
    team.device_kind = device_kind
    deterministic |= means.processes > 1 and device_kind == "cuda"  # each process must come to equal bits
    question = memo.question({**vars(request), "device": device_kind, "fingerprints": fingerprints})
    loaded = store.load(request.suite)
    views.problems(loaded)
    keys = None if request.rests_on_files() else memo.recall(store, question)
    if keys is None or not _finished(loaded, keys):
        with _patience("loading PyTorch and Avalanche"):
            suite, rows = _built(request, means)
            if dry_run:
                _print_memory(suite, rows, request.order_seed, means.processes)
            stream, cells = request.cells(suite, rows, device_kind, deterministic, means.processes)
        keys = [cell.key for cell in cells]
        with _determinism(deterministic):
            taught = _Teaching(request, means, device_kind, deterministic, store, loaded, team, limits)
            code = taught.run(cells, stream, dry_run, told)
        if dry_run or code == INTERRUPTED:
            return code
        memo.keep(store, question, keys)
        loaded = store.load(request.suite)
        return _conclude(store, loaded, keys, publish) or code
    typer.echo(f"{_counted(len(keys))} of {request.suite}; nothing is missing.", err=True)
    return 0 if dry_run else _conclude(store, loaded, keys, publish)


def _device_kind(name: str, means: Means) -> str:
    """Where cells run elsewhere, CUDA need not be here."""
    if name == "cpu":
        return name
    if means.elsewhere and (name == "cuda" or (name == "auto" and means.gpus_per_cell)):
        return "cuda"
    from clbench.executors import choose_device

    return choose_device(name).type


def _finished(loaded: Loaded, keys: Sequence[str]) -> bool:
    return set(keys) <= {record.key for record in loaded.records if record.status != "failed"}


def _patience(what: str) -> contextlib.AbstractContextManager[object]:
    console = Console(stderr=True)
    return console.status(what) if console.is_terminal else contextlib.nullcontext()


def _print_memory(suite: Suite, rows: Sequence[Row], order_seed: int, processes: int) -> None:
    """What each method will need, where that can be told from shapes; before any file of weights is read."""
    from clbench import memory

    lines, reasons = memory.told(suite, rows, lambda: suite.stream(order_seed).classes, processes)
    each = [f"in each of {processes} processes:"] if processes > 1 else []
    typer.echo("\n".join([memory.TITLE, *each, views.columns(lines), *reasons, ""]))


def _built(request: Request, means: Means) -> tuple[Suite, list[Row]]:
    import torch

    if means.threads is not None or means.processes > 1:
        torch.set_num_threads(means.threads or max(1, torch.get_num_threads() // means.processes))
    return request.built()


def follow(request: Request, means: Means, device_kind: str, deterministic: bool) -> int:
    """Teach with the process that leads whatever cells it announces, and keep nothing; returns the exit code."""
    from clbench import executors, runner  # noqa: F401  (Avalanche cannot be loaded by a process that already follows)

    with Team(asked(means.processes), device_kind) as team, _determinism(deterministic or device_kind == "cuda"):
        suite, rows = _built(request, means)
        stream, cells = request.cells(suite, rows, device_kind, deterministic)
        executors.follow(cells, stream, executors.choose_device(device_kind), team.assemble())
    return 0


def _follow_quietly(request: Request, means: Means, deterministic: bool) -> int:
    """The same where torchrun has started all processes; what is wrong with the words, the one that leads says."""
    try:
        request.fingerprints()
        device_kind = _device_kind(request.device, means)
    except ClbenchError:
        return 2
    try:
        with Path(os.devnull).open("w") as no, contextlib.redirect_stdout(no), contextlib.redirect_stderr(no):
            return follow(request, means, device_kind, deterministic)
    except Parted:
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _determinism(wanted: bool) -> contextlib.AbstractContextManager[None]:
    from clbench import determinism

    return determinism.asked(wanted)


@dataclass(frozen=True)
class _Teaching:
    """The missing cells of a comparison, run by the means that the person chose."""

    request: Request
    means: Means
    device_kind: str
    deterministic: bool
    store: Store
    loaded: Loaded
    team: Team
    limits: Limits

    def run(self, cells: Sequence[Cell], stream: Stream, dry_run: bool, told: Sequence[Watcher]) -> int:
        """Run what is missing, or only name it; returns 0, INTERRUPTED or `forecast.LEFT_OUT`."""
        from clbench import executors, plan

        todo = executors.missing(cells, self.store)
        expected = {cell.key: plan.forecast_seconds(cell, self.loaded.records) for cell in todo}
        if self.means.processes > 1:  # recorded seconds are of all devices
            expected = {key: seconds and seconds / self.means.processes for key, seconds in expected.items()}
        means = executors.settled(self.means, self.device_kind)
        expected = forecast.filled(todo, expected, stream, self.device_kind, self.limits)
        typer.echo(_announcement(cells, expected), err=True)
        if dry_run:
            typer.echo(f"Executor: {executors.in_words(means, self.device_kind)}.", err=True)
            typer.echo(views.columns([(cell.name, _state(cell, expected)) for cell in cells]))
            forecast.foretell(todo, expected, self.limits, means)
        if dry_run or not todo:
            return 0
        console = Console(stderr=True, highlight=False)
        try:
            batches, left = forecast.batches(cells, todo, expected, self.limits, means)
            with reporter(console, len(todo), expected, told) as everyone:
                for batch in batches:
                    self._run(means, batch, stream, everyone)
        except KeyboardInterrupt:
            kept = len(cells) - len(executors.missing(cells, self.store))
            typer.echo(
                f"Interrupted. {kept} of {_counted(len(cells))} are finished and kept; "
                "the same command goes on after the last finished task.",
                err=True,
            )
            return INTERRUPTED
        if left:
            forecast.tell_left_out(left, expected, self.limits)
        return forecast.LEFT_OUT if left else 0

    def _run(self, means: Means, cells: Sequence[Cell], stream: Stream, told: Reporter) -> None:
        from clbench import executors
        from clbench.job import Job

        job = Job(
            request=vars(self.request),
            store=str(self.store.root.resolve()),
            device=self.device_kind,
            threads=means.threads or 1,
            deterministic=self.deterministic,
            told=tuple(sys.argv[1:]),
        )
        if means.executor == "inline":
            peers = self.team.assemble([sys.executable, "-P", "-m", "clbench.follower", job.dumped()])
            executors.inline(cells, stream, self.store, executors.choose_device(self.device_kind), told, peers)
            return
        from clbench.executors.needs import needs

        place = executors.place(means, self.device_kind, job, told, lambda: needs(cells, stream, self.loaded.records))
        executors.drive(cells, stream, self.store, place, told, means.timeout_seconds)


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
    if not mine:  # the budget was too small for any
        return 0
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
