"""PILOT: the runs in a log (trainer.py and utils/toolkit.py of sun-hailong/LAMDA-PILOT, 2647455).

A run prints its settings as `key: value`, then after each task `CNN: {...}` with the accuracy in percent of each group
of classes, a task each ('00-09'), and `CNN top1 curve: [...]` with those over all samples so far. Runs of several seeds
go to one file, and a file that is there grows.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clbench.imports.found import Found, dict_of, is_plain, malformed, matrix, share, text_of
from clbench.record import UNKNOWN

_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \S+) \[(?P<file>[^\]]+)\] => (?P<text>.*)")
_SETTING = re.compile(r"(?P<name>[a-z_][A-Za-z0-9_]*): (?P<value>.*)")
_GROUP = re.compile(r"\d+-\d+")
_PASSING = ("seed", "device", "config", "prefix")
"""Settings that tell no configuration from another."""


@dataclass
class _Run:
    """What was read of a run so far."""

    line: int
    time: str
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    """Group of classes -> accuracy, after each task."""
    pooled: list[float] = field(default_factory=list)
    whole: bool = False


def read(path: Path) -> list[Found]:
    """The runs of a log, or of all logs below a folder."""
    logs = sorted(path.rglob("*.log")) if path.is_dir() else [path]
    found = [_found(run, log) for log in logs for run in _runs(log) if run.rounds or run.pooled]
    if not found:
        raise malformed(path, None, "holds no 'CNN top1 curve' of PILOT; name a log of it or a folder with such.")
    return found


def _runs(log: Path) -> list[_Run]:
    runs: list[_Run] = []
    for number, line in enumerate(text_of(log).splitlines(), 1):
        parts = _LINE.fullmatch(line.rstrip())
        if parts is None or parts["file"] != "trainer.py":
            continue
        text, setting = parts["text"].strip(), _SETTING.fullmatch(parts["text"].strip())
        if setting is not None:
            name = setting["name"]
            if not runs or runs[-1].rounds or runs[-1].pooled or name in runs[-1].settings:
                runs.append(_Run(number, parts["time"]))
            runs[-1].settings[name] = _value(setting["value"])
        elif text.startswith(("CNN: ", "CNN top1 curve: ", "Forgetting (CNN): ")):
            if not runs:
                raise malformed(log, number, "holds results before the settings of their run.")
            _result(runs[-1], text, log, number)
    return runs


def _value(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    return value if is_plain(value) else text


def _result(run: _Run, text: str, log: Path, line: int) -> None:
    if text.startswith("CNN: "):
        entries = dict_of(text.removeprefix("CNN: "), log, line)
        groups = {k: share(v, 100, log, line, k) for k, v in entries.items() if _GROUP.fullmatch(k)}
        if len(groups) != len(run.rounds) + 1 or not set(groups) >= set(run.rounds[-1] if run.rounds else ()):
            raise malformed(log, line, f"holds {len(groups)} groups of classes after task {len(run.rounds) + 1}.")
        run.rounds.append(groups)
    elif text.startswith("CNN top1"):
        values = dict_of("{'curve': " + text.removeprefix("CNN top1 curve: ") + "}", log, line)["curve"]
        if not isinstance(values, list) or len(values) != len(run.pooled) + 1:
            raise malformed(log, line, f"is no curve of {len(run.pooled) + 1} accuracies.")
        run.pooled = [share(value, 100, log, line, "CNN top1 curve") for value in values]
    else:
        run.whole = True


def _found(run: _Run, log: Path) -> Found:
    said, count = run.settings, len(run.rounds) or len(run.pooled)
    if run.rounds and run.pooled and len(run.rounds) != len(run.pooled):
        raise malformed(log, run.line, f"the run has {len(run.rounds)} rounds and a curve of {len(run.pooled)}.")
    rows = [list(groups.values()) for groups in run.rounds]
    seed, shuffle = said.get("seed"), said.get("shuffle")
    seed = seed if isinstance(seed, int) else None
    return Found(
        where=f"{log.name}, line {run.line}",
        tasks=tuple(run.rounds[-1]) if run.rounds else tuple(f"task {number}" for number in range(1, count + 1)),
        scores=matrix(rows or [[None] * count] * count),
        stated={"pooled": tuple(run.pooled)} if run.pooled else {},
        method=str(said.get("model_name", "")),
        suite=str(said.get("dataset", "")),
        seed=seed,
        order_seed={True: seed, False: 0}.get(shuffle) if isinstance(shuffle, bool) else None,
        protocol=_protocol(said),
        params={name: value for name, value in said.items() if name not in _PASSING},
        remarks=() if run.whole else ("the log ends without 'Forgetting (CNN)': more tasks may have been meant",),
        started=run.time,
    )


def _protocol(said: dict[str, Any]) -> dict[str, Any]:
    stream = [f"{said[name]} {words}" for name, words in _SIZES.items() if name in said]
    kept = said.get("memory_per_class") if said.get("fixed_memory") else said.get("memory_size")
    told = {
        "stream": ", ".join([str(said.get("dataset", UNKNOWN)), *stream]),
        "backbone": said.get("backbone_type"),
        "scored_on": "test",
        "batch_size": said.get("batch_size"),
        "schedule": "sequential",
        "task_id_at_test": False,
        "buffer_samples": kept if kept == 0 or not said.get("fixed_memory") else None,
    }
    return {name: value for name, value in told.items() if value is not None}


_SIZES = {"init_cls": "classes first", "increment": "classes a task"}
