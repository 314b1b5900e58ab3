"""TRACE: `results-ROUND-TASK-NAME.json` of its inference (infer_single.py of BeyonderXX/TRACE, 462e39f).

Both numbers count from 0; a file holds `eval` (score -> value) and the prompts, results and labels of the examples. Of
several scores that one is taken which the benchmark averages: accuracy and ROUGE-L are fractions, the similarity of
code and SARI (a list around an object) out of 100. TreeLoRA's code writes the same files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clbench.imports.found import Found, json_of, malformed, matrix, share

_NAME = re.compile(r"results-(\d+)-(\d+)-(.+)\.json")
_SCALES = {"accuracy": 1.0, "sari": 100.0, "similarity": 100.0, "rouge-L": 1.0}
"""Score -> its greatest value, the one to take first."""


def read(path: Path) -> list[Found]:
    """The one run of a folder."""
    files = {(int(m[1]), int(m[2])): (p, m[3]) for p in _files(path) if (m := _NAME.fullmatch(p.name))}
    if not files:
        raise malformed(path, None, "holds no 'results-ROUND-TASK-NAME.json'; name TRACE's folder of predictions.")
    count = 1 + max(max(places) for places in files)
    told = {task for _, task in files}
    if len(told) < count:  # before there is a row for each, for a name may hold any number
        raise malformed(path, None, f"holds no file of task {next(i for i in range(count) if i not in told)}.")
    names, sizes, taken = [""] * count, [0] * count, [""] * count
    rows: list[list[float | None]] = [[None] * count for _ in range(count)]
    for (after, task), (file, name) in sorted(files.items()):
        if names[task] not in ("", name):
            raise malformed(file, None, f"task {task} is called '{name}' here and '{names[task]}' in another file.")
        content = json_of(file)
        names[task], taken[task] = name, _score_name(content, file)
        rows[after][task] = share(_score(content, taken[task]), _SCALES[taken[task]], file, None, taken[task])
        sizes[task] = len(content["results"]) if isinstance(content.get("results"), list) else 0
    return [
        Found(
            where=path.name,
            tasks=tuple(names),
            scores=matrix(rows),
            test_sizes=tuple(sizes) if all(sizes) else (),
            score=" / ".join(dict.fromkeys(taken)),
            protocol={"stream": ", ".join(names), "scored_on": "test", "schedule": "sequential"},
            notes={"scores": dict(zip(names, taken, strict=True))},
        )
    ]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise malformed(path, None, "is no folder; name TRACE's folder of predictions.")
    return sorted(path.iterdir())


def _score_name(content: Mapping[str, Any], file: Path) -> str:
    scores = content.get("eval")
    known = [name for name in _SCALES if isinstance(scores, dict) and name in scores]
    if not known:
        raise malformed(file, None, f"'eval' holds none of {', '.join(_SCALES)}.")
    return known[0]


def _score(content: Mapping[str, Any], name: str) -> Any:
    value = content["eval"][name]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.get(name) if isinstance(value, dict) else value
