from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clbench import tiny
from clbench.methods._gradients import flat, flat_gradient
from clbench.methods.mas import MAS, sensitivity
from clbench.methods.seqlora import SeqLoRA


def test_equals_the_loop_over_samples(begin: Any, teach: Any) -> None:
    run = teach(begin(MAS()), 0)
    model, task = run.model.eval(), tiny.stream().tasks[0]
    inputs, targets = task.train.batch(torch.arange(0, 64, 2), run.device)
    inputs, targets = torch.cat([inputs, inputs[:5]]), torch.cat([targets, targets[:5]])  # more than one chunk
    seen = torch.tensor([True, True, False, False, False, False])
    expected = torch.zeros(sum(p.numel() for p in model.trainable()))
    for x in inputs:
        model.zero_grad()
        model(x[None])[0, :2].square().sum().backward()
        expected += flat_gradient(model.trainable()).abs() / len(inputs)
    torch.testing.assert_close(sensitivity(model, inputs, targets, seen), expected, atol=1e-5, rtol=1e-4)


class OneNumber(nn.Module):
    """One logit θ + x: at θ = 0 the gradient of its square is 2x."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.theta + inputs)[:, None]


def test_opposite_gradients_do_not_cancel() -> None:
    model: Any = OneNumber()
    inputs, targets = torch.tensor([1.0, -1.0]), torch.zeros(2, dtype=torch.int64)
    assert torch.autograd.grad(model(inputs).square().mean(), model.theta)[0].item() == 0
    assert sensitivity(model, inputs, targets, torch.ones(1, dtype=torch.bool)).item() == 2


def penalty_gradient(run: Any) -> Tensor:
    run.model.zero_grad()
    run.strategy.loss = torch.zeros(1)
    run.plugins[0].before_backward(run.strategy)
    run.strategy.loss.sum().backward()
    return flat_gradient(run.model.trainable())


def test_the_penalty_s_gradient(begin: Any) -> None:
    run = begin(MAS(penalty_weight=3.0))
    here, plugin = flat(run.model.trainable()).detach(), run.plugins[0]
    generator = torch.Generator().manual_seed(0)
    plugin.importance = torch.rand(here.shape, generator=generator)
    plugin.centre = here + torch.randn(here.shape, generator=generator)
    torch.testing.assert_close(penalty_gradient(run), 2 * 3.0 * plugin.importance * (here - plugin.centre))


def test_importance_adds_up_over_tasks_and_leaves_unseen_classes_free(begin: Any, teach: Any) -> None:
    run = teach(begin(MAS(samples=64)), 0)
    plugin, task = run.plugins[0], tiny.stream().tasks[1]
    first = plugin.importance
    rows = first[-6 * 17 :][: 6 * 16].view(6, 16)
    assert rows[:2].all()
    assert not rows[2:].any()
    teach(run, 1)
    inputs, targets = task.train.batch(torch.arange(64), run.device)
    second = sensitivity(run.model.eval(), inputs, targets, torch.tensor([True] * 4 + [False] * 2))
    torch.testing.assert_close(plugin.importance, first + second, atol=1e-5, rtol=1e-4)
    assert torch.equal(plugin.centre, flat(run.model.trainable()))


def test_a_weight_of_zero_is_the_baseline_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(MAS(penalty_weight=0)))), weights(teach(begin(SeqLoRA())))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


@pytest.mark.parametrize("weight", [30.0])
def test_a_large_weight_keeps_sensitive_weights_in_their_place(weight: float, begin: Any, teach: Any) -> None:
    moved = {}
    for strength in (0.0, weight):
        run = teach(begin(MAS(penalty_weight=strength)), 0)
        plugin = run.plugins[0]
        matters, centre = plugin.importance > plugin.importance.quantile(0.9), plugin.centre
        teach(run, 1)
        moved[strength] = (flat(run.model.trainable()) - centre)[matters].abs().mean().item()
    assert moved[weight] < 0.7 * moved[0.0]
