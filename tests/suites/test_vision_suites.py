"""The vision suites: nothing is read before a run, recipes are the papers', and every method runs at full size."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clbench import catalog, plan, runner, transforms
from clbench.backbones import vision
from clbench.cli import app
from clbench.data import cache
from clbench.data.prepare import prepare
from clbench.errors import BadValue, ClbenchError, NotAvailable
from clbench.protocol import Protocol
from clbench.recipe import Recipe
from clbench.record import Record
from clbench.stream import ImageSet, Stream, Task
from clbench.suite import Files, Suite
from clbench.suites import _images
from clbench.suites._contenders import EVERY
from clbench.suites._vision import LAYOUTS

PARITY = [name for name in catalog.suites() if "-parity-" in name]
VISION = [*LAYOUTS, *PARITY]
DATA = ("cifar100", "imagenet-r", "cub200")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a cifar100-subset of four training images and a test image a class, whole and shrunk."""
    made, root = tmp_path_factory.mktemp("python"), tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, each in (("train", 4), ("test", 1)):
        labels = [label for _ in range(each) for label in range(100)]
        rows = rng.integers(0, 256, (len(labels), 3072), np.uint8)
        (made / name).write_bytes(pickle.dumps({"data": rows, "fine_labels": labels}, protocol=2))
    (made / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"thing_{n}" for n in range(100)]}, protocol=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLBENCH_DATA", str(root))
        for short_side in (None, 16):
            prepare("cifar100-subset", made, lambda what, done, total: None, short_side=short_side)
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
    momenta = [catalog.suite(f"{data}-parity-hide").settings["hide-prompt"]["momentum"] for data in DATA]
    assert momenta == [0.1, 0.01, 0.01]
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
    order, share, order_hash, data_hash, views = protocol.data
    assert (order, share) == ("class order: natural", "validation: 0.1 of the training images")
    listed = ",".join(map(str, range(100)))
    assert order_hash == f"class order sha256: {hashlib.sha256(f'[{listed}]'.encode()).hexdigest()[:12]}"
    ready = cache.open("cifar100-subset", data / "cifar100-subset")
    assert data_hash == f"images, labels and split sha256: {ready.sha256[:12]}"
    assert views == (
        "views: crop32: train random crop of 32 out of a border of 4, flip 0.5; "
        "test shorter side to 32, bilinear, central 32"
    )
    _, other = card(subset(data), 1)
    assert (other.data[2] == order_hash, other.data[3] == data_hash) == (False, True)
    assert (protocol.transform, protocol.backbone) == ("crop32", "cifar-vit")
    large, _ = card(subset(data, "cifar100-subset-b50"))
    assert [len(task.classes) for task in large] == [50, 10, 10, 10, 10, 10]


def chosen(data: Path, name: str = "cifar100-subset", **words: str) -> Suite:
    files = Files(folder=data / "cifar100-subset", choices=tuple(words.items()))
    return catalog.suite(name, files=files, weights="random")


