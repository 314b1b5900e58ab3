from __future__ import annotations

from typing import Any

import torch

from clbench.methods.finetune import FineTune
from clbench.strategy import Plugin


class Gradients(Plugin):
    def __init__(self) -> None:
        super().__init__()
        self.missing: set[str] = set()

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.missing = {
            name
            for name, weight in strategy.model.named_parameters()
            if weight.grad is None or not weight.grad.abs().sum() > 0
        }


def test_every_weight_gets_a_gradient_and_moves(begin: Any, teach: Any, weights: Any) -> None:
    run = begin(FineTune(head_masking="seen"), tasks=1)
    before = weights(run)
    probe = Gradients()
    run.strategy.plugins.append(probe)
    teach(run)
    assert probe.missing == set()
    after = weights(run)
    assert [name for name in after if torch.equal(after[name], before[name])] == []


def test_keeps_no_state(begin: Any) -> None:
    run = begin(FineTune())
    assert run.plugins == []
    assert all(weight.requires_grad for weight in run.model.parameters())
