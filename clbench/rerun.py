"""Rerun: a recorded run made again apart from where it is kept, and held against it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console

from clbench import again, catalog, views
from clbench.backbones import without_path
from clbench.errors import ClbenchError, UnknownName
from clbench.files import explain, read_regular
from clbench.outcomes import Outcomes, read_outcomes
from clbench.record import Record
from clbench.repetition import Repetition, judge
from clbench.store import Store, parse_record

if TYPE_CHECKING:
    from clbench.plan import Cell
    from clbench.stream import Stream
    from clbench.suite import Suite

RANDOM = "random weights"
"""How the mark of a suite with random weights begins."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a record does not tell, or what a person wants otherwise."""

    method: str = ""
    """`FILE.py:CLASS` of a method that is not listed: no record says what code to run."""
    folder: Path | None = None
    """Where the suite's files lie."""
    backbone: str = ""
    """NAME@PATH of weights that lie elsewhere."""
    remote_code: bool = False
    """Whether code that came with the backbone may run; a record that says so is no permission."""
    device: str = ""
    """The recorded kind of device where it is not given."""
    threads: int | None = None
    """The recorded number where it is not given."""
    deterministic: bool = False


def recorded(run: str, root: Path, published: bool) -> tuple[Record, Outcomes | None]:
    """The record that `run` means, and its outcomes: a file of it, or a run of the store, see `views.pick`."""
    path = Path(run)
    if path.suffix != ".json":
        store = Store.existing(root)
        loaded = store.load(published=published)
        views.problems(loaded)
        record = views.pick(loaded, store, run)
        return record, loaded.outcomes(record)
    try:
        found, problem = parse_record(read_regular(path), path)
    except OSError as error:
        raise ClbenchError(f"'{path}' could not be read: {error.strerror}; name the file of a record.") from error
    if found is None:
        raise ClbenchError(problem or f"'{path}' is no record.")
    beside = path.with_name("outcomes.npz") if path.name == "record.json" else path.with_suffix(".npz")
    return found, read_outcomes(beside)


def rerun(record: Record, outcomes: Outcomes | None, terms: Terms, keep: Path | None = None) -> Repetition:
    """Make a finished run again, in a store of its own (`keep`, or one that is removed), and hold it against itself.

    Raises ClbenchError where it cannot be made again from what is here.
    """
    _refuse_unfinished(record)
    with _threads(terms.threads or record.origin.threads):
        from clbench import determinism, executors
        from clbench.live import reporter
        from clbench.plan import forecast_seconds

        strictly = terms.deterministic or record.origin.determinism.get("deterministic_algorithms") is True
        device = executors.choose_device(terms.device or record.origin.device_kind)
        with determinism.asked(strictly), _place(keep) as root:
            cell, stream = _cell(record, terms, device.type, strictly)
            store = Store.create(root)
            _refuse_finished(store, cell)
            expected = {cell.key: forecast_seconds(cell, [record])}
            with reporter(Console(stderr=True, highlight=False), 1, expected) as told:
                executors.inline([cell], stream, store, device, told)
            loaded = store.load(cell.suite.name)
            (second,) = [made for made in loaded.records if made.key == cell.key]
            kept = loaded.outcomes(second)
            return judge(record, second, lambda one: outcomes if one is record else kept)


def _refuse_unfinished(record: Record) -> None:
    name = views.run_name(record)
    if record.system:
        raise ClbenchError(f"'{name}' was made by {record.system} and imported; only runs of clbench are made again.")
    if record.status != "done":
        raise ClbenchError(f"'{name}' holds no result to compare with ({record.status}: {record.reason}).")
    if record.suite not in catalog.suites():
        raise UnknownName("suite", record.suite, catalog.suites())


def _refuse_finished(store: Store, cell: Cell) -> None:
    folder = store.cell(cell.suite.name, cell.method.name, cell.key)
    if folder.record_path.exists():
        raise ClbenchError(f"'{folder.path}' holds this run already and is not overwritten; name another --keep.")


