"""Views: what is printed of the catalogue and of a store, as text or as JSON."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clbench import catalog
from clbench.errors import ClbenchError, UnknownName
from clbench.report.grid import as_json, clean

if TYPE_CHECKING:
    from clbench.method import Method
    from clbench.record import Record
    from clbench.store import Loaded, Store
    from clbench.suite import Contender, Suite
    from clbench.table import Table

KINDS = ("methods", "suites", "backbones", "runs")
LIST_FORMATS = ("text", "json")
MOST_RUNS = 12
"""How many runs a sentence may list."""


def warn(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"clbench: {clean(text)}", err=True)


def to_json(value: Any) -> str:
    """Readable JSON."""
    return as_json(value, default=str).rstrip("\n")


def columns(lines: Iterable[Sequence[str]]) -> str:
    """Lines of words, set in columns two spaces apart.

    >>> print(columns([("a", "one", ""), ("bcd", "two", "x")]))
    a    one
    bcd  two  x
    """
    table = [[clean(word) for word in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(f"{w:{n}}" for w, n in zip(line, widths, strict=True)).rstrip() for line in table)


# tables


def problems(loaded: Loaded) -> None:
    """Warn of every file of a store that was left out."""
    for problem in loaded.problems:
        warn(problem)


def tables(loaded: Loaded, records: Iterable[Record], known: Mapping[str, str] | None = None) -> tuple[Table, ...]:
    """Tables of some of the records, those of a changed method marked as stale.

    `known` are the fingerprints of methods that were given by their file. Of such a method that is not known, the
    source of its latest record counts.
    """
    from clbench.table import make_tables

    chosen = list(records)
    current = {**catalog.current_fingerprints(), **(known or {})}
    return _headed(make_tables(chosen, stale=_stale(chosen, current), outcomes=loaded.last_outcomes))


def _headed(made: Sequence[Table]) -> tuple[Table, ...]:
    """The tables, those of another backbone than their suite's with its name in their heading."""
    from clbench import arrange

    listed = {table.suite for table in made} & catalog.suites().keys()
    return arrange.headed(made, {name: catalog.suite(name).backbone for name in listed})


def _stale(records: Iterable[Record], current: Mapping[str, str]) -> frozenset[str]:
    """Keys of the records whose method has changed; of one without a current fingerprint the latest record counts."""
    chosen = sorted(records, key=lambda record: record.origin.started)
    now = {**{record.method: record.fingerprint for record in chosen}, **current}
    return frozenset(record.key for record in chosen if now[record.method] != record.fingerprint)


def print_tables(made: Sequence[Table], format: str = "text") -> None:
    """Print tables on stdout; text takes the width of a terminal, and 120 columns elsewhere."""
    from clbench.report.render import render

    if format != "text" or not sys.stdout.isatty():
        typer.echo(render(made, format), nl=False)
        return
    from rich.console import Console

    from clbench.report.text import print_text

    for table in made:
        print_text(table, Console(highlight=False))


def records_of(store: Store, suite: str, published: bool) -> tuple[Loaded, list[Record]]:
    """The records of one suite; ClbenchError where there is none, UnknownName where the suite is unknown too."""
    loaded = store.load(suite, published)
    problems(loaded)
    if not loaded.records:
        if suite not in catalog.suites():
            raise UnknownName("suite", suite, catalog.suites())
        shelf = " published" if published else ""
        raise ClbenchError(f"the store '{store.root}' holds no{shelf} record of '{suite}'; {_advice(suite, published)}")
    return loaded, loaded.records


def _advice(suite: str, published: bool) -> str:
    return f"run 'clbench run {suite}{' --publish' if published else ''}' first or pass another --store."


@dataclass(frozen=True)
class Shelf:
    """What a store holds of one suite."""

    suite: str
    loaded: Loaded
    records: tuple[Record, ...]
    stale: frozenset[str]
    """Keys of the records whose method has changed since."""
    tables: tuple[Table, ...]


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Thousands of records are no garbage, and looking through them for some takes a sixth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_without_collecting()
def shelves(store: Store, suites: Sequence[str], published: bool) -> list[Shelf]:
    """The records and tables of `suites`, or of all that the store holds."""
    from clbench.table import make_tables

    found = []
    current = catalog.current_fingerprints()
    for suite in dict.fromkeys(suites) if suites else _held(store, published):
        loaded, records = records_of(store, suite, published)
        changed = _stale(records, current)
        made = _headed(make_tables(records, stale=changed, outcomes=loaded.last_outcomes))
        found.append(Shelf(suite, loaded, tuple(records), changed, made))
    return found


