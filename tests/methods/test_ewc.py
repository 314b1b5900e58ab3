from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from clbench import tiny
from clbench.methods._gradients import flat_gradient, parts
from clbench.methods.ewc import EWC, fisher_diagonal
from clbench.methods.finetune import FineTune
from clbench.methods.seqlora import SeqLoRA
from clbench.model import ImageClassifier

WHOLE = EWC(scope="full", mode="online", learning_rate=1e-3)


@pytest.mark.parametrize(("method", "chunk"), [(EWC(), 1), (EWC(), 8), (WHOLE, 1), (WHOLE, 8)])
def test_fisher_equals_the_loop_over_samples(method: Any, chunk: int, begin: Any, teach: Any) -> None:
    run = teach(begin(method), 0)
    model, task = run.model.eval(), tiny.stream().tasks[1]
    inputs, targets = task.train.batch(torch.arange(0, 64, 3), run.device)
    allowed = torch.tensor([False, False, True, True, False, False])
    expected = torch.zeros(sum(p.numel() for p in model.trainable()))
    for x, y in zip(inputs, targets, strict=True):
        model.zero_grad()
        logits = model(x[None]).masked_fill(~allowed, float("-inf"))
        nn.functional.cross_entropy(logits, y[None]).backward()
        expected += flat_gradient(model.trainable()).square() / len(inputs)
    found = fisher_diagonal(model, inputs, targets, allowed, chunk)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    head = parts(found, model.trainable())[[p is model.head.weight for p in model.trainable()].index(True)]
    assert not head[~allowed].any()
    assert head[allowed].any()


class OneNumber(nn.Module):
    """Logits (2θx, 0): at θ = 0 the gradient of -log p(y) is -x for y = 0 and x for y = 1."""

    losses, trainable = ImageClassifier.losses, ImageClassifier.trainable

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([2 * self.theta * inputs, torch.zeros_like(inputs)], dim=1)


def test_opposite_gradients_do_not_cancel() -> None:
    model: Any = OneNumber()
    inputs, targets = torch.ones(2), torch.tensor([0, 1])
    batch = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), model.theta)[0]
    assert batch.item() == 0.0  # the square of the batch's mean gradient would be 0
    assert fisher_diagonal(model, inputs, targets, torch.ones(2, dtype=torch.bool)).tolist() == [1.0]


def consolidation(begin: Any, **settings: Any) -> tuple[Any, Any]:
    run = begin(EWC(**settings))
    return run, run.plugins[0]


def flat(run: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.trainable()])


def penalty_gradient(run: Any, plugin: Any) -> Tensor:
    run.model.zero_grad()
    run.strategy.loss = torch.zeros(1)
    plugin.before_backward(run.strategy)
    run.strategy.loss.sum().backward()
    return torch.cat([p.grad.flatten() for p in run.model.trainable()])


def test_the_penalty_s_gradient(begin: Any) -> None:
    run, plugin = consolidation(begin, penalty_weight=3.0)
    here = flat(run)
    generator = torch.Generator().manual_seed(0)
    plugin.importance = torch.rand(here.shape, generator=generator)
    plugin.importance[:5] = 0
    plugin.centre = here + torch.randn(here.shape, generator=generator)
    gradient = penalty_gradient(run, plugin)
    torch.testing.assert_close(gradient, 3.0 * plugin.importance * (here - plugin.centre))
    assert not gradient[:5].any()


def test_no_state_for_frozen_weights(begin: Any, teach: Any) -> None:
    run, plugin = consolidation(begin)
    teach(run, 0)
    assert plugin.importance.shape == plugin.centre.shape == flat(run).shape
    assert plugin.importance.min() >= 0
    assert torch.equal(plugin.centre, flat(run))


@pytest.mark.parametrize("labels", ["sampled", "gold"])
def test_with_one_past_task_separate_is_online(labels: Any, begin: Any, teach: Any, weights: Any) -> None:
    separate = weights(teach(begin(EWC(mode="separate", labels=labels)), 0, 1))
    online = weights(teach(begin(EWC(mode="online", decay=1.0, labels=labels)), 0, 1))
    assert all(torch.equal(separate[name], online[name]) for name in separate)


