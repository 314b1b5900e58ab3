"""Ready Avalanche plugins, and anybody's own, plug into the strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin

from clbench import backbones
from clbench.adapters.lora import attach
from clbench.errors import UnknownName
from clbench.meter import Meter
from clbench.recipe import Recipe
from clbench.seeding import generator
from clbench.strategy import HOOKS, Strategy
from clbench.tiny import stream

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-2)

STEP = [
    *("before_training_iteration", "before_forward", "after_forward", "before_backward", "after_backward"),
    *("before_update", "after_update", "after_training_iteration"),
]
EPOCH = ["before_training_epoch", *STEP * 4, "after_training_epoch"]
TRAINING = [
    *("before_training", "before_train_dataset_adaptation", "after_train_dataset_adaptation", "before_training_exp"),
    *EPOCH * 2,
    *("after_training_exp", "after_training"),
]
SCORING = [
    *("before_eval", "before_eval_dataset_adaptation", "after_eval_dataset_adaptation", "before_eval_exp"),
    *["before_eval_iteration", "before_eval_forward", "after_eval_forward", "after_eval_iteration"] * 2,
    *("after_eval_exp", "after_eval"),
]


def learner(plugins: Sequence[Any], masking: Any = "seen") -> Strategy:
    torch.manual_seed(0)
    model = backbones.build("tiny-vit", 6, 0)
    attach(model, ("q", "v"), 2, 2.0, generator(0, "lora"))
    strategy = Strategy(model=model, recipe=RECIPE, plugins=plugins, meter=Meter(CPU), device=CPU, seed=0)
    strategy.head_masking = masking
    return strategy


def learn(strategy: Strategy, tasks: int = 3) -> None:
    for index, task in enumerate(stream().tasks[:tasks]):
        strategy.learn(index, task)


def accuracy(strategy: Strategy, task: int) -> float:
    test = stream().tasks[task].test
    answers = strategy.answer(test, torch.full((len(test),), task)).predictions
    return float((answers == test.targets).float().mean())


def test_every_hook_comes_in_avalanches_order() -> None:
    called: list[str] = []
    hooks = {name: lambda self, strategy, name=name, **kwargs: called.append(name) for name in HOOKS}
    strategy = learner([type("Counter", (SupervisedPlugin,), hooks)()])
    learn(strategy, tasks=1)
    assert called == TRAINING
    called.clear()
    test = stream().tasks[0].test
    strategy.answer(test, torch.zeros(32, dtype=torch.int64), batch_size=16)
    assert called == SCORING
    assert set(TRAINING + SCORING) == HOOKS


def test_a_foreign_plugin_with_a_misspelt_hook_is_refused() -> None:
    plugin = type("Typo", (SupervisedPlugin,), {"before_fordward": lambda self, strategy: None})()
    with pytest.raises(UnknownName, match=r"'before_fordward'\. Did you mean 'before_forward'"):
        learner([plugin])


class BatchSizes(SupervisedPlugin):  # type: ignore[type-arg]
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.classes: set[int] = set()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.experience.current_experience == 2:
            self.sizes.append(len(strategy.mb_y))
            self.classes |= set(strategy.mb_y.tolist())


def test_avalanches_replay_brings_past_samples_and_forgets_less() -> None:
    plain, batches = learner([]), BatchSizes()
    learn(plain)
    replay = learner([ReplayPlugin(mem_size=24), batches])
    learn(replay)
    assert min(batches.sizes) > 16
    assert max(batches.sizes) == 32
    assert batches.classes == {0, 1, 2, 3, 4, 5}
    assert accuracy(replay, 0) > accuracy(plain, 0)


def test_avalanches_ewc_holds_the_weights_back() -> None:
    moved = []
    for weight in (0.0, 1e6):
        strategy = learner([EWCPlugin(ewc_lambda=weight)])
        learn(strategy, tasks=1)
        before = [p.detach().clone() for p in strategy.model.trainable()]
        strategy.learn(1, stream().tasks[1])
        after = [p.detach() for p in strategy.model.trainable()]
        moved.append(math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))))
    assert moved[1] < moved[0] / 2


def test_avalanches_lwf_keeps_the_old_answers() -> None:
    distances = []
    for weight in (0.0, 100.0):
        strategy = learner([LwFPlugin(alpha=weight, temperature=2)], masking="current")
        learn(strategy, tasks=1)
        images = stream().tasks[1].train.batch(torch.arange(64), CPU)[0]
        with torch.no_grad():
            before = strategy.model(images)[:, :2].softmax(1)
        strategy.learn(1, stream().tasks[1])
        with torch.no_grad():
            after = strategy.model(images)[:, :2].softmax(1)
        distances.append(float((after - before).abs().mean()))
    assert distances[1] < distances[0] / 2
