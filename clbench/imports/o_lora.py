"""O-LoRA: `N-NAME/all_results.json`, a folder for each task (run_uie_lora.py of cmnfriend/O-LoRA, 07117e1).

`predict_exact_match_for_NAME` is the exact match in percent on a data set after the folder's task;
`predict_eval_predictions.jsonl`, where it was kept, has a line for each test example with its `Dataset`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from clbench.imports.found import Found, json_of, malformed, matrix, share, text_of

RESULTS, PREDICTIONS = "all_results.json", "predict_eval_predictions.jsonl"
_FOLDER = re.compile(r"(\d+)-(.+)")


def read(path: Path) -> list[Found]:
    """The one run of a folder of outputs, or of one that holds such a folder as 'outputs'."""
    base = path / "outputs" if (path / "outputs").is_dir() else path
    folders = {int(m[1]): (p, m[2]) for p in _folders(base) if (m := _FOLDER.fullmatch(p.name))}
    if not folders or sorted(folders) != list(range(1, len(folders) + 1)):
        there = ", ".join(map(str, sorted(folders))) or "none"
        raise malformed(base, None, f"holds folders of tasks {there}, where 1-NAME, 2-NAME, … are expected.")
    ordered = [folders[number] for number in sorted(folders)]
    names = tuple(name for _, name in ordered)
    results = [json_of(folder / RESULTS) for folder, _ in ordered]
    rows: list[list[float | None]] = [
        [_score(told, name, folder / RESULTS) for name in names]
        for told, (folder, _) in zip(results, ordered, strict=True)
    ]
    if all(score is None for row in rows for score in row):
        raise malformed(base, None, "holds no predict_exact_match_for_NAME of its tasks: nothing was predicted.")
    return [
        Found(
            where=path.name,
            tasks=names,
            scores=matrix(rows),
            test_sizes=_sizes([base.parent, path, ordered[-1][0]], names),
            score="exact match",
            protocol={"stream": ", ".join(names), "scored_on": "test", "schedule": "sequential", **_epochs(results)},
            notes={name: [told.get(name) for told in results] for name in ("train_runtime", "train_samples")},
        )
    ]


def _folders(base: Path) -> list[Path]:
    if not base.is_dir():
        raise malformed(base, None, "is no folder; name the one whose folders are 1-NAME, 2-NAME, ….")
    return sorted(place for place in base.iterdir() if place.is_dir())


def _score(told: dict[str, Any], name: str, file: Path) -> float | None:
    key = f"predict_exact_match_for_{name}"
    return share(told[key], 100, file, None, key) if key in told else None


def _epochs(results: list[dict[str, Any]]) -> dict[str, Any]:
    epochs = {told.get("epoch") for told in results}
    (only,) = epochs if len(epochs) == 1 else (None,)
    return {"epochs": round(only)} if isinstance(only, int | float) and only == round(only) else {}


def _sizes(places: list[Path], names: tuple[str, ...]) -> tuple[int, ...]:
    """How many test examples each task has, by the predictions of the last round; () where they were not kept."""
    kept = [place / PREDICTIONS for place in places if (place / PREDICTIONS).is_file()]
    if not kept:
        return ()
    counts: Counter[str] = Counter()
    for number, line in enumerate(text_of(kept[-1]).splitlines(), 1):
        try:
            counts[json.loads(line)["Dataset"]] += 1
        except (ValueError, TypeError, LookupError) as error:
            raise malformed(kept[-1], number, "is torn or no JSON object with a 'Dataset'.") from error
    return tuple(counts[name] for name in names) if all(counts[name] for name in names) else ()
