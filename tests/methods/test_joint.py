from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from clbench import tiny
from clbench.methods.finetune import FineTune
from clbench.methods.joint import Joint
from clbench.strategy import Plugin


class Seen(Plugin):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[bytes] = []
        self.classes_of_batches: list[set[int]] = []

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.images += [image.numpy().tobytes() for image in strategy.mb_x]
        self.classes_of_batches.append(set(strategy.mb_y.tolist()))


def test_sees_the_union_once_with_the_same_passes(begin: Any, teach: Any) -> None:
    run = begin(Joint())
    assert [index for index, _ in run.lessons()] == [2]
    probe = Seen()
    run.strategy.plugins.append(probe)
    teach(run)
    own = [image.numpy().tobytes() for task in tiny.stream() for image in task.train.images]
    times = Counter(probe.images)
    assert set(times) == set(own)
    assert set(times.values()) == {tiny.tiny.recipe.epochs}
    assert all(len({c // 2 for c in classes}) > 1 for classes in probe.classes_of_batches)  # the tasks are mixed


def test_only_the_last_row_is_scored(begin: Any, teach: Any) -> None:
    run = teach(begin(Joint()))
    rows = run.state.scores
    assert all(score is None for row in rows[:3] for score in row)
    assert all(score is not None for score in rows[3])
    assert len(run.state.costs) == 1


def test_all_weights_can_learn(begin: Any, teach: Any, weights: Any) -> None:
    assert (Joint().learning_rate, Joint(tuning="full").learning_rate) == (None, FineTune().learning_rate)
    run = begin(Joint(tuning="full", learning_rate=1e-3))
    before = weights(run)
    after = weights(teach(run))
    assert [name for name in after if torch.equal(after[name], before[name])] == []
    assert not any("down" in name for name in after)
