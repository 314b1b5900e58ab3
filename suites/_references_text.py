"""References of the text suites: published figures with what is known of how they were made.

The tolerance is twice the standard error of the average over the test rows, a rule of this project: published runs
have one seed and 100 rows a task in TRACE's small form. Seconds are never judged. `[M]` in a source: the figure was
recalled and has not been read there. TreeLoRA's tables print forgetting without a sign; here it has that of
`bwt_treelora`, as its code computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clbench.suite import Reference

Facts = Mapping[str, str | int | float]
MEMORY = " [M]"
_PAPER = "TreeLoRA (Qian et al. 2025)"
_ROW_ERROR = 50.0
"""Points: the largest standard deviation of a row's score."""


def tolerance(tasks: int, rows: int) -> float:
    """Twice the standard error, in points, of the average over `tasks` tasks of `rows` test rows each.

    >>> tolerance(8, 100), tolerance(15, 100)
    (3.5, 2.6)
    """
    return round(2 * _ROW_ERROR / math.sqrt(tasks * rows), 1)


# TRACE in eight tasks. The scripts read the small form (500 rows a task) and give each family its own epochs.
_TRACE: Facts = {
    "tasks": 8,
    "batch size": 32,
    "optimiser": "adam",
    "schedule": "constant",
}
_LORA: Facts = {**_TRACE, "epochs": "5,3,7,5,3,5,5,7", "step size": 1e-4}
_GRADIENT: Facts = {**_TRACE, "epochs": "1,1,5,5,1,5,5,5", "step size": 1e-5}
_TREE: Facts = {**_TRACE, "epochs": "2,1,3,2,1,2,2,3", "step size": 1e-4}
_FACTS: Mapping[str, Facts] = {
    "icl": {"tasks": 8},
    "seqlora": _LORA,
    "ogd": _GRADIENT,
    "gem": _GRADIENT,
    "ewc": _GRADIENT,
    "hidelora": _LORA,
    "olora": _LORA,
    "treelora": _TREE,
}
_NOTES = {
    "gem": "the released code solves another problem than GEM's",
    "ogd": "the released code's basis is not orthogonal",
    "hidelora": "the released code has one LoRA and no router",
    "olora": "the released code's penalty is always zero: it is SeqLoRA",
    "dualprompt": "the released code is told the true task at test",
    "sapt": "without its generated replay",
    "l2p": "the released code chooses prompts by the answer too",
}
_FEWER = "paper's epochs"
"""How the row of TreeLoRA with its own epochs is called."""
_UNEQUAL = "16 epochs in all where LoRA methods get 40: the seconds compare epochs, not steps"

Row = tuple[float, float | None, float | None]
"""Average, forgetting as printed, training seconds."""
_TABLE: Mapping[str, Mapping[str, Row]] = {
    "mistral-7b-instruct": {
        "icl": (45.04, None, None),
        "seqlora": (46.94, 11.41, 1091),
        "ogd": (45.44, 12.75, 6952),
        "gem": (52.32, 6.01, 7937),
        "ewc": (52.45, 5.98, 52739),
        "l2p": (49.32, 5.34, 975),
        "dualprompt": (51.14, 6.13, 983),
        "hidelora": (51.81, 6.25, 1288),
        "olora": (52.02, 8.13, 1302),
        "treelora": (54.77, 3.77, 510),
    },
    "llama-2-7b-chat": {
        "icl": (38.94, None, None),
        "seqlora": (34.30, 18.50, 1132),
        "ogd": (42.09, 8.06, 6416),
        "gem": (40.08, 6.77, 7385),
        "ewc": (42.36, 5.97, 50283),
        "l2p": (36.23, 8.25, 899),
        "dualprompt": (37.69, 8.03, 912),
        "hidelora": (41.60, 7.12, 1286),
        "olora": (42.78, 7.16, 1293),
        "treelora": (43.52, 3.46, 485),
        "sapt": (42.93, 5.49, None),
        "tasl": (43.19, 4.58, None),
    },
    "gemma-2b-it": {
        "icl": (32.30, None, None),
        "seqlora": (31.89, 15.28, 510),
        "ogd": (32.85, 12.27, 2534),
        "gem": (26.48, 18.25, 2892),
        "ewc": (28.35, 16.96, 17791),
        "l2p": (31.14, 15.77, 413),
        "dualprompt": (32.42, 14.25, 415),
        "hidelora": (33.25, 13.66, 598),
        "olora": (33.73, 12.36, 592),
        "treelora": (33.41, 8.50, 271),
    },
    "llama-3.2-1b-instruct": {
        "icl": (31.16, None, None),
        "seqlora": (29.73, 17.03, 482),
        "ogd": (30.12, 15.20, 1345),
        "gem": (32.19, 10.74, 1547),
        "ewc": (31.96, 11.62, 8893),
        "l2p": (29.38, 13.57, 270),
        "dualprompt": (30.76, 11.34, 281),
        "hidelora": (33.73, 12.36, 450),
        "olora": (32.94, 12.89, 448),
        "treelora": (36.14, 7.36, 179),
    },
    "hf:meta-llama/Llama-2-13b-chat-hf": {
        "icl": (40.15, None, None),
        "seqlora": (39.16, 15.58, None),
        "ogd": (42.32, 9.72, None),
        "gem": (43.77, 8.42, None),
        "ewc": (41.23, 10.12, None),
        "hidelora": (43.27, 11.27, None),
        "olora": (44.32, 5.19, None),
        "treelora": (47.13, 3.42, None),
    },
}
_ABLATION = {"treelora penalty=none": 51.92, "treelora search=random": 54.03}
_DEPTHS = {4: (21.43, 21.49), 8: (22.05, 22.62), 16: (37.51, 38.62)}
"""Blocks -> O-LoRA, TreeLoRA; published as projections, of which each block has two. All 32 blocks: table 3."""
_FIFTEEN: Mapping[str, Row] = {
    "icl": (41.32, None, None),
    "seqlora": (40.71, 15.72, None),
    "ogd": (32.52, 21.32, None),
    "gem": (35.48, 18.33, None),
    "ewc": (31.46, 22.22, None),
    "l2p": (41.05, 14.92, None),
    "dualprompt": (41.29, 15.58, None),
    "hidelora": (42.38, 11.23, None),
    "olora": (44.02, 10.99, None),
    "treelora": (45.68, 6.41, None),
}

