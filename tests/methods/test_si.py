from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from clbench.methods._gradients import flat, flat_gradient
from clbench.methods.seqlora import SeqLoRA
from clbench.methods.si import SI
from clbench.strategy import Plugin


def walk(plugin: Any, parameter: nn.Parameter, places: list[float], gradient: float | None = None) -> None:
    """A task that takes `parameter` to these places; the loss is ½θ² where no gradient is given."""
    strategy = SimpleNamespace(model=SimpleNamespace(trainable=lambda: [parameter]))
    plugin.before_training_exp(strategy)
    for place in places:
        parameter.grad = parameter.detach().clone() if gradient is None else torch.tensor([gradient])
        plugin.before_update(strategy)
        with torch.no_grad():
            parameter.fill_(place)
        plugin.after_update(strategy)
    plugin.after_training_exp(strategy)


def test_importance_by_hand(begin: Any) -> None:
    """1 → ½ → ¼ down ½θ²: ω = 1·½ + ½·¼ = 0.625, Δ² = 0.5625; with ξ = 0.0625, Ω = 1."""
    plugin, parameter = begin(SI(damping=0.0625)).plugins[0], nn.Parameter(torch.ones(1))
    walk(plugin, parameter, [0.5, 0.25])
    assert plugin.importance.item() == pytest.approx(1.0)
    assert plugin.centre.item() == 0.25
    # -2 (½ - ¼) = -½ of gain over 0.0625 + 0.0625: Ω = 1 - 4 is set to 0
    walk(plugin, parameter, [0.5], gradient=2.0)
    assert plugin.importance.item() == 0.0
    assert plugin.centre.item() == 0.5


def test_the_penalty_pulls_but_does_not_count_as_gain(begin: Any) -> None:
    plugin, parameter = begin(SI(penalty_weight=3.0, damping=0.0625)).plugins[0], nn.Parameter(torch.ones(1))
    walk(plugin, parameter, [0.5, 0.25])
    with torch.no_grad():
        parameter.fill_(0.75)
    parameter.grad = torch.tensor([10.0])
    strategy = SimpleNamespace(model=SimpleNamespace(trainable=lambda: [parameter]))
    plugin.before_training_exp(strategy)
    plugin.before_update(strategy)
    assert parameter.grad.item() == pytest.approx(10 + 2 * 3 * 1.0 * (0.75 - 0.25))
    with torch.no_grad():
        parameter.fill_(0.7)
    plugin.after_update(strategy)
    assert plugin.gain.item() == pytest.approx(10 * 0.05, rel=1e-5)


class Fall(Plugin):
    """The loss of each step, and its gradient times the step."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = 0.0

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.weights, self.gradient = (
            flat(strategy.model.trainable()).detach(),
            flat_gradient(strategy.model.trainable()),
        )

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.gain -= torch.dot(self.gradient, flat(strategy.model.trainable()).detach() - self.weights).item()


def test_the_gains_of_a_run_add_up(begin: Any, teach: Any) -> None:
    run = begin(SI())
    probe = Fall()
    run.strategy.plugins.append(probe)
    plugin = teach(run, 0).plugins[0]
    assert probe.gain > 0
    assert plugin.gain.sum().item() == pytest.approx(probe.gain, rel=1e-3)
    head = run.model.head.weight
    rows = plugin.importance[-6 * 17 :][: 6 * 16].view_as(head)
    assert rows[:2].any()
    assert not rows[2:].any()  # rows of classes not seen


def test_a_weight_of_zero_is_the_baseline_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(SI(penalty_weight=0)))), weights(teach(begin(SeqLoRA())))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_a_large_weight_keeps_what_gained_the_most_in_its_place(begin: Any, teach: Any) -> None:
    moved = {}
    for weight in (0.0, 30.0):
        run = teach(begin(SI(penalty_weight=weight)), 0)
        plugin = run.plugins[0]
        matters, centre = plugin.importance > plugin.importance.quantile(0.9), plugin.centre
        teach(run, 1)
        moved[weight] = (flat(run.model.trainable()) - centre)[matters].abs().mean().item()
    assert moved[30.0] < 0.7 * moved[0.0]
