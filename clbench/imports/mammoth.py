"""Mammoth: the runs in a `logs.pyd`, one Python dict a line (utils/loggers.py of aimagelab/mammoth, e75a491).

The file lies at `results/SETTING/DATASET/MODEL/logs.pyd` and grows by a line a run. `accuracy_J_taskI` is the accuracy
in percent on task J after task I, both from 1, and `accmean_taskI` their mean; settings other than class-il and task-il
have the means alone. All other entries are the run's arguments and what the logger adds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clbench.imports.found import Found, dict_of, malformed, matrix, share, text_of
from clbench.record import UNKNOWN

LOG = "logs.pyd"
_CELL = re.compile(r"accuracy_(\d{1,6})_task(\d{1,6})")
_MEAN = re.compile(r"accmean_task(\d{1,6})")
_SETTINGS = ("class-il", "task-il", "domain-il", "general-continual", "biased-class-il")
_PASSING = (
    *("seed", "device", "notes", "base_path", "checkpoint_path", "results_path", "non_verbose", "num_workers"),
    *("disable_log", "nowand", "savecheck", "loadcheck", "ckpt_name", "start_from", "stop_after"),
    *("save_after_interrupt", "save_checkpoint_mode", "tensorboard", "cpu_memory_usage", "gpu_memory_usage"),
    *("forward_transfer", "backward_transfer", "forgetting"),
)
"""Arguments and additions that tell no configuration from another."""


def read(path: Path) -> list[Found]:
    """The runs of a log, or of all logs below a folder."""
    logs = sorted(path.rglob(LOG)) if path.is_dir() else [path]
    if not logs:
        raise malformed(path, None, f"holds no '{LOG}'; name mammoth's results folder or such a file.")
    return [run for log in logs for run in _runs(log)]


def _runs(log: Path) -> list[Found]:
    lines = [(number, line) for number, line in enumerate(text_of(log).splitlines(), 1) if line.strip()]
    if not lines:
        raise malformed(log, None, "is empty.")
    return [_run(dict_of(line, log, number), log, number) for number, line in lines]


def _run(entries: Mapping[str, Any], log: Path, line: int) -> Found:
    rows, means = _rows(entries, log, line), _means(entries, log, line)
    if not rows and not means:
        raise malformed(log, line, "holds neither accuracy_J_taskI nor accmean_taskI: the run ended before a task did.")
    places = log.resolve().parts
    setting = places[-4] if len(places) > 3 and places[-4] in _SETTINGS else UNKNOWN
    scores = matrix(rows or [[None] * len(means)] * len(means))
    seed = entries.get("seed")
    return Found(
        where=f"{log.name}, line {line}",
        tasks=tuple(f"task {number}" for number in range(1, len(scores))),
        scores=scores,
        stated={} if rows else {"average": tuple(means)},
        method=str(entries.get("model", "")),
        suite=str(entries.get("dataset", "")),
        seed=seed if isinstance(seed, int) else None,
        order_seed=_order(entries),
        setting=setting,
        protocol=_protocol(entries, setting),
        params={k: v for k, v in entries.items() if not _passes(k)},
        notes={"git": entries.get("conf_git_hash") or UNKNOWN},
        started=str(entries.get("conf_timestamp", UNKNOWN)),
    )


def _passes(name: str) -> bool:
    return name in _PASSING or name.startswith(("conf_", "wandb", "accmean_task", "accuracy_"))


def _rows(entries: Mapping[str, Any], log: Path, line: int) -> list[list[float | None]]:
    """The accuracies after each task; [] where there are none."""
    found = {(int(m[2]), int(m[1])): (name, value) for name, value in entries.items() if (m := _CELL.fullmatch(name))}
    rounds = max((after for after, _ in found), default=0)
    rows: list[list[float | None]] = []
    for after in range(1, rounds + 1):
        tasks = sorted(task for a, task in found if a == after)
        expected = tasks if entries.get("joint") and rounds == 1 else list(range(1, after + 1))
        if tasks != expected:
            raise malformed(
                log,
                line,
                f"holds accuracies of {len(tasks)} tasks after task {after}; runs with --validation, --eval_epochs or "
                "--eval_future mix several exams and are not imported.",
            )
        rows.append([share(found[after, task][1], 100, log, line, found[after, task][0]) for task in tasks])
    return rows


def _means(entries: Mapping[str, Any], log: Path, line: int) -> list[float]:
    found = {int(m[1]): (name, value) for name, value in entries.items() if (m := _MEAN.fullmatch(name))}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise malformed(log, line, f"lacks a mean: there are accmean_task {', '.join(map(str, sorted(found)))}.")
    return [share(found[after][1], 100, log, line, found[after][0]) for after in sorted(found)]


def _order(entries: Mapping[str, Any]) -> int | None:
    """What the order of the classes depends on: 0 is the data set's own, else the seed."""
    if entries.get("custom_task_order") or entries.get("custom_class_order"):
        return None
    permuted, seed = entries.get("permute_classes"), entries.get("seed")
    if not isinstance(permuted, int):
        return None
    return (seed if isinstance(seed, int) else None) if permuted else 0


def _protocol(entries: Mapping[str, Any], setting: str) -> dict[str, Any]:
    joint, buffer, epochs = entries.get("joint"), entries.get("buffer_size"), entries.get("n_epochs")
    told = {
        "stream": entries.get("dataset"),
        "backbone": entries.get("backbone"),
        "scored_on": "validation" if entries.get("validation") else "test",
        "epochs": epochs if entries.get("fitting_mode", "epochs") in ("epochs", None) else None,
        "batch_size": entries.get("batch_size"),
        "schedule": None if joint is None else "joint" if joint else "sequential",
        "task_id_at_test": None if setting == UNKNOWN else setting == "task-il",
        "buffer_samples": buffer,
        "replay_batch": entries.get("minibatch_size"),
    }
    return {name: value for name, value in told.items() if value is not None}
