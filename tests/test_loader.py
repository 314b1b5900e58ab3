"""What a task is trained on and what it is described by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clbench import backbones
from clbench.meter import Meter
from clbench.recipe import Recipe
from clbench.strategy import Plugin, Strategy
from clbench.stream import ImageSet
from clbench.tiny import stream

CPU = torch.device("cpu")


class Inverting(ImageSet):
    """Images that are inverted to be trained on."""

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        images, targets = super().batch(indices, device)
        return (images if draws is None else 255 - images), targets


class Reader(Plugin):
    """Keeps the inputs of each step, and what the loader gives before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.trained_on: list[Tensor] = []
        self.read: list[Tensor] = []

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        self.trained_on.append(strategy.mb_x)

    def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
        self.read.append(torch.cat([inputs for inputs, *_ in strategy.dataloader]))

    def after_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        self.read.append(torch.cat([inputs for inputs, *_ in strategy.dataloader]))


def in_order(images: Tensor) -> list[list[int]]:
    rows: list[list[int]] = images.flatten(1).tolist()
    return sorted(rows)


def test_a_task_is_trained_on_augmented_samples_and_described_by_plain_ones() -> None:
    task, reader = stream().tasks[0], Reader()
    plain = task.train.images
    model, recipe = backbones.build("tiny-vit", 6, 0), Recipe(epochs=2, batch_size=16)
    model.freeze_body()
    strategy = Strategy(model=model, recipe=recipe, plugins=[reader], meter=Meter(CPU), device=CPU, seed=0)
    strategy.learn(0, replace(task, train=Inverting(plain, task.train.targets)))
    assert in_order(torch.cat(reader.trained_on)) == sorted(2 * in_order(255 - plain))
    assert len(reader.read) == 3
    assert all(in_order(images) == in_order(plain) for images in reader.read)
