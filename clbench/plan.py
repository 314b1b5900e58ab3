"""Plan: the cells of a comparison, which of them are missing, and how long they may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clbench.errors import BadValue
from clbench.method import Method
from clbench.protocol import Protocol, digest
from clbench.recipe import Recipe
from clbench.record import Record
from clbench.stream import Stream
from clbench.suite import Suite


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method with one seed on one suite: the unit that is run, stored and resumed."""

    suite: Suite
    method: Method
    variant: str
    fingerprint: str
    seed: int
    order_seed: int
    device_kind: str
    protocol: Protocol
    """The cell's own card: the suite's with the method's terms."""
    suite_protocol: Protocol
    spec: str = ""
    """What a person calls the method by: its name, or the file that it lies in."""
    again: str = ""
    """The command that makes this cell and no other, for the record; nothing depends on it."""
    retries: int = 0
    """How often it may go on with less at a time after its device's memory ran out, see `clbench.shortage`."""

    @property
    def name(self) -> str:
        """What a person calls the cell."""
        return f"{self.method.name}{f' ({self.variant})' if self.variant else ''} seed {self.seed}"

    @property
    def key(self) -> str:
        """Hash of everything that the result depends on."""
        return digest(
            {
                "protocol": self.protocol.hash,
                "suite": self.suite_protocol.suite_hash,
                "method": self.method.name,
                "params": self.method.model_dump(mode="json"),
                "recipe": self.suite.recipe.facts(),
                "seed": self.seed,
                "order_seed": self.order_seed,
                "fingerprint": self.fingerprint,
                "device": self.device_kind,
                "precision": self.suite.recipe.precision,
            },
            16,
        )


def terms(suite: Suite, suite_protocol: Protocol, method: Method, recipe: Recipe) -> Protocol:
    """The suite's card with what `method` does otherwise; `recipe` is the one it is taught by."""
    kept = method.resources()
    given = () if method.epochs or method.schedule in ("none", "joint") else recipe.task_epochs
    return suite_protocol.model_copy(
        update={
            "epochs": 0 if method.schedule == "none" else method.epochs or recipe.mean_epochs,
            "task_epochs": given,
            "batch_size": recipe.batch_size,
            "optimisation": _otherwise(recipe, suite.recipe),
            "head_masking": method.head_masking,
            "schedule": method.schedule,
            "task_id_at_test": kept.task_id_at_test,
            "buffer_samples": kept.buffer_samples,
            "replay_batch": kept.replay_batch,
            "class_statistics": kept.class_statistics,
            "stored_gradients": kept.stored_gradients,
            "compat": method.compat(),
        }
    )


_OPTIMISATION = ("optimizer", "schedule", "steps", "momentum", "weight_decay", "betas", "clip", "carry_optimizer")


def _otherwise(recipe: Recipe, usual: Recipe) -> str:
    """How `recipe` optimises otherwise than `usual`, in words; step sizes are the methods' own."""
    changed = [name for name in _OPTIMISATION if getattr(recipe, name) != getattr(usual, name)]
    return ", ".join(f"{name} {_word(getattr(recipe, name))}" for name in changed)


def _word(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Row:
    """A method that is to be compared, ready built."""

    method: Method
    variant: str
    fingerprint: str
    recipe: Recipe | None = None
    """What it is taught by where that is not the suite's."""
    spec: str = ""
    """What a person calls it by: its name, or the file that it lies in."""


def cells(
    suite: Suite, stream: Stream, rows: Iterable[Row], seeds: Sequence[int], order_seed: int, device_kind: str
) -> list[Cell]:
    """Every row with every seed, seed by seed, so that a table is balanced at any time."""
    card = suite.protocol(stream, order_seed)
    rows = list(rows)
    if order_seed and any((row.recipe or suite.recipe).task_epochs for row in rows):
        raise BadValue(
            f"recipe.task_epochs counts passes in the natural order of the tasks, and the order seed {order_seed} "
            "shuffles them; add --set recipe.epochs=N, and name with --method those to run where a row has its own."
        )
    return [
        Cell(
            suite=replace(suite, recipe=row.recipe or suite.recipe),
            method=row.method,
            variant=row.variant,
            fingerprint=row.fingerprint,
            seed=seed,
            order_seed=order_seed,
            device_kind=device_kind,
            protocol=terms(suite, card, row.method, row.recipe or suite.recipe),
            suite_protocol=card,
            spec=row.spec or row.method.name,
        )
        for seed in seeds
        for row in rows
    ]


def alike(record: Record, cell: Cell) -> bool:
    """Whether a record tells what to expect of a cell: the same row of the same model and data, whatever the order."""
    same = (record.suite, record.method) == (cell.suite.name, cell.method.name)
    return same and _alike(record.protocol, cell.protocol) and record.origin.device_kind == cell.device_kind


def _alike(told: Mapping[str, Any], card: Protocol) -> bool:
    """Whether as long is to be expected: the same data, in whatever order of the tasks, for the same model."""
    equal = ("epochs", "backbone", "transform", "stream", "tasks")
    ours = card.model_dump(mode="json", include={*equal, "order_seed", "stream_sha256"})
    reordered = told.get("order_seed") != ours["order_seed"]
    return all(told.get(name) == ours[name] for name in equal) and (
        reordered or told.get("stream_sha256") == ours["stream_sha256"]
    )


def forecast_seconds(cell: Cell, records: Iterable[Record]) -> float | None:
    """Seconds that the same row took before on this kind of device, of this model and data; None if never."""
    times = [
        sum(cost.train_seconds + cost.warmup_seconds + cost.eval_seconds for cost in record.costs)
        for record in records
        if record.status == "done" and alike(record, cell)
    ]
    return sum(times) / len(times) if times else None