def contenders(suite: str) -> tuple[Contender, ...]:
    """The methods that a suite lists; none where the suite is not listed itself."""
    return catalog.suite(suite).contenders if suite in catalog.suites() else ()


def _held(store: Store, published: bool) -> list[str]:
    loaded = store.load(published=published)
    if not loaded.records:
        problems(loaded)
        shelf = " published" if published else ""
        raise ClbenchError(f"the store '{store.root}' holds no{shelf} record; {_advice('SUITE', published)}")
    return sorted({record.suite for record in loaded.records})


# one run


def one_run(store: Store, run: str, published: bool, note: str) -> Record:
    """The record that `run` means, see `pick`, among those of a store."""
    loaded = store.load(published=published)
    problems(loaded)
    return pick(loaded, store, run, note)


def pick(loaded: Loaded, store: Store, run: str, note: str = "") -> Record:
    """The record that `run` means: SUITE, METHOD, seedN and the start of a KEY, any of them, joined by '/'.

    Of several that fit, those whose notes hold `note` count. Raises ClbenchError unless exactly one is left.
    """
    fitting = [record for record in loaded.records if _fits(record, run.split("/"))]
    if len(fitting) == 1:
        return fitting[0]
    holders = [record for record in loaded.records if not note or note in record.notes]
    if not holders:
        lacks = f"recorded a {note}; run a method that does" if note else "is there; run a suite first"
        raise ClbenchError(f"no run in the store '{store.root}' {lacks}, or pass another --store.")
    chosen = [record for record in fitting if not note or note in record.notes]
    if not chosen:
        names = {f"{record.suite}/{record.method}" for record in holders} | {record.method for record in holders}
        raise UnknownName(f"run with a {note}" if note else "run", run, names)
    if len(chosen) > 1:
        known = ", ".join(run_name(record) for record in chosen[:MOST_RUNS])
        more = f", and {len(chosen) - MOST_RUNS} more" if len(chosen) > MOST_RUNS else ""
        raise ClbenchError(f"'{run}' fits {len(chosen)} runs; name one by its key, the last part: {known}{more}.")
    return chosen[0]


def _fits(record: Record, parts: Iterable[str]) -> bool:
    named = {record.suite, record.method, f"seed{record.seed}"}
    return all(part in named or (part != "" and record.key.startswith(part)) for part in parts)


def run_name(record: Record) -> str:
    """The parts that name a run, and its variant."""
    variant = f" ({record.variant})" if record.variant else ""
    return f"{record.suite}/{record.method}/seed{record.seed}/{record.key}{variant}"


def tree(record: Record, format: str) -> str:
    """The tree of past tasks that a run recorded, as text for the width of the terminal or as JSON."""
    from clbench.report import tree_notes, tree_text

    if format == "text":
        return tree_text.text(record, width=shutil.get_terminal_size((120, 24)).columns)
    chosen = [vars(choice) for choice in tree_text.choices(record)]
    facts = {name: getattr(record, name) for name in ("suite", "method", "variant", "seed", "key", "tasks")}
    return to_json({**facts, "tree": record.notes[tree_notes.NOTE], "chosen": chosen})


# lists


def listing(kind: str, format: str, store: Store | None) -> str:
    """One line, or one JSON object, for each thing of a kind; `store` is for the runs."""
    if kind not in KINDS:
        raise UnknownName("list", kind, KINDS)
    if format not in LIST_FORMATS:
        raise UnknownName("format of a list", format, LIST_FORMATS)
    things = _runs(store) if kind == "runs" and store else _entries(kind)
    if format == "json":
        return to_json(things)
    return columns([[_text(value) for value in thing.values()] for thing in things]) if things else f"no {kind}"


def _entries(kind: str) -> list[dict[str, Any]]:
    pages = {"methods": catalog.methods(), "suites": catalog.suites(), "backbones": catalog.BACKBONES}
    paper = kind == "methods"
    return [
        {"name": name, "line": entry.line, **({"paper": entry.paper} if paper else {})}
        for name, entry in pages[kind].items()
    ]


def _runs(store: Store) -> list[dict[str, Any]]:
    from clbench import index

    lines, bad = index.lines(store)
    for problem in bad:
        warn(problem)
    return [{_heading(name, line): value for name, value in line.items() if name != "score_name"} for line in lines]


def _heading(name: str, line: Mapping[str, Any]) -> str:
    """An average is called by what was scored."""
    return str(line["score_name"]) if name == "average" else name


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


# one thing


