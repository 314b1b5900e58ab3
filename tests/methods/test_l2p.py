from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from clbench import tiny
from clbench.methods.l2p import L2P
from clbench.strategy import Plugin
from clbench.stream import Union

SETTINGS = tiny.tiny.settings["l2p"]


def everything() -> tuple[torch.Tensor, torch.Tensor]:
    union = Union([task.test for task in tiny.stream()])
    return union.batch(torch.arange(len(union)), torch.device("cpu"))


def test_answers_do_not_depend_on_who_else_is_in_the_batch(begin: Any, teach: Any) -> None:
    run = teach(begin(L2P(**SETTINGS)))
    inputs, _ = everything()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts, chosen = [], []
        for part in inputs.split(32):
            parts.append(run.model(part))
            chosen.append(run.model.prompter.chosen)
        by_task = torch.cat(parts)
        mixed = run.model(inputs[order])
        chosen_mixed = run.model.prompter.chosen
        alone = torch.cat([run.model(one[None]) for one in inputs])
    torch.testing.assert_close(mixed, by_task[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone, by_task, atol=1e-5, rtol=1e-4)
    assert torch.equal(chosen_mixed, torch.cat(chosen)[order])


def test_the_head_reads_the_mean_of_the_prompts_outputs(begin: Any) -> None:
    run = begin(L2P(pool=4, length=3, top=2))
    model, (inputs, _) = run.model, everything()
    inputs = inputs[:5]
    with torch.no_grad():
        tokens = model.tokens(inputs)
        query = model.pool(model.encode(tokens))
        prompts = model.prompter(tokens, query)
        assert prompts.shape == (5, 6, 16)
        position = model.body.pos_embed[:, :1]
        outputs = model.encode(torch.cat([tokens[:, :1], prompts + position, tokens[:, 1:]], dim=1))
        expected = model.head(outputs[:, 1:7].mean(1))
        torch.testing.assert_close(model(inputs), expected)


class Steps(Plugin):
    def __init__(self) -> None:
        super().__init__()
        self.pulls: list[float] = []
        self.used = torch.zeros(4, dtype=torch.int64)
        self.with_gradient: set[str] = set()
        self.exact = True

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pool = strategy.model.prompter
        self.pulls.append(pool.pull.item())
        self.used += torch.bincount(pool.chosen.flatten(), minlength=4)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pool = strategy.model.prompter
        chosen = torch.zeros(4, dtype=torch.bool)
        chosen[pool.chosen.flatten()] = True
        for gradient in (pool.prompts.grad.flatten(1), pool.keys.grad):
            self.exact &= torch.equal(gradient.abs().sum(1) > 0, chosen)
        named = strategy.model.named_parameters()
        self.with_gradient |= {name for name, weight in named if weight.grad is not None}


def test_only_pool_and_head_are_trained_and_only_the_chosen_prompts(begin: Any, teach: Any) -> None:
    run = begin(L2P(**SETTINGS))
    probe = Steps()
    run.strategy.plugins.append(probe)
    teach(run, 0)
    assert probe.exact
    assert probe.with_gradient == {"head.weight", "head.bias", "prompter.prompts", "prompter.keys"}
    usage = run.plugins[0].notes()["prompt_usage"]
    assert run.plugins[0].used.tolist() == probe.used.tolist()
    assert usage == pytest.approx((probe.used / probe.used.sum()).tolist(), abs=1e-4)


def test_keys_are_drawn_to_the_queries(begin: Any, teach: Any) -> None:
    run = begin(L2P(**{**SETTINGS, "pull_weight": 1.0}))
    probe = Steps()
    run.strategy.plugins.append(probe)
    teach(run, 0)
    assert probe.pulls[-1] > probe.pulls[0] + 0.1


def test_without_a_pull_the_keys_stay(begin: Any, teach: Any) -> None:
    run = begin(L2P(**{**SETTINGS, "pull_weight": 0.0}))
    keys = run.model.prompter.keys.detach().clone()
    teach(run, 0)
    assert torch.equal(run.model.prompter.keys, keys)


def test_no_more_can_be_chosen_than_there_are() -> None:
    with pytest.raises(ValidationError, match=r"top \(3\) must not be above pool \(2\)"):
        L2P(pool=2, top=3)
