"""Real pixels: a small transformer taught on half of CIFAR-100's classes learns the other half, task by task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clbench import catalog, plan, runner
from clbench.backbones.pretrain import Brought, pretrain
from clbench.data.prepare import prepare
from clbench.metrics import average_accuracy, forgetting, learning_accuracy
from clbench.record import Record
from clbench.stream import Examples, Stream
from clbench.suite import Suite

pytestmark = [pytest.mark.slow, pytest.mark.real_data]
SUITE, TASKS, TRAINED, TESTED = "cifar100-subset-b50", 3, 240, 60
"""How many tasks, of how many images each is learned, and of how many it is asked: a sixth of a real comparison."""
CHANCE = 1 / (10 * TASKS)


def few(examples: Examples, count: int) -> Examples:
    picked = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:count]
    return examples.subset(picked)  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Classes that the backbone has not seen, ten a task."""
    archive = Path(os.environ.get("CLBENCH_TEST_DATA", "")) / "cifar-100-python-subset.tar.xz"
    if not archive.is_file():
        pytest.skip("CLBENCH_TEST_DATA does not name the folder that holds cifar-100-python-subset.tar.xz")
    folder = tmp_path_factory.mktemp("pixels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLBENCH_DATA", str(folder))
        prepare("cifar100-subset", archive, lambda *progress: None)
        brought = Brought(source="cifar100-subset", classes="0-49", epochs=3)
        weights = pretrain("cifar-vit", folder, lambda line: None, brought)
        whole, given = catalog.suite(SUITE).stream(), catalog.suite(SUITE)
        parts = {"train": TRAINED, "validation": 10, "test": TESTED}
        tasks = [replace(t, **{p: few(getattr(t, p), n) for p, n in parts.items()}) for t in whole.tasks[1 : 1 + TASKS]]
        yield replace(
            given,
            make_stream=lambda order: Stream(tuple(tasks), whole.class_names),
            backbone=f"cifar-vit@{weights}",
            recipe=given.recipe.model_copy(update={"epochs": 2}),
        )


def test_every_method_learns_real_pixels(suite: Suite) -> None:
    stream, found = suite.stream(), dict[str, Record]()
    for cell in plan.cells(suite, stream, catalog.rows(suite, [], {}), [0], 0, "cpu"):
        record, _ = runner.run(cell, stream, device=torch.device("cpu"))
        assert record.status == "done", (cell.name, record.reason)
        assert record.audit is not None
        assert record.audit.batch_flips == 0
        assert record.audit.label_flips == 0 or cell.method.resources().task_id_at_test
        found.setdefault(record.method, record)  # the first row of several is the method as it is
    average = {name: average_accuracy(record.scores) for name, record in found.items()}
    assert min(average.values()) > CHANCE
    assert forgetting(found["seqlora"].scores) > 0.05
    assert learning_accuracy(found["seqlora"].scores) > 2 * CHANCE
    assert average["joint"] > average["finetune"]
    assert average["pertask"] > average["joint"]
