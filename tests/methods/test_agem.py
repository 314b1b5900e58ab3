from __future__ import annotations

from typing import Any

import pytest
import torch

from clbench.methods._gradients import flat
from clbench.methods.agem import AGEM, correction
from clbench.methods.seqlora import SeqLoRA
from clbench.strategy import Plugin

SETTINGS = {"buffer_samples": 24, "reference_batch": 8}


def test_by_hand() -> None:
    assert correction(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 4.0])).tolist() == [0, 2]
    assert not correction(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])).any()  # ⟨g, r⟩ = 1
    assert not correction(torch.tensor([1.0, 2.0]), torch.zeros(2)).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_agrees_and_is_not_longer(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    direction, reference = torch.randn(2, 40, generator=generator)
    projected = direction + correction(direction, reference)
    assert torch.dot(projected, reference) >= -1e-5
    assert projected.norm() <= direction.norm() + 1e-6
    if torch.dot(direction, reference) >= 0:
        assert torch.equal(projected, direction)


class Steps(Plugin):
    """How far each step goes along the reference gradient, as a share of both lengths."""

    def __init__(self, constraint: Any) -> None:
        super().__init__()
        self.constraint, self.along = constraint, []

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.weights = flat(strategy.model.trainable()).detach()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        step = self.weights - flat(strategy.model.trainable()).detach()
        reference = self.constraint.reference
        self.along.append((torch.dot(reference, step) / (reference.norm() * step.norm())).item())


def steps(run: Any, teach: Any) -> list[float]:
    probe = Steps(teach(run, 0).plugins[0])
    run.strategy.plugins.append(probe)
    teach(run, 1, 2)
    return probe.along


def test_no_step_of_adam_goes_against_the_past(begin: Any, teach: Any) -> None:
    unmasked = {**SETTINGS, "head_masking": "seen"}  # new samples push old classes down: there is much to correct
    assert min(steps(begin(AGEM(**unmasked)), teach)) > -1e-4
    assert min(steps(begin(AGEM(**unmasked, projected="gradient")), teach)) < -1e-2  # bent back


def test_under_plain_sgd_gradient_and_update_are_one(begin: Any, teach: Any, weights: Any) -> None:
    ends = []
    for projected in ("gradient", "update"):
        run = begin(AGEM(**SETTINGS, projected=projected, learning_rate=0.1))
        run.strategy.recipe = run.strategy.recipe.model_copy(update={"optimizer": "sgd"})
        ends.append(weights(teach(run, 0, 1)))
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], atol=1e-4, rtol=1e-3)


def test_the_first_task_is_learned_as_without_a_past(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(AGEM(**SETTINGS)), 0)), weights(teach(begin(SeqLoRA()), 0))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_a_buffer_smaller_than_the_classes_is_declined_before_training(begin: Any) -> None:
    stream = begin(AGEM(**SETTINGS)).stream
    assert "less than one for each of 6 classes" in str(AGEM(buffer_samples=5).unsupported(stream))
    assert AGEM(buffer_samples=6).unsupported(stream) is None
    assert AGEM(buffer_samples=5, policy="reservoir").unsupported(stream) is None
