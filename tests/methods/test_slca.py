from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from clbench import tiny
from clbench.methods.finetune import FineTune
from clbench.methods.slca import SLCA, by_task_norms, reverse_cross_entropy
from clbench.stream import Stream


def head(run: Any) -> torch.Tensor:
    return torch.cat([run.model.head.weight, run.model.head.bias[:, None]], dim=1).detach().clone()


def test_logits_over_the_mean_length_of_the_tasks_by_hand() -> None:
    logits, homes = torch.tensor([[3.0, 1.0, 4.0]]), torch.tensor([0, 1, 0])  # lengths 5 and 1, mean 3
    torch.testing.assert_close(by_task_norms(logits, homes, 2, 0.5), logits / 1.5)
    zero = torch.zeros(1, 3, requires_grad=True)
    by_task_norms(zero, homes, 2, 0.1).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_the_reverse_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3), float("-inf")]])  # 1/4, 3/4, 0
    clamped = -(0.25 * math.log(1) + 0.75 * math.log(1e-4))
    assert reverse_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(clamped, rel=1e-6)


def test_without_slowness_and_alignment_it_is_finetuning_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    mine = weights(teach(begin(SLCA(backbone_rate=1.0, alignment_epochs=0, learning_rate=1e-3))))
    plain = weights(teach(begin(FineTune(learning_rate=1e-3))))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_the_backbone_learns_slowly(begin: Any, teach: Any) -> None:
    run = begin(SLCA(backbone_rate=0.01, first_backbone_rate=0.5, learning_rate=1e-2))
    rates = []
    for task in range(2):
        teach(run, task)
        rates.append({id(p): g["lr"] for g in run.strategy.optimizer.param_groups for p in g["params"]})
    for found, rate in zip(rates, (5e-3, 1e-4), strict=True):
        assert all(found[id(p)] == pytest.approx(1e-2) for p in run.model.head.parameters())
        assert all(found[id(p)] == pytest.approx(rate) for p in run.model.body.parameters())


def test_alignment_changes_the_head_only_and_is_recalled(begin: Any, teach: Any, weights: Any) -> None:
    aligned, plain = begin(SLCA()), begin(SLCA(alignment_epochs=0))
    for task in range(3):
        mine, theirs = weights(teach(aligned, task)), weights(teach(plain, task))
        body = [name for name in mine if name.startswith("body.")]
        assert all(torch.equal(mine[name], theirs[name]) for name in body)  # also after recalls: these are exact
        assert torch.equal(mine["head.weight"], theirs["head.weight"]) is (task == 0)
        for kept, name in zip(aligned.plugins[0].trained, ("head.weight", "head.bias"), strict=True):
            assert torch.equal(kept, theirs[name])


def test_only_known_classes_are_aligned(begin: Any, teach: Any) -> None:
    run = begin(SLCA())
    before = head(run)
    teach(run, 0, 1)
    assert torch.equal(head(run)[4:], before[4:])
    trained = torch.cat([run.plugins[0].trained[0], run.plugins[0].trained[1][:, None]], dim=1)
    assert all(not torch.equal(now, then) for now, then in zip(head(run)[:4], trained[:4], strict=True))


def test_statistics_are_the_moments_of_the_task_s_features(begin: Any, teach: Any) -> None:
    run = teach(begin(SLCA()), 0)
    task, found = tiny.stream().tasks[0], run.plugins[0].statistics
    features = run.model.features(task.train.images).detach()
    for place, c in enumerate(found.classes.tolist()):
        own = features[task.train.targets == c]
        torch.testing.assert_close(found.means[place, 0], own.mean(0), atol=1e-5, rtol=1e-4)
        factor = found.spreads[place, 0]
        expected = torch.cov(own.T) + 1e-4 * torch.eye(16)
        torch.testing.assert_close(factor @ factor.T, expected, atol=1e-5, rtol=1e-3)


def test_means_of_old_classes_are_shrunk(begin: Any, teach: Any) -> None:
    plugin = teach(begin(SLCA())).plugins[0]
    shrunk = plugin._shrunk(torch.tensor(plugin.homes), 2)
    factors = torch.tensor([0.9 + 0.1 / 3] * 2 + [0.9 + 0.2 / 3] * 2 + [1.0] * 2)
    torch.testing.assert_close(shrunk.means, plugin.statistics.means * factors[:, None, None])
    assert torch.equal(shrunk.spreads, plugin.statistics.spreads)


def test_tasks_need_not_be_equally_large(begin: Any, teach: Any) -> None:
    parts = tiny.stream(tasks=3).tasks
    single = replace(parts[0], name="0", train=_only(parts[0].train, 0), test=_only(parts[0].test, 0), classes=(0,))
    run = teach(begin(SLCA(), stream=Stream((single, parts[1], parts[2]))))
    assert run.plugins[0].statistics.classes.tolist() == [0, 2, 3, 4, 5]
    assert run.plugins[0].homes == [0, 1, 1, 2, 2]


def _only(examples: Any, c: int) -> Any:
    chosen = examples.targets == c
    return type(examples)(examples.images[chosen], examples.targets[chosen])


def test_the_parameter_efficient_form_trains_a_lora_and_the_head(begin: Any, teach: Any, weights: Any) -> None:
    run = begin(SLCA(tuning="lora", symmetric_weight=0.5, backbone_rate=0.1, first_backbone_rate=0.5))
    before = weights(run)
    teach(run)
    moved = {name for name, weight in weights(run).items() if not torch.equal(weight, before[name])}
    lora = {f"body.blocks.{i}.attn.qkv.{factor}" for i in (0, 1) for factor in ("down", "up")}
    assert moved == lora | {"head.weight", "head.bias"}


def test_alignment_tells_the_classes_of_all_tasks_apart_where_features_hardly_move(begin: Any, teach: Any) -> None:
    slow = {"backbone_rate": 1e-6, "temperature": 1.0}
    aligned = teach(begin(SLCA(**slow, alignment_epochs=20))).state.scores[3]
    plain = teach(begin(SLCA(**slow, alignment_epochs=0))).state.scores[3]
    assert min(aligned) > 0.7
    assert sum(aligned) > sum(plain) + 0.6


def test_the_symmetric_loss_is_the_mix_of_both(begin: Any) -> None:
    run = begin(SLCA(symmetric_weight=0.25))
    strategy = run.strategy
    strategy.allowed = torch.tensor([True, True, False, False, False, False])
    strategy.mb_output, strategy.loss = torch.zeros(1, 6), torch.tensor([math.log(2)])
    strategy.mbatch = [torch.zeros(1), torch.tensor([1]), torch.tensor([0])]
    run.plugins[0].before_backward(strategy)
    assert strategy.loss.item() == pytest.approx(0.75 * math.log(2) - 0.25 * 0.5 * math.log(1e-4))


def test_a_class_in_two_tasks_is_declined() -> None:
    tasks = tiny.stream().tasks
    assert SLCA().unsupported(tiny.stream()) is None
    assert "two tasks" in str(SLCA().unsupported(Stream((*tasks, tasks[0]))))
