"""The vision suites: nothing is read before a run, recipes are the papers', and every method runs at full size."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clbench import catalog, plan, runner
from clbench.data.prepare import prepare
from clbench.errors import BadValue, NotAvailable
from clbench.protocol import Protocol
from clbench.recipe import Recipe
from clbench.stream import ImageSet, Stream, Task
from clbench.suite import Files, Suite
from clbench.suites._contenders import EVERY
from clbench.suites._vision import LAYOUTS

PARITY = [name for name in catalog.suites() if "-parity-" in name]
VISION = [*LAYOUTS, *PARITY]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a cifar100-subset of four training images and a test image a class."""
    made, root = tmp_path_factory.mktemp("python"), tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, each in (("train", 4), ("test", 1)):
        labels = [label for _ in range(each) for label in range(100)]
        rows = rng.integers(0, 256, (len(labels), 3072), np.uint8)
        (made / name).write_bytes(pickle.dumps({"data": rows, "fine_labels": labels}, protocol=2))
    (made / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"thing_{n}" for n in range(100)]}, protocol=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLBENCH_DATA", str(root))
        prepare("cifar100-subset", made, lambda what, done, total: None)
    return root


def subset(data: Path, name: str = "cifar100-subset") -> Suite:
    return catalog.suite(name, files=Files(folder=data / "cifar100-subset"), weights="random")


def test_suites_load_without_torch_and_without_data(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom clbench import catalog\n"
        f"for name in {VISION}:\n    assert catalog.suite(name).contenders\n"
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)\n"
    )
    environment = {"CLBENCH_DATA": str(tmp_path / "nothing")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_every_layout_is_a_suite() -> None:
    for name in LAYOUTS:
        suite = catalog.suite(name)
        assert (suite.name, suite.stream_name) == (name, name)
        assert suite.contenders == EVERY
    assert len({contender.method for contender in EVERY}) >= 30


def test_all_methods_are_taught_alike_in_equal_suites() -> None:
    assert not any(catalog.suite(name).recipes for name in LAYOUTS)
    for name in ("cifar100", "imagenet-r", "pacs", "cifar100-subset"):
        suite = catalog.suite(name)
        rows = catalog.rows(suite, (), {})
        assert {row.recipe for row in rows} == {suite.recipe}
        assert {row.method.epochs for row in rows} == {None}
        kept = {row.method.resources().buffer_samples for row in rows} - {0}
        assert len(kept) == 1, f"{name}: buffers of {kept} samples"


@pytest.mark.parametrize("name", PARITY)
def test_parity_recipes_fit_methods_and_recipes(name: str) -> None:
    suite = catalog.suite(name)
    rows = catalog.rows(suite, (), {})
    assert len(rows) == len(suite.contenders)
    assert len({(row.method.name, row.variant) for row in rows}) == len(rows)
    assert set(suite.settings) | set(suite.recipes) <= {row.method.name for row in rows} | {"inflora"}
    assert {"validation: 0 of the training images"} < set(suite.notes(Stream(())))


def taught(suite: str, method: str) -> tuple[Recipe, float]:
    rows = [row for row in catalog.rows(catalog.suite(suite), [method], {}) if row.recipe is not None]
    recipe, own = rows[0].recipe, rows[0].method.learning_rate
    assert recipe is not None
    return recipe, own or recipe.learning_rate


def test_recipes_of_the_papers() -> None:
    recipe, rate = taught("cifar100-parity-hide", "treelora")
    assert (recipe.optimizer, rate, recipe.batch_size, recipe.epochs, recipe.schedule) == (
        *("adam", 0.005, 192, 20),
        "constant",
    )
    recipe, rate = taught("imagenet-r-parity-hide", "hide-prompt")
    assert (recipe.epochs, recipe.schedule, rate) == (150, "cosine", pytest.approx(0.0028125))
    recipe, rate = taught("cifar100-parity-pilot", "slca")
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.batch_size) == ("sgd", 0.9, 5e-4, 64)
    assert (recipe.steps, rate) == ((18,), 0.01)
    recipe, rate = taught("cifar100-parity-pilot", "l2p")
    assert (recipe.optimizer, recipe.batch_size, recipe.epochs, rate) == ("adam", 16, 5, 0.001875)
    recipe, rate = taught("imagenet-r-parity-pilot", "ease")
    assert (recipe.batch_size, recipe.epochs, recipe.weight_decay, rate) == (16, 20, 0.005, 0.05)
    recipe, rate = taught("imagenet-r-parity-coda", "coda-prompt")
    assert (recipe.schedule, recipe.batch_size, recipe.epochs, rate) == ("coda", 128, 50, 0.001)
    recipe, rate = taught("cifar100-parity-coda", "inflora")
    assert (recipe.schedule, recipe.lora_rank, recipe.lora_alpha, rate) == ("coda", 10, 10, 5e-4)