def test_order_sizes_transform_and_normalisation_are_chosen_by_name(data: Path) -> None:
    words = {"order": "seed1993", "sizes": "60,40", "transform": "plain@32", "normalisation": "imagenet"}
    stream, protocol = card(chosen(data, **words))
    assert [len(task.classes) for task in stream] == [60, 40]
    assert stream.tasks[0].classes[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    assert stream.tasks[0].train.batch(torch.arange(2), torch.device("cpu"))[0].shape == (2, 3, 32, 32)
    assert (protocol.transform, protocol.normalisation) == ("plain@32", "imagenet")
    assert protocol.data[:3] == (
        *("class order: seed1993", "validation: 0.1 of the training images"),
        "classes of each task: 60,40",
    )
    _, usual = card(subset(data))
    assert protocol.suite_hash != usual.suite_hash
    for name, word in words.items():
        _, other = card(chosen(data, **{name: word}))
        assert other.suite_hash != usual.suite_hash, name
    mixed = ",".join(map(str, reversed(range(100))))
    stream, protocol = card(chosen(data, order=mixed, sizes="20"))
    assert [task.classes[0] for task in stream] == [99, 79, 59, 39, 19]
    assert protocol.data[0] == f"class order: {mixed}"
    assert card(chosen(data, order="natural", normalisation="none"))[1].hash == usual.hash


def test_a_shrunk_copy_is_taken_where_it_is_asked_for(data: Path) -> None:
    stream, protocol = card(chosen(data, short_side="16", transform="plain@16"))
    stored = cache.open("cifar100-subset", data / "cifar100-subset", short_side=16)
    images, _ = stream.tasks[0].test.batch(torch.arange(1), torch.device("cpu"))
    assert np.array_equal(images[0].numpy(), stored.images.pixels(400))  # the first test image is of class 0
    assert "short side: 16" in protocol.data
    assert protocol.data[-2] == f"images, labels and split sha256: {stored.sha256[:12]}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"order": "seed1992"}, "no class order called 'seed1992'"),
        ({"order": "1,2,3"}, "each of 0 to 99 once; this one has 3 entries"),
        ({"order": "1,b"}, "suite.order takes numbers"),
        ({"sizes": "ten"}, "suite.sizes is the classes of a task"),
        ({"sizes": "50,40"}, "add up to all 100 classes"),
        ({"sizes": "0"}, "one class or more"),
        ({"transform": "pilots"}, "no transform called 'pilots'"),
        ({"transform": "{epochs}"}, "no transform called"),
        ({"transform": "pilot@{other}"}, "no transform called"),
        ({"transform": "pilot@big"}, "no transform called 'pilot@big'"),
        ({"normalisation": "0.4"}, "no normalisation called '0.4'"),
        ({"short_side": "small"}, "the N of 'clbench data prepare --short-side N'"),
        ({"short_side": "256"}, "prepare cifar100-subset --short-side 256"),
        ({"colour": "red"}, "no choice of 'cifar100-subset' called 'colour'"),
    ],
)
def test_a_choice_that_is_none_is_refused(words: dict[str, str], says: str, data: Path) -> None:
    with pytest.raises(ClbenchError, match=says):
        chosen(data, **words).stream()


def test_other_suites_offer_no_choice(data: Path) -> None:
    for name in ("tiny", "trace"):
        with pytest.raises(BadValue, match=r"is as it is; leave out --set suite\.order"):
            catalog.suite(name, files=Files(choices=(("order", "natural"),)))
    with pytest.raises(BadValue, match="a task of 'pacs' is a domain"):
        catalog.suite("pacs", files=Files(choices=(("sizes", "2"),))).stream()


def test_the_names_that_may_be_chosen_are_those_that_there_are() -> None:
    assert tuple(vision.NORMALISATIONS) == _images.NORMALISATIONS
    assert tuple(transforms.TRANSFORMS) == _images.TRANSFORMS


def test_a_run_with_choices_is_made_again_from_its_record(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLBENCH_DATA", str(data))
    words = ["--set", "suite.order=seed1993", "--set", "suite.sizes=50", "--weights", "random"]
    place = ["--store", str(tmp_path)]
    done = CliRunner().invoke(app, ["run", "cifar100-subset", "--method", "ncm", "--device", "cpu", *words, *place])
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("runs/*/*/*/record.json")
    made = Record.model_validate_json(path.read_bytes())
    assert [made.protocol["data"][0], len(made.tasks)] == ["class order: seed1993", 2]
    assert "--set suite.order=seed1993 --set suite.sizes=50" in made.origin.again
    again = CliRunner().invoke(app, ["rerun", "ncm", *place])
    assert again.exit_code == 0, again.output
    assert "Bit-identical" in again.output


def test_what_cannot_be_read_is_refused_when_it_is_asked_for(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadValue, match="leave out --task"):
        catalog.suite("cifar100-subset", files=Files(tasks=("apple",)))
    with pytest.raises(NotAvailable, match="no folder at"):
        catalog.suite("cifar100-subset", files=Files(folder=data / "nowhere"))
    monkeypatch.setenv("CLBENCH_DATA", str(data))
    with pytest.raises(NotAvailable, match="clbench data prepare cifar100"):
        catalog.suite("cifar100").stream()
    with pytest.raises(BadValue, match="holds 'cifar100-subset', which is not 'cifar100'"):
        catalog.suite("cifar100", files=Files(folder=data / "cifar100-subset")).stream()


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
