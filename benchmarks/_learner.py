"""Learners: a strategy that stands inside a task of random images, its steps run block by block."""

from __future__ import annotations

from typing import Any

import torch

from clbench import backbones, catalog
from clbench.meter import Meter
from clbench.method import Workbench
from clbench.recipe import Recipe
from clbench.strategy import Strategy
from clbench.stream import ImageSet, Task

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=1e-3)
CLASSES = 10
"""Of each task."""


def random_task(index: int, steps: int) -> Task:
    """A task of random images, as many as `steps` batches hold."""
    draws = torch.Generator().manual_seed(index)
    count, first = steps * RECIPE.batch_size, index * CLASSES
    pixels = torch.randint(0, 256, (count, 1, 32, 32), dtype=torch.uint8, generator=draws)
    examples = ImageSet(pixels, torch.randint(first, first + CLASSES, (count,), generator=draws))
    return Task(str(index), examples, examples, examples, tuple(range(first, first + CLASSES)))


class Standing(Strategy):
    """A strategy that can stay inside a task: `block` is one epoch of it, as often as wanted."""

    inside = False

    def stand(self, index: int, task: Task) -> None:
        """Do all that comes before the task's first epoch, and nothing that comes after its last."""
        self.inside, self.train_epochs = True, 0
        self.learn(index, task)

    def block(self) -> None:
        """One epoch of the task."""
        self._before_training_epoch()
        self.training_epoch()
        self._after_training_epoch()

    def _after_training_exp(self, **kwargs: Any) -> None:
        if not self.inside:
            super()._after_training_exp(**kwargs)

    def _train_cleanup(self) -> None:
        if not self.inside:
            super()._train_cleanup()


def learner(method: str, tasks: int, **settings: Any) -> Standing:
    """A listed method on glyph-vit before its first task; `settings` are those that are not its own."""
    meter = Meter(CPU)
    model = backbones.build("glyph-vit", tasks * CLASSES, 0)
    model.freeze_body()
    answer = catalog.method_type(method).cls(**settings)
    plugins = answer.plugins(Workbench(model, RECIPE, CPU, tasks, 0))
    strategy = Standing(model=model, recipe=RECIPE, plugins=plugins, meter=meter, device=CPU, seed=0)
    strategy.head_masking = answer.head_masking
    return strategy