# ScienceQA, NumGLUE-cm and NumGLUE-ds alone (`--task`), Llama-2-7B.
_MATHEMATICS: Mapping[str, Row] = {
    "icl": (36.92, None, None),
    "seqlora": (40.24, 9.12, None),
    "ogd": (42.09, 8.06, None),
    "gem": (40.75, 16.25, None),
    "ewc": (37.25, 17.50, None),
    "l2p": (31.67, 2.54, None),
    "dualprompt": (37.72, 9.54, None),
    "hidelora": (42.83, 11.92, None),
    "olora": (42.00, 11.67, None),
    "treelora": (45.59, 2.32, None),
}

# The O-LoRA orders, Llama-3.2-1B-Instruct, 500 training and 100 test rows a task, one epoch (TreeLoRA, table 10).
_ORDERS: Mapping[str, Mapping[str, Row]] = {
    "olora-order1": {
        "icl": (48.75, None, None),
        "ogd": (54.16, 10.82, None),
        "gem": (54.10, 10.25, None),
        "seqlora": (55.71, 8.63, None),
        "hidelora": (56.32, 2.75, None),
        "olora": (59.50, 2.51, None),
        "treelora": (59.73, 2.22, None),
    },
    "olora-order2": {
        "ogd": (46.82, 21.50, None),
        "gem": (46.70, 20.93, None),
        "seqlora": (45.26, 7.70, None),
        "hidelora": (53.41, 5.58, None),
        "olora": (52.53, 5.65, None),
        "treelora": (53.78, 5.74, None),
    },
    "olora-order3": {
        "ogd": (43.79, 27.31, None),
        "gem": (51.12, 16.24, None),
        "seqlora": (49.03, 19.05, None),
        "hidelora": (61.25, 3.12, None),
        "olora": (63.82, 2.03, None),
        "treelora": (62.76, 2.23, None),
    },
    "olora-order4": {
        "hidelora": (59.44, 4.33, None),
        "olora": (59.89, 4.67, None),
        "treelora": (58.45, 4.98, None),
    },
    "olora-order5": {
        "hidelora": (54.49, 7.52, None),
        "olora": (57.05, 4.42, None),
        "treelora": (58.12, 3.31, None),
    },
    "olora-order6": {
        "hidelora": (57.26, 6.98, None),
        "olora": (58.02, 4.73, None),
        "treelora": (59.00, 4.12, None),
    },
}
# T5-large, logs of the O-LoRA repository: exact match, mean of tasks. Its prompts name task and data set.
_T5 = {
    "olora-order1": {"finetune": 67.77, "seqlora": 62.88, "inclora": 68.62, "olora": 78.37},
    "olora-order6": {"seqlora": 32.04, "inclora": 58.44, "olora": 72.17},
}
_T5_FACTS: Facts = {
    "backbone": "t5-large",
    "optimiser": "adam",
    "step size": 1e-3,
    "schedule": "constant",
    "batch size": 64,
}
_ORDER_FACTS: Facts = {"backbone": "llama-3.2-1b-instruct", "epochs": 1, "step size": 1e-4}