@pytest.mark.parametrize(("mode", "decay"), [("separate", 1.0), ("online", 0.5)])
def test_three_tasks_by_hand(mode: Any, decay: float, begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, plugin = consolidation(begin, mode=mode, decay=decay, penalty_weight=2.0)
    generator = torch.Generator().manual_seed(1)
    past = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in run.model.trainable():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        fisher = torch.rand(flat(run).shape, generator=generator)
        fisher[:7] = 0
        monkeypatch.setattr(plugin, "_fisher", lambda strategy, fisher=fisher: fisher)
        plugin.after_training_exp(SimpleNamespace(model=run.model))
        past.append((fisher, flat(run)))
    with torch.no_grad():
        for parameter in run.model.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    here = flat(run)
    if mode == "separate":
        expected = sum(fisher * (here - anchor) for fisher, anchor in past)
    else:
        expected = (decay**2 * past[0][0] + decay * past[1][0] + past[2][0]) * (here - past[2][1])
    torch.testing.assert_close(penalty_gradient(run, plugin), 2.0 * expected, atol=1e-5, rtol=1e-5)


def test_a_weight_of_zero_is_the_baseline_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    mine = weights(teach(begin(EWC(penalty_weight=0))))
    plain = weights(teach(begin(SeqLoRA())))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_a_huge_weight_pins_what_matters(begin: Any, teach: Any) -> None:
    moved = {}
    for weight in (0.0, 1e6):
        run, plugin = consolidation(begin, penalty_weight=weight)
        teach(run, 0)
        importance, anchor = plugin.importance, plugin.centre
        matters = importance > importance.quantile(0.9)
        teach(run, 1)
        moved[weight] = (flat(run) - anchor)[matters].abs().mean().item()
    assert moved[1e6] < 0.7 * moved[0.0]


def test_the_penalty_is_not_part_of_the_next_task_s_fisher(begin: Any, teach: Any) -> None:
    run, plugin = consolidation(begin, mode="online", decay=1.0, labels="gold")
    teach(run, 0, 1)
    model, task = run.model.eval(), tiny.stream().tasks[1]
    allowed = torch.tensor([False, False, True, True, False, False])
    inputs, targets = task.train.batch(torch.arange(64), run.device)
    second = fisher_diagonal(model, inputs, targets, allowed)
    other, first = consolidation(begin, mode="online", decay=1.0, labels="gold")
    teach(other, 0)
    torch.testing.assert_close(plugin.importance, first.importance + second, atol=1e-6, rtol=1e-4)


def test_all_weights_are_held_where_all_learn(begin: Any, teach: Any) -> None:
    run = teach(begin(WHOLE), 0)
    plugin, everything = run.plugins[0], sum(p.numel() for p in run.model.parameters())
    assert plugin.importance.shape == plugin.centre.shape == (everything,)
    body = parts(plugin.importance, run.model.trainable())[0]
    assert body is not run.model.head.weight
    assert body.any()
    anchor, held = plugin.centre, plugin.importance > plugin.importance.quantile(0.9)
    free, pinned = ({"penalty_weight": weight} for weight in (0.0, 1e6))
    moved = []
    for weight in (free, pinned):
        other = teach(begin(WHOLE.model_copy(update=weight)), 0, 1)
        moved.append((flat(other) - anchor)[held].abs().mean().item())
    assert moved[1] < 0.7 * moved[0]


def test_all_weights_without_a_penalty_are_full_fine_tuning_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    method = EWC(scope="full", mode="online", penalty_weight=0)
    assert method.learning_rate == FineTune().learning_rate
    assert EWC().learning_rate is None
    assert EWC(scope="full", mode="online", learning_rate=None).learning_rate is None
    mine, plain = weights(teach(begin(method))), weights(teach(begin(FineTune())))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_all_weights_take_the_online_form() -> None:
    with pytest.raises(ValidationError, match="set mode 'online'"):
        EWC(scope="full")
