"""Again: the command that makes one cell of a comparison, in a shell's words."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clbench import catalog, plan
from clbench.errors import ClbenchError
from clbench.plan import Cell
from clbench.suite import Contender, Suite


def told(cells: Iterable[Cell], *, threads: int, deterministic: bool, processes: int = 1) -> list[Cell]:
    """The same cells, each with its command; '' where a row of a suite cannot be asked for alone.

    Every command was tried: its words come to a cell of the same key.
    """
    rows = dict[tuple[str, ...], bool]()
    more = ["--deterministic"] if deterministic else []
    more += ["--data-parallel", str(processes)] if processes > 1 else []
    return [replace(cell, again=_command(cell, threads, more, rows)) for cell in cells]


def _command(cell: Cell, threads: int, more: Sequence[str], rows: dict[tuple[str, ...], bool]) -> str:
    settings = _settings(cell)
    row = (cell.spec, *settings)
    if row not in rows:
        rows[row] = _comes_to(cell, settings)
    if not rows[row]:
        return ""
    words = ["clbench", "run", cell.suite.name, "--method", cell.spec]
    words += [word for setting in settings for word in ("--set", setting)] + _where(cell.suite)
    words += ["--order-seed", str(cell.order_seed)] if cell.order_seed else []
    words += ["--seed", str(cell.seed), "--device", cell.device_kind, "--threads", str(threads)]
    return shlex.join([*words, *more])


def _where(suite: Suite) -> list[str]:
    """The words for data and backbone that are not the suite's usual ones."""
    words = [word for task in suite.files.tasks for word in ("--task", task)]
    words += [word for name, value in suite.files.choices for word in ("--set", f"suite.{name}={value}")]
    if suite.files.folder is not None:
        words += ["--from", str(suite.files.folder)]
    if suite.backbone != catalog.suite(suite.name).backbone:
        words += ["--backbone", suite.backbone]
    words += ["--trust-remote-code"] if suite.remote_code else []
    return words if suite.weights == "default" else [*words, "--weights", suite.weights]


def _settings(cell: Cell) -> list[str]:
    """The words after `--set` in which the cell is not what its method is on the suite without any."""
    suite = catalog.suite(cell.suite.name, files=cell.suite.files)
    name = cell.method.name
    plain = type(cell.method)(**suite.settings.get(name, {})).model_dump(mode="json")
    usual = suite.recipe_of(Contender(name)).model_dump(mode="json")
    mine, recipe = cell.method.model_dump(mode="json"), cell.suite.recipe.model_dump(mode="json")
    return [*_changed(f"{name}.", mine, plain), *_changed("recipe.", recipe, usual)]


def _changed(owner: str, mine: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
    return [f"{owner}{field}={catalog.word(value)}" for field, value in mine.items() if value != plain[field]]


def _comes_to(cell: Cell, settings: Sequence[str]) -> bool:
    """Whether the words come to the cell; a suite's row with a recipe of its own, for one, may be out of reach."""
    said, here = catalog.settings(settings), cell.suite
    where: dict[str, Any] = {"files": here.files, "backbone": here.backbone, "weights": here.weights}
    where["remote_code"] = here.remote_code
    try:
        suite = catalog.suite(here.name, said.pop("recipe", {}), **where)
        (row,) = catalog.rows(suite, [cell.spec], said)
    except ClbenchError:
        return False
    recipe, card = row.recipe or suite.recipe, suite.taught(cell.suite_protocol)
    terms = plan.terms(suite, card, row.method, recipe)
    made: dict[str, Any] = {
        "method": row.method,
        "fingerprint": row.fingerprint,
        "protocol": terms,
        "suite_protocol": card,
    }
    return replace(cell, suite=replace(suite, recipe=recipe), **made).key == cell.key
