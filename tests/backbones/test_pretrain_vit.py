"""Pre-training of the small vision transformer, on miniatures of what a person may bring."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clbench import backbones
from clbench.backbones import pretrain_vit
from clbench.backbones.pretrain import Brought, pretrain
from clbench.backbones.pretrain_vit import CIFAR10, VitRecipe, chosen, photographs
from clbench.data.prepare import prepare
from clbench.errors import BadValue, NotAvailable

NAMES = ["dark", "light", "red"]


def colours(labels: list[int], seed: int = 0) -> np.ndarray[Any, Any]:
    """Images of noise around a colour of their class, uint8 [n, 3072]."""
    centres = np.array([[30, 30, 30], [220, 220, 220], [200, 30, 30]])[labels]
    noise = np.random.default_rng(seed).normal(0, 20, (len(labels), 3, 1024))
    return (centres[:, :, None] + noise).clip(0, 255).astype(np.uint8).reshape(len(labels), -1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CIFAR-10's files in small: six images a batch of three classes."""
    made = tmp_path / "cifar-10-batches-py"
    made.mkdir()
    for number, name in enumerate((*CIFAR10, "test_batch")):
        labels = [0, 1, 2] * 2
        content = {"data": colours(labels, number), "labels": labels}
        (made / name).write_bytes(pickle.dumps(content, protocol=2))
    (made / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=2))
    return made


def silent(line: str) -> None:
    """A report to nobody."""


def test_weights_and_card(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    brought = Brought(source=str(folder), classes="0-1", epochs=15)
    path = pretrain("cifar-vit", tmp_path / "out", told.append, brought)
    card = json.loads(path.with_suffix(".json").read_text())
    assert (card["classes"], card["class_names"], card["images"], card["steps"]) == (2, ["dark", "light"], 20, 15)
    assert card["accuracy"] == 1.0
    assert "images/s" in told[1]
    assert card["sha256"] == backbones.weights_sha256(f"cifar-vit@{path}")
    model = backbones.build(f"cifar-vit@{path}", 2, 0)
    images = torch.from_numpy(colours([0, 0, 1, 1], 9)).view(4, 3, 32, 32)
    features = torch.nn.functional.normalize(model.features(images), dim=1)
    likeness = features @ features.T
    assert likeness[0, 1] > likeness[0, 2]


def test_the_same_seed_gives_the_same_weights(folder: Path) -> None:
    def made() -> dict[str, torch.Tensor]:
        data = photographs(str(folder))
        torch.manual_seed(0)
        body = pretrain_vit.cifar_vit()
        pretrain_vit.train(body, data.of((0, 2)), VitRecipe(epochs=1), torch.device("cpu"), silent)
        return body.state_dict()

    first, second = made(), made()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_prepared_set_and_some_of_its_classes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "python"
    raw.mkdir()
    for name, each in (("train", 3), ("test", 1)):
        labels = [0, 1, 2] * each
        (raw / name).write_bytes(pickle.dumps({"data": colours(labels), "fine_labels": labels}, protocol=2))
    (raw / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES}, protocol=2))
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path / "data"))
    prepare("cifar100-subset", raw, lambda what, done, total: None)
    data = photographs("cifar100-subset")
    assert [len(part[1]) for part in (data.train, data.test)] == [9, 3]
    some = data.of(chosen("2,0", data.names))
    assert (some.names, some.train[1].tolist()) == (("red", "dark"), [1, 0] * 3)
    assert torch.equal(some.train[0], data.train[0][data.train[1] != 1])


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        *(("0-3", "from 0 to 2"), ("1,1", "once"), ("red", "and ranges"), ("1-", "ranges"), ("1", "two or more")),
        *(("0-99999999999", "from 0 to 2"), ("²", "from 0 to 2"), ("9" * 5000, "from 0 to 2")),
    ],
)
def test_classes_that_are_none(word: str, sentence: str) -> None:
    with pytest.raises(BadValue, match=sentence):
        chosen(word, tuple(NAMES))


def test_what_was_not_said_or_does_not_fit(folder: Path, tmp_path: Path) -> None:
    for brought, out in (
        (Brought(), tmp_path),
        (Brought(source=str(folder)), tmp_path),
        (Brought(source=str(folder), epochs=1), None),
    ):
        with pytest.raises(BadValue, match="pass --from"):
            pretrain("cifar-vit", out, silent, brought)
    with pytest.raises(BadValue, match="leave out --from"):
        pretrain("glyph-vit", tmp_path, silent, Brought(source="cifar100"))
    (folder / "data_batch_3").unlink()
    with pytest.raises(NotAvailable, match="it lacks data_batch_3"):
        photographs(str(folder))


def test_damaged_files_are_named(folder: Path) -> None:
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}))
    with pytest.raises(BadValue, match="'data_batch_2' holds no array"):
        photographs(str(folder))
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": colours([0, 1]), "labels": [0, 7]}))
    with pytest.raises(BadValue, match="'data_batch_2' holds no list 'labels'"):
        photographs(str(folder))
