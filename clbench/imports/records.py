"""Records of imported runs: marked as such, with their protocol as far as it is known."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clbench.errors import BadValue, ClbenchError, UnknownName
from clbench.imports import SYSTEMS
from clbench.imports.found import Found
from clbench.protocol import ADDED, METHOD_TERMS, UNHASHED, Protocol, digest
from clbench.record import IMPORTED, UNKNOWN, Origin, Record

TERMS = tuple(name for name in Protocol.model_fields if name not in (*ADDED, *UNHASHED))
"""The fields of a protocol card that an import must know or call unknown."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def imported(system: str, path: Path, *, suite: str = "", method: str = "", seed: int | None = None) -> list[Record]:
    """The runs of `system` in `path`, one record each.

    `suite` and `method` rename them; `seed` stands in where the files tell none.
    A run's method is called METHOD@SYSTEM, so that no table takes it for ours, and its protocol card names the system,
    so that it shares a table with runs of that system alone. Raises UnknownName for another system and ClbenchError,
    naming file and line, for what is not as the system writes it.
    """
    if system not in SYSTEMS:
        raise UnknownName("system", system, SYSTEMS)
    if not path.exists():
        raise ClbenchError(f"there is no '{path}'; name the file or folder in which {system} wrote its results.")
    read: Callable[[Path], list[Found]] = importlib.import_module(f"clbench.imports.{SYSTEMS[system]}").read
    runs = read(path)
    seeds = _seeds(runs, seed)
    names = [_named(method or run.method, "method", path) for run in runs]
    variants = _variants(runs, names)
    return [
        _record(system, run, _named(suite or run.suite or system, "suite", path), name, variant, number)
        for run, name, variant, number in zip(runs, names, variants, seeds, strict=True)
    ]


def _named(name: str, kind: str, path: Path) -> str:
    if not name:
        raise ClbenchError(f"'{path}' does not tell the {kind} of its run; pass --{kind} with a name.")
    if not _NAME.fullmatch(name):
        raise BadValue(f"'{name}' cannot name a {kind}; pass --{kind} with letters, digits and '._+-'.")
    return name


def _seeds(runs: Sequence[Found], given: int | None) -> list[int]:
    for run in runs:
        if run.seed is not None and given not in (None, run.seed):
            raise BadValue(f"{run.where} tells that the seed was {run.seed}; leave --seed {given} out.")
    silent = [run.where for run in runs if run.seed is None]
    if silent and given is None:
        raise ClbenchError(f"the seed of {', '.join(silent)} is not told; pass --seed N.")
    if len(silent) > 1:
        raise ClbenchError(f"none of {', '.join(silent)} tells its seed; put them into files of their own.")
    return [given or 0 if run.seed is None else run.seed for run in runs]


def _variants(runs: Sequence[Found], names: Sequence[str]) -> list[str]:
    """In what each run differs from those of the same method and setting, in words."""
    kinds = [(name, run.setting) for run, name in zip(runs, names, strict=True)]
    return [
        _variant(run, [other for other, kind in zip(runs, kinds, strict=True) if kind == kinds[i]])
        for i, run in enumerate(runs)
    ]


def _variant(run: Found, others: Sequence[Found]) -> str:
    differing = [k for k, v in run.params.items() if any(other.params.get(k) != v for other in others)]
    return ", ".join(f"{name}={run.params[name]}" for name in differing)


def _card(system: str, run: Found, suite: str) -> dict[str, Any]:
    own = {"suite": suite, "tasks": len(run.tasks), "score": run.score}
    order = UNKNOWN if run.order_seed is None else run.order_seed
    known: Mapping[str, Any] = {**own, "order_seed": order, **run.protocol}
    setting = {"setting": run.setting} if run.setting else {}
    return {"system": system, **setting, **{term: known.get(term, UNKNOWN) for term in TERMS}}


def _record(system: str, run: Found, suite: str, method: str, variant: str, seed: int) -> Record:
    card = _card(system, run, suite)
    facts = {"system": system, "suite": suite, "method": method, "seed": seed}
    told = {"scores": run.scores, "stated": dict(run.stated), "params": dict(run.params), "card": card}
    return Record(
        key=digest({**facts, **told}, 16),
        suite=suite,
        method=f"{method}@{system}",
        variant=variant,
        params=dict(run.params),
        recipe={},
        seed=seed,
        order_seed=run.order_seed or 0,
        fingerprint=f"{IMPORTED}{system}",
        protocol=card,
        suite_protocol=card,
        protocol_hash=digest(card),
        suite_hash=digest({term: value for term, value in card.items() if term not in METHOD_TERMS}),
        status="done",
        tasks=run.tasks,
        test_sizes=run.test_sizes,
        score_name=run.score,
        scores=run.scores,
        stated=dict(run.stated),
        marks=(_mark(system, card), *run.remarks),
        notes={"imported": {"from": run.where, **run.notes}},
        origin=_origin(run),
    )


def _mark(system: str, card: Mapping[str, Any]) -> str:
    known = [f"{term} {card[term]}" for term in METHOD_TERMS if card.get(term, UNKNOWN) != UNKNOWN]
    unknown = [term for term, value in card.items() if value == UNKNOWN]
    return (
        f"imported from {system}; {', '.join(known) or 'no terms told'}; unknown: {', '.join(unknown)}, device, costs"
    )


def _origin(run: Found) -> Origin:
    return Origin(
        clbench="imported",
        commit=None,
        dirty=None,
        versions={},
        device=run.device,
        device_kind=UNKNOWN,
        precision=UNKNOWN,
        threads=0,
        started=run.started,
        command="",
    )