def _row(
    row: str, found: Row, source: str, facts: Facts, within: float, note: str, **fields: Any
) -> Iterator[Reference]:
    """A reference for each number of a table's row: average, forgetting, seconds."""
    method, _, variant = row.partition(" ")
    metrics = (("avg_accuracy", 1), ("bwt_treelora", -1), ("train_seconds", 1))
    for (metric, sign), value in zip(metrics, found, strict=True):
        if value is not None:
            timed = metric == "train_seconds"
            yield Reference(
                method=method,
                variant=variant,
                metric=metric,
                value=sign * value,
                tolerance=None if timed else within,
                source=source,
                protocol=facts,
                note="; ".join(filter(None, (note, "on four A800" if timed else ""))),
                score="" if timed else "lenient",
                **fields,
            )


def _trace() -> Iterator[Reference]:
    for backbone, rows in _TABLE.items():
        for method, found in rows.items():
            facts: Facts = {"backbone": backbone, **_FACTS.get(method, _TRACE)}
            note = _UNEQUAL if method == "treelora" else _NOTES.get(method, "")
            row = f"{method} {_FEWER}" if method == "treelora" else method
            yield from _row(row, found, f"{_PAPER}, tables 3 and 9", facts, tolerance(8, 100), note)
    facts = {"backbone": "mistral-7b-instruct", **_TREE}
    for row, value in _ABLATION.items():
        yield from _row(row, (value, None, None), f"{_PAPER}, table 5", facts, tolerance(8, 100), "")
    source, facts = f"{_PAPER}, by depth", {"backbone": "llama-2-7b-chat", **_TREE}
    for depth, values in _DEPTHS.items():
        for method, value in zip(("olora", "treelora"), values, strict=True):
            note = "no setting here: O-LoRA is in all blocks" if method == "olora" else ""
            yield from _row(f"{method} depth={depth}", (value, None, None), source, facts, tolerance(8, 100), note)


def _mathematics() -> Iterator[Reference]:
    facts: Facts = {"backbone": "llama-2-7b-chat", "tasks": 3}
    for method, found in _MATHEMATICS.items():
        row = f"{method} {_FEWER}" if method == "treelora" else method
        note = _NOTES.get(method, "")
        yield from _row(row, found, f"{_PAPER}, three tasks", facts, tolerance(3, 100), note)


def _fifteen() -> Iterator[Reference]:
    facts: Facts = {"backbone": "llama-3.2-1b-instruct", "tasks": 15}
    for method, found in _FIFTEEN.items():
        row = f"{method} {_FEWER}" if method == "treelora" else method
        note = _NOTES.get(method, "")
        yield from _row(row, found, f"{_PAPER}, 15 tasks", facts, tolerance(15, 100), note)


def _order(suite: str) -> Iterator[Reference]:
    tasks = 4 if suite[-1] in "123" else 15
    facts = {**_ORDER_FACTS, "tasks": tasks}
    for method, found in _ORDERS[suite].items():
        note = _NOTES.get(method, "")
        yield from _row(method, found, f"{_PAPER}, table 10", facts, tolerance(tasks, 100), note)
    for method, value in _T5.get(suite, {}).items():
        yield Reference(
            method=method,
            metric="avg_accuracy",
            value=value,
            tolerance=2.0,  # thousands of test rows: what is left is the spread of seeds
            source="O-LoRA (Wang et al. 2023), log in its repository",
            protocol={**_T5_FACTS, "tasks": tasks},
            score="trace",
            note="its prompts name the task and the data set",
        )


# TRACE (Wang et al. 2023), Llama-2-7B-Chat, 5,000 rows a task, recalled.
_LARGE: Sequence[tuple[str, float, float | None]] = (
    ("icl", 38.9, None),
    ("finetune", 48.7, -8.3),
    ("seqlora", 12.7, -45.7),
    ("replay", 55.5, 2.6),
)


def _large() -> Iterator[Reference]:
    facts: Facts = {"backbone": "llama-2-7b-chat", "tasks": 8, "epochs": "5,3,7,5,3,5,5,7"}
    for method, average, change in _LARGE:
        for metric, value in (("avg_accuracy", average), ("bwt_trace", change)):
            if value is not None:
                yield Reference(
                    method=method,
                    metric=metric,
                    value=value,
                    tolerance=2.0,
                    source=f"TRACE (Wang et al. 2023), table 1{MEMORY}",
                    protocol=facts,
                    score="trace",
                    verified=False,
                )


REFERENCES: Mapping[str, tuple[Reference, ...]] = {
    "trace": tuple(_large()),
    "trace-compat": tuple(_large()),
    "trace-500": (*_trace(), *_mathematics()),
    "trace-500-compat": tuple(_trace()),
    "trace-15": tuple(_fifteen()),
    **{suite: tuple(_order(suite)) for suite in _ORDERS},
}
"""Suite -> its published figures. Left out: averages over several orders; TreeLoRA's operations for a token and
extra storage, of which the one is not a training step's and the other not all that a run here keeps."""