def show(name: str, format: str) -> str:
    """Everything about a method, a suite or a backbone."""
    if format not in LIST_FORMATS:
        raise UnknownName("format", format, LIST_FORMATS)
    facts = _facts(name)
    return to_json(facts) if format == "json" else _page(facts)


def _facts(name: str) -> dict[str, Any]:
    if name in catalog.suites():
        return _suite_facts(name, catalog.suite(name))
    if name in catalog.BACKBONES:
        return _backbone_facts(name)
    if name in catalog.methods() or ".py" in name:
        return _method_facts(catalog.method_type(name).cls)
    raise UnknownName("method, suite or backbone", name, [*catalog.methods(), *catalog.suites(), *catalog.BACKBONES])


def _method_facts(cls: type[Method]) -> dict[str, Any]:
    entry = catalog.methods().get(cls.name)
    try:
        resources: Any = vars(cls().resources())
    except ValueError:  # a field without a default
        resources = "they depend on fields without a default"
    return {
        "kind": "method",
        "name": cls.name,
        "line": entry.line if entry else "",
        "paper": cls.paper,
        "schedule": cls.schedule,
        "about": inspect.getdoc(cls) or "",
        "fields": [_field(name, info) for name, info in cls.model_fields.items()],
        "resources": resources,
    }


def _field(name: str, info: Any) -> dict[str, Any]:
    from annotated_types import Ge, Gt, Le, Lt

    from clbench.method import Search

    signs = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
    bounds = [f"{signs[type(m)][0]} {getattr(m, signs[type(m)][1])}" for m in info.metadata if type(m) in signs]
    search = next((m for m in info.metadata if isinstance(m, Search)), None)
    return {
        "name": name,
        "type": " ".join([catalog.kind_of(info.annotation), *bounds]),
        "default": "must be given" if info.is_required() else info.get_default(call_default_factory=True),
        "description": info.description or "",
        "search": [search.low, search.high] if search else None,
    }


def _suite_facts(name: str, suite: Suite) -> dict[str, Any]:
    module = sys.modules.get(catalog.suites()[name].module)
    return {
        "kind": "suite",
        "name": name,
        "line": catalog.suites()[name].line,
        "about": inspect.getdoc(module) or "" if module else "",
        "stream": suite.stream_name,
        "backbone": suite.backbone,
        "transform": suite.transformed,
        "normalisation": suite.normalisation,
        "score": suite.score,
        "methods": [
            {"method": c.method, "label": c.label, **suite.settings.get(c.method, {}), **c.settings}
            for c in suite.contenders
        ],
        "recipes": {method: dict(changed) for method, changed in suite.recipes.items()},
        "fields": [
            {**_field(field, info), "default": getattr(suite.recipe, field)}
            for field, info in type(suite.recipe).model_fields.items()
        ],
        "references": [vars(reference) for reference in suite.references],
    }


def _backbone_facts(name: str) -> dict[str, Any]:
    source = catalog.BACKBONES[name].load()
    facts = {"kind": "backbone", "name": name, "line": catalog.BACKBONES[name].line}
    card: Path | None = getattr(source, "card_path", None)
    if card is not None and card.is_file():
        facts["card"] = json.loads(card.read_text(encoding="utf-8"))
    return facts


def _page(facts: Mapping[str, Any]) -> str:
    """The facts as a page: head, text, then one block for each thing that holds several."""
    lines = [f"{facts['name']} ({facts['kind']}): {facts['line']}".removesuffix(": ")]
    simple = {k: v for k, v in facts.items() if isinstance(v, str) and v and k not in ("name", "kind", "line", "about")}
    if simple:
        lines += ["", columns(simple.items())]
    if facts.get("about"):
        lines += ["", str(facts["about"])]
    for heading, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += ["", f"{heading}:", _indented(columns([(k, _value(v)) for k, v in value.items()]))]
        elif isinstance(value, Collection) and not isinstance(value, (str, Mapping)) and value:
            owner = {"fields": "recipe." if facts["kind"] == "suite" else f"{facts['name']}."}.get(heading, "")
            lines += ["", f"{heading}:", _indented(columns([_item(item, owner) for item in value]))]
    return "\n".join(lines)


def _item(item: Mapping[str, Any], owner: str) -> tuple[str, ...]:
    if "default" not in item:
        first, *rest = item.items()
        return _value(first[1]), ", ".join(f"{k} {_value(v)}" for k, v in rest if v not in ("", None))
    searched = f"; tuned in {item['search'][0]:g} to {item['search'][1]:g}" if item["search"] else ""
    return f"{owner}{item['name']}={_value(item['default'])}", item["type"], f"{item['description']}{searched}"


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={_value(v)}" for k, v in value.items())
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