@contextlib.contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    try:
        scratch = tempfile.TemporaryDirectory(prefix="clbench-rerun-")
    except OSError as error:
        raise ClbenchError(explain(error, Path(tempfile.gettempdir()))) from error
    with scratch as name:
        yield Path(name)


@contextlib.contextmanager
def _threads(wanted: int) -> Iterator[None]:
    """Rounding depends on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cell(record: Record, terms: Terms, kind: str, deterministic: bool) -> tuple[Cell, Stream]:
    """The cell that a record is of, as today's sources have it, and its stream."""
    import torch

    from clbench import plan
    from clbench.recipe import Recipe

    if record.method not in catalog.methods() and not terms.method:
        raise ClbenchError(f"the method '{record.method}' is not listed; say where it is with --method FILE.py:CLASS.")
    found = catalog.method_type(terms.method or record.method)
    try:
        method, recipe = found.cls(**record.params), Recipe(**record.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ClbenchError(
            f"the record's settings are not those of '{record.method}' here, at '{place}': {first['msg']}; "
            f"check out the version that made it, {record.origin.commit or record.origin.clbench}."
        ) from error
    suite, stream = _suite(record, terms)
    row = plan.Row(method, record.variant, found.fingerprint, recipe, terms.method or record.method)
    (cell,) = plan.cells(suite, stream, [row], [record.seed], record.order_seed, kind)
    cell = _as_asked(cell, suite, record)
    (cell,) = again.told([cell], threads=torch.get_num_threads(), deterministic=deterministic)
    return cell, stream


def _suite(record: Record, terms: Terms) -> tuple[Suite, Stream]:
    """The suite and its stream, of the record's tasks alone where it reads more."""
    from clbench.suite import Files

    backbone = str(record.protocol.get("backbone", ""))
    listed = without_path(catalog.suite(record.suite).backbone)
    weights = "random" if any(mark.startswith(RANDOM) for mark in record.protocol.get("marks", ())) else "default"

    def of(tasks: tuple[str, ...]) -> Suite:
        return catalog.suite(
            record.suite,
            files=Files(folder=terms.folder, tasks=tasks, choices=_choices(record)),
            backbone=terms.backbone or ("" if backbone == listed else backbone),
            remote_code=terms.remote_code,
            weights=weights,
        )

    suite = of(())
    stream = suite.stream(record.order_seed)
    if suite.reads is not None and set(record.tasks) < {task.name for task in stream}:
        suite = of(record.tasks)
        stream = suite.stream(record.order_seed)
    return suite, stream


def _choices(record: Record) -> tuple[tuple[str, str], ...]:
    """In what the record's stream is not as its suite has it."""
    card = record.protocol
    said = dict(line.split(": ", 1) for line in card.get("data", ()) if ": " in line)
    made = {
        "order": said.get("class order", ""),
        "sizes": said.get("classes of each task", ""),
        "short_side": said.get("short side", ""),
        "transform": str(card.get("transform", "")),
        "normalisation": str(card.get("normalisation", "")),
    }
    usual = catalog.suite(record.suite).choices
    return tuple((name, made[name]) for name in usual if made[name] != usual[name])


def _as_asked(cell: Cell, suite: Suite, record: Record) -> Cell:
    """The cell with the protocol of its record: its recipe was the row's own, or the one of all rows."""
    from clbench import plan

    scored_on = record.protocol.get("scored_on", "test")
    for usual in (suite, replace(suite, recipe=cell.suite.recipe)):
        card = usual.taught(cell.suite_protocol).model_copy(update={"scored_on": scored_on})
        terms = plan.terms(usual, card, cell.method, cell.suite.recipe)
        if terms.hash == record.protocol_hash:
            break
    return replace(cell, protocol=terms, suite_protocol=card)
