from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clbench import tiny
from clbench.methods.lwf import LwF, distillation
from clbench.methods.seqlora import SeqLoRA
from clbench.strategy import Plugin


def test_by_hand() -> None:
    """Old (¾, ¼), new (½, ½) at T = 1: KL = ¾ ln 1.5 + ¼ ln ½; logits twice as large at T = 2 give 4 times that."""
    old, new = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(distillation(old, new, torch.ones(1), 1.0), expected)
    torch.testing.assert_close(distillation(2 * old, new, torch.ones(1), 2.0), 4 * expected)
    twice = distillation(torch.cat([old, new]), torch.cat([new, new]), torch.ones(2), 1.0)
    torch.testing.assert_close(twice, expected / 2)  # the mean over the batch


def test_the_gradient_keeps_its_size_as_the_temperature_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 1, 5, generator=generator, dtype=torch.float64)
    new.requires_grad_()
    limit = ((new - new.mean()) - (old - old.mean())).detach() / 5
    for temperature in (50.0, 500.0):
        gradient = torch.autograd.grad(distillation(old, new, torch.ones(1), temperature), new)[0]
        torch.testing.assert_close(gradient, limit, atol=5 / temperature, rtol=0)


class Pulls(Plugin):
    """The distillation's value at each step, and the size of its gradient at the first."""

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.teacher, self.values, self.gradients = teacher, [], []

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        loss, strategy.loss = strategy.loss, torch.zeros(())
        self.teacher.before_backward(strategy)
        self.values.append(strategy.loss.item())
        found = torch.autograd.grad(strategy.loss, strategy.model.trainable(), retain_graph=True, allow_unused=True)
        self.gradients.append(max(float(g.abs().max()) for g in found if g is not None))
        strategy.loss = loss


def test_nothing_pulls_at_a_task_s_first_step(begin: Any, teach: Any) -> None:
    run = teach(begin(LwF(weight=1.0)), 0)
    probe = Pulls(run.plugins[0])
    run.strategy.plugins.append(probe)
    teach(run, 1)
    assert probe.values[0] == pytest.approx(0, abs=1e-6)
    assert probe.gradients[0] < 1e-5
    assert max(probe.values) > 1e-4
    assert max(probe.gradients) > 1e-4


def test_only_classes_of_past_tasks_are_distilled(begin: Any, teach: Any) -> None:
    run = teach(begin(LwF()), 0)
    plugin, strategy = run.plugins[0], run.strategy
    assert plugin.known.tolist() == [0, 1]
    inputs, targets = tiny.stream().tasks[1].train.batch(torch.arange(8), run.device)
    strategy.mbatch = [inputs, targets, torch.ones(8)]

    def pull(shift: Tensor) -> float:
        strategy.mb_output, strategy.loss = run.model(inputs) + shift, torch.zeros(())
        plugin.before_backward(strategy)
        return strategy.loss.item()

    assert pull(torch.tensor([0.0, 0, 5, -5, 1, 2])) == pytest.approx(0, abs=1e-6)
    assert pull(torch.tensor([1.0, 0, 0, 0, 0, 0])) > 1e-2


def test_the_teacher_stays_as_it_was(begin: Any, teach: Any, weights: Any) -> None:
    run = teach(begin(LwF()), 0)
    plugin, before = run.plugins[0], weights(run)
    teacher = plugin.teacher
    assert set(teacher) == {name for name, p in run.model.named_parameters() if p.requires_grad}
    teach(run, 1)
    assert plugin.teacher is not teacher
    for name, weight in teacher.items():
        assert torch.equal(weight, before[name])
        assert not weight.requires_grad
        assert weight.grad is None


def test_a_weight_of_zero_is_the_baseline_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(LwF(weight=0)))), weights(teach(begin(SeqLoRA())))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)