def card(suite: Suite, order_seed: int = 0) -> tuple[Stream, Protocol]:
    stream = suite.stream(order_seed)
    return stream, suite.protocol(stream, order_seed)


def test_the_folder_that_was_named_is_read(data: Path) -> None:
    stream, protocol = card(subset(data))
    assert [len(task.classes) for task in stream] == [10] * 10
    assert [len(part) for part in (stream.tasks[0].train, stream.tasks[0].validation)] == [30, 10]
    assert protocol.data == ("class order: natural", "validation: 0.1 of the training images")
    assert (protocol.transform, protocol.backbone) == ("crop32", "cifar-vit")
    large, _ = card(subset(data, "cifar100-subset-b50"))
    assert [len(task.classes) for task in large] == [50, 10, 10, 10, 10, 10]


def test_what_cannot_be_read_is_refused_when_it_is_asked_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="leave out --task"):
        catalog.suite("cifar100-subset", files=Files(tasks=("apple",)))
    with pytest.raises(NotAvailable, match="no folder at"):
        catalog.suite("cifar100-subset", files=Files(folder=data / "nowhere"))
    monkeypatch.setenv("CLBENCH_DATA", str(data))
    with pytest.raises(NotAvailable, match="clbench data prepare cifar100"):
        catalog.suite("cifar100").stream()


def test_parity_takes_all_training_images_in_the_papers_order(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe, first in (("hide", 0), ("pilot", 68), ("coda", 0)):
        suite = catalog.suite(f"cifar100-parity-{recipe}")
        monkeypatch.setitem(LAYOUTS, "cifar100", LAYOUTS["cifar100-subset"])  # type: ignore[index]
        stream = suite.of(Files(folder=data / "cifar100-subset")).stream()
        assert stream.tasks[0].classes[0] == first
        assert [(len(task.train), len(task.validation)) for task in stream] == [(40, 0)] * 10


def test_a_run_on_the_subset(data: Path) -> None:
    suite = subset(data)
    suite = replace(suite, recipe=suite.recipe.model_copy(update={"epochs": 1}))
    stream = Stream(suite.stream().tasks[:2])
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, ["seqlora"], {}), [0], 0, "cpu")
    made, _ = runner.run(cell, stream, device=torch.device("cpu"))
    assert made.status == "done", made.reason
    assert made.protocol["data"][0] == "class order: natural"


LIGHT: dict[str, dict[str, Any]] = {
    "ranpac": {"expansion": 64},
    "ogd": {"vectors": 2},
    "ewc": {"fisher_samples": 2},
    "mas": {"samples": 2},
    **{name: {"router_epochs": 1, "alignment_epochs": 1, "centroids": 1} for name in ("hide-prompt", "hidelora")},
    "slca": {"alignment_epochs": 1, "alignment_samples": 4},
    "s-prompt": {"centroids": 1},
    **{name: {"buffer_samples": 2, "replay_batch": 2} for name in ("replay", "er-ace", "derpp")},
    **{name: {"buffer_samples": 2, "reference_batch": 2} for name in ("gem", "agem")},
}
LIGHT["treelora"] = LIGHT["hidelora"]


def large_images(count: int) -> ImageSet:
    draws = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, 224, 224), generator=draws, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({contender.method for contender in EVERY}))
def test_every_method_learns_a_task_at_full_size(method: str) -> None:
    """ViT-B/16 with random weights, images of 224 pixels, two in a batch."""
    stream = Stream((Task("two things", large_images(4), large_images(2), large_images(2), (0, 1)),))
    suite = replace(
        catalog.suite("cifar100", weights="random"),
        recipe=Recipe(epochs=1, batch_size=2, eval_batch_size=2, learning_rate=1e-4, lora_rank=2, lora_alpha=2),
        settings=LIGHT,
    )
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, [method], {}), [0], 0, "cpu")
    made, _ = runner.run(cell, stream, device=torch.device("cpu"))
    assert made.status == "done", made.reason
    assert "random weights: for timing alone" in made.protocol["marks"]
