"""The benchmark of scoring: every kind of scoring is timed and answers the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from clbench import catalog
from clbench.featurecache import FeatureCache


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("evaluation")


@pytest.mark.slow
def test_scoring_is_timed_against_both_references(
    evaluation: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "TRAINED_IMAGES", 16)
    evaluation.main(["--blocks", "1", "--test-images", "4", "--methods", "dualprompt"])
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("scoring 40 images of 10 tasks; 1 threads")
    assert [line.split(",")[0] for line in lines if not line.startswith(" ")] == [
        "dualprompt against 'task by task'",
        "dualprompt against 'every adapter'",
    ]
    rows = ["kept in memory", "nothing kept", "kept on the disk", "kept in memory"]
    assert [line[2:24].rstrip() for line in lines if line.startswith(" ")] == rows


def test_what_is_kept_is_what_is_timed(evaluation: ModuleType, tmp_path: Path) -> None:
    stream = evaluation.shortened(catalog.suite(evaluation.SUITE).stream(), 4)
    assert {len(task.train) for task in stream} == {4}
    few = evaluation.Stream(tuple(evaluation.replace(t, test=t.test.subset(range(4))) for t in stream.tasks[:2]))
    run = evaluation.learned("ncm", few, FeatureCache(tmp_path, 2**20))
    looks: list[int] = []
    seen = run.model.encode
    run.model.encode = lambda tokens: (looks.append(len(tokens)), seen(tokens))[1]
    counts = {}
    for keep in ("nowhere", "memory", "disk"):
        looks.clear()
        evaluation.ours(run, keep)()
        counts[keep] = sum(looks)
    looks.clear()
    evaluation.task_by_task(run)()
    assert sum(looks) == 8
    assert counts == {"nowhere": 8, "memory": 0, "disk": 8}  # from the disk four of each task are looked at again
