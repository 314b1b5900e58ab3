"""Row: one line of a comparison, which is also what the leaderboard's columns are and mean."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from clbench.metrics import Undefined

Number = float | Undefined
Count = int | Undefined


def _doc(unit: str, meaning: str, better: Literal["high", "low", ""] = "") -> dict[str, str]:
    return {"unit": unit, "meaning": meaning, "better": better}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a comparison. The fields are the leaderboard's columns, in its order."""

    suite: str = field(metadata=_doc("", "name of the suite"))
    protocol: str = field(metadata=_doc("", "hash of everything no method may change; only equal ones are comparable"))
    method: str = field(metadata=_doc("", "name of the method"))
    variant: str = field(metadata=_doc("", "settings that differ from the method's defaults; empty for none"))
    n_seeds: int = field(metadata=_doc("", "finished runs behind the row", "high"))
    avg_accuracy_mean: Number = field(metadata=_doc("%", "mean over tasks of the accuracy after the last task", "high"))
    avg_accuracy_std: Number = field(metadata=_doc("%", "its standard deviation over seeds (n-1)", "low"))
    avg_accuracy_pooled_mean: Number = field(
        metadata=_doc("%", "accuracy over all test samples after the last task", "high")
    )
    avg_incremental_accuracy_mean: Number = field(
        metadata=_doc("%", "mean over rounds of the average over the tasks seen so far", "high")
    )
    avg_incremental_accuracy_std: Number = field(metadata=_doc("%", "its standard deviation over seeds (n-1)", "low"))
    learning_accuracy_mean: Number = field(
        metadata=_doc("%", "mean accuracy on a task straight after learning it", "high")
    )
    forgetting_mean: Number = field(
        metadata=_doc("%", "best past accuracy minus the last, mean over all tasks but the last", "low")
    )
    forgetting_std: Number = field(metadata=_doc("%", "its standard deviation over seeds (n-1)", "low"))
    bwt_mean: Number = field(
        metadata=_doc("%", "last accuracy minus that straight after learning, over T-1; negative: forgetting", "high")
    )
    bwt_std: Number = field(metadata=_doc("%", "its standard deviation over seeds (n-1)", "low"))
    bwt_trace_mean: Number = field(metadata=_doc("%", "the same sum over T, as in TRACE; negative: forgetting", "high"))
    bwt_treelora_mean: Number = field(
        metadata=_doc("%", "the same over T with gains clipped to 0, as TreeLoRA's code; at most 0", "high")
    )
    router_accuracy_mean: Number = field(
        metadata=_doc("%", "test examples of all tasks whose task was inferred rightly, after the last task", "high")
    )
    train_seconds_mean: Number = field(
        metadata=_doc("s", "device seconds of learning all tasks, without each task's first step", "low")
    )
    train_seconds_std: Number = field(metadata=_doc("s", "its standard deviation over seeds (n-1)", "low"))
    train_seconds_per_sample: Number = field(
        metadata=_doc("s", "training seconds per training sample and epoch", "low")
    )
    overhead: Number = field(
        metadata=_doc("ratio", "training seconds per sample over those of the reference, paired by seed", "low")
    )
    eval_seconds_mean: Number = field(metadata=_doc("s", "seconds of scoring all rounds", "low"))
    peak_memory_mib: Number = field(metadata=_doc("MiB", "peak device memory while learning, the highest task", "low"))
    trainable_parameters: Count = field(metadata=_doc("", "trainable parameters, the highest task", "low"))
    stored_mib: Number = field(metadata=_doc("MiB", "kept after the last task beyond the untouched backbone", "low"))
    flops_per_step: Number = field(metadata=_doc("FLOP", "of one training step, mean over tasks", "low"))
    device: str = field(metadata=_doc("", "name of the device, and the precision unless float32"))
    epochs_differ: bool = field(metadata=_doc("", "the epochs are not the suite's"))
    marks: tuple[str, ...] = field(metadata=_doc("", "footnotes: what a reader must know before comparing the row"))
    status: Literal["done", "stale", "failed", "unsupported", "missing"] = field(
        metadata=_doc("", "done, stale, failed, unsupported or missing")
    )
    reason: str = field(metadata=_doc("", "why runs are missing; empty where all were done"))
    rank: Count = field(
        metadata=_doc("", "1 + the number of rows that are better and not tied; finished fresh rows only", "low")
    )
    tied_with: tuple[str, ...] = field(
        metadata=_doc("", "rows that a paired test cannot tell from this one (p >= 0.05)")
    )

    @property
    def label(self) -> str:
        """The method, with its variant in brackets."""
        return row_label(self.method, self.variant)


def row_label(method: str, variant: str) -> str:
    """The method, with its variant in brackets if it has one."""
    return f"{method} ({variant})" if variant else method


@dataclass(frozen=True)
class Column:
    """A leaderboard column: `attribute` of `Row`, `kind` as annotated there, the unit and what it means."""

    name: str
    attribute: str
    kind: str
    unit: str
    meaning: str
    better: str
    """Which end is the better one, 'high' or 'low'; '' where there is none."""


def columns(reference: str) -> tuple[Column, ...]:
    """The leaderboard's columns in order; the overhead's names the reference.

    >>> [column.name for column in columns("plain") if "overhead" in column.name]
    ['overhead_vs_plain']
    """
    names = {"overhead": f"overhead_vs_{reference}"}
    return tuple(Column(names.get(f.name, f.name), f.name, str(f.type), **f.metadata) for f in fields(Row))
