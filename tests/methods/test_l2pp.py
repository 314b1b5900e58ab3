from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from clbench import tiny
from clbench.methods.l2pp import L2PPlusPlus
from clbench.stream import Union

SETTINGS = {"pool": 4, "length": 6, "top": 2}


def everything() -> Tensor:
    union = Union([task.test for task in tiny.stream()])
    return union.batch(torch.arange(len(union)), torch.device("cpu"))[0]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_sample_gets_the_nearest_prompts_half_as_keys_half_as_values(depth: int, begin: Any) -> None:
    model = begin(L2PPlusPlus(**SETTINGS, depth=depth)).model
    pool, query = model.prefixer, torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    prefixes = pool(torch.zeros(5, 5, 16), lambda: query).attention
    assert list(prefixes) == list(range(depth))
    pulls = torch.zeros(5)
    for block, (key, value) in prefixes.items():
        assert key.shape == value.shape == (5, 6, 16)
        for b in range(5):
            cosines = F.cosine_similarity(query[b][None], pool.keys[block], dim=1)
            nearest = sorted(range(4), key=lambda m: -cosines[m])[:2]
            assert pool.chosen[b, block].tolist() == nearest
            pulls[b] += sum(1 - cosines[m] for m in nearest).detach()
            chosen = [pool.prompts[block, m] for m in nearest]
            assert torch.equal(key[b], torch.cat([prompt[:3] for prompt in chosen]))
            assert torch.equal(value[b], torch.cat([prompt[3:] for prompt in chosen]))
    torch.testing.assert_close(pool.pull, pulls.mean())


def test_only_chosen_keys_and_prompts_get_gradients(begin: Any) -> None:
    run = begin(L2PPlusPlus(**{**SETTINGS, "pool": 8}, depth=2))
    pool = run.model.prefixer
    run.strategy.mbatch = [everything()[:3], torch.tensor([0, 1, 0]), None]
    run.strategy.loss = torch.zeros(1)
    logits = run.strategy.forward()
    run.plugins[0].before_backward(run.strategy)
    (run.strategy.loss.sum() + F.cross_entropy(logits, run.strategy.mb_y)).backward()
    chosen = torch.zeros(2, 8, dtype=torch.bool)
    for block in range(2):
        chosen[block, pool.chosen[:, block].flatten()] = True
    assert 0 < chosen.sum() < 16
    assert torch.equal(pool.prompts.grad.flatten(2).abs().sum(2) > 0, chosen)
    assert torch.equal(pool.keys.grad.abs().sum(2) > 0, chosen)
    used = torch.zeros(2, 8, dtype=torch.int64)
    for block in range(2):
        used[block] = pool.chosen[:, block].flatten().bincount(minlength=8)
    assert torch.equal(run.plugins[0].used, used)
    assert run.plugins[0].notes()["prompt_usage"] == [[round(n / 6, 4) for n in row] for row in used.tolist()]


def test_answers_do_not_depend_on_who_else_is_in_the_batch(begin: Any, teach: Any) -> None:
    model, inputs = teach(begin(L2PPlusPlus(**SETTINGS)), 0).model, everything()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_task = torch.cat([model(part) for part in inputs.split(32)])
        torch.testing.assert_close(model(inputs[order]), by_task[order], atol=1e-5, rtol=1e-4)


def test_keys_are_drawn_to_the_queries_by_the_pull_alone(begin: Any, teach: Any) -> None:
    runs = [begin(L2PPlusPlus(**SETTINGS, pull_weight=weight)) for weight in (0.0, 1.0)]
    start = runs[0].model.prefixer.keys.detach().clone()
    still, drawn = (teach(run, 0).model.prefixer for run in runs)
    assert torch.equal(still.keys, start)
    with torch.no_grad():
        runs[1].model(everything()[:32])
        runs[0].model(everything()[:32])
    assert drawn.pull < still.pull - 0.01


def test_no_more_can_be_chosen_than_there_are() -> None:
    with pytest.raises(ValidationError, match=r"top \(3\) must not be above pool \(2\)"):
        L2PPlusPlus(pool=2, top=3)
