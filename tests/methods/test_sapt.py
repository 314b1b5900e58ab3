from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clbench import tiny
from clbench.errors import BadValue
from clbench.methods.sapt import SAPT, TaskAttention, drift
from clbench.methods.seqlora import SeqLoRA

REFLECTING = SAPT(arm="exemplar", exemplars=12)


def weights(run: Any, inputs: Tensor) -> Tensor:
    plugin = run.plugins[0]
    with torch.no_grad():
        found: Tensor = plugin.attention(plugin._frozen(run.strategy, inputs)).exp()
    return found


def test_weights_are_the_softmax_of_scaled_products() -> None:
    attention = TaskAttention(4, 3, torch.Generator().manual_seed(0))
    attention.retire(torch.Generator().manual_seed(1))
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    low = features @ attention.narrow.weight.T @ attention.widen.weight.T
    query = low * torch.sigmoid(low)
    query = (query - query.mean(1, keepdim=True)) / (query.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    products = torch.stack([query @ attention.past_keys[0], query @ attention.key], 1) / math.sqrt(4)
    torch.testing.assert_close(attention(features).exp(), products.exp() / products.exp().sum(1, keepdim=True))
    torch.testing.assert_close(attention(features).exp().sum(1), torch.ones(5))


def test_drift_by_hand() -> None:
    stored = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    now = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]]).log()
    # Task 0: log 2; task 1: the mean of 0 and KL.
    far = 0.25 * math.log(2) + 0.75 * math.log(0.75 / 0.875)
    found = drift(stored, now, torch.tensor([0, 1, 1]))
    assert found.item() == pytest.approx(math.log(2) + far / 2)
    assert drift(stored[1:], now[1:2], torch.tensor([0])).item() == pytest.approx(0, abs=1e-7)


def test_the_first_task_is_that_of_one_lora(begin: Any, teach: Any) -> None:
    run, plain = teach(begin(SAPT()), 0), teach(begin(SeqLoRA()), 0)
    for block, other in zip(run.model.body.blocks, plain.model.body.blocks, strict=True):
        torch.testing.assert_close(block.attn.qkv.up, other.attn.qkv.up, atol=1e-5, rtol=1e-4)
    assert torch.equal(weights(run, run.stream.tasks[0].train.images[:4]), torch.ones(4, 1))


def test_each_layer_adds_up_the_pairs_by_the_samples_weights(begin: Any, teach: Any) -> None:
    run = teach(begin(SAPT()))
    inputs = run.stream.tasks[1].train.images[:6]
    run.strategy.mbatch = [inputs, torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)]
    run.plugins[0].before_eval_forward(run.strategy)
    layer, own = run.plugins[0].lora.layers[1], weights(run, inputs)
    assert torch.equal(run.strategy.inferred, own.argmax(1))
    x = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = layer.base(x)
    pairs = [*zip(layer.bank_down, layer.bank_up, strict=True), (layer.down, layer.up)]
    assert len(pairs) == 3
    for place, (down, up) in enumerate(pairs):
        for rows, low, high in ((slice(0, 16), down[:2], up[:16]), (slice(32, 48), down[2:], up[16:])):
            expected[..., rows] += own[:, place, None, None] * layer.scale * (x @ low.T @ high.T)
    torch.testing.assert_close(layer(x), expected)


def test_past_pairs_and_keys_are_frozen_and_the_query_learns_on(begin: Any, teach: Any) -> None:
    run = teach(begin(SAPT()), 0)
    plugin, layer = run.plugins[0], run.plugins[0].lora.layers[0]
    key, up, query = (
        value.detach().clone() for value in (plugin.attention.key, layer.up, plugin.attention.widen.weight)
    )
    teach(run, 1)
    assert torch.equal(plugin.attention.past_keys, key[None])
    assert torch.equal(layer.bank_up, up[None])
    assert not torch.equal(plugin.attention.widen.weight, query)
    assert not torch.equal(plugin.attention.key, key)


def test_reflection_holds_the_weights_of_the_past(begin: Any, teach: Any) -> None:
    moved = []
    for weight in (0.0, 50.0):
        run = begin(REFLECTING.model_copy(update={"kl_weight": weight}))
        teach(run, 0, 1)
        before = run.plugins[0].stored[0]
        teach(run, 2)
        now = weights(run, run.stream.tasks[0].train.images).mean(0)
        moved.append((now[:1] - before).abs().sum().item())
    assert moved[1] < moved[0]


def test_exemplars_are_few_and_as_many_of_each_task(begin: Any, teach: Any) -> None:
    run = begin(REFLECTING)
    for task, count in enumerate((12, 6, 4)):
        teach(run, task)
        plugin = run.plugins[0]
        assert plugin.owner.bincount().tolist() == [count] * (task + 1)
        assert plugin.kept_samples() == 12
    with torch.no_grad():
        every = plugin._frozen(run.strategy, run.stream.tasks[0].train.images)
    for kept in plugin.features[plugin.owner == 0]:
        assert (every - kept).abs().amax(1).min() < 1e-5  # the features of one of its training samples
    assert [len(stored) for stored in plugin.stored] == [1, 2, 3]


def test_fewer_exemplars_than_tasks_are_refused(begin: Any, teach: Any) -> None:
    few = SAPT(arm="exemplar", exemplars=2)
    assert few.unsupported(tiny.stream(tasks=2)) is None
    assert "exemplars is 2, less than one for each of 3 tasks" in str(few.unsupported(tiny.stream()))
    assert SAPT(exemplars=2).unsupported(tiny.stream()) is None
    run = teach(begin(SAPT(arm="exemplar", exemplars=1)), 0)
    with pytest.raises(BadValue, match="exemplars is 1, less than one for each of 2 tasks"):
        teach(run, 1)


def test_without_reflection_nothing_of_the_samples_is_kept(begin: Any, teach: Any) -> None:
    run = teach(begin(SAPT()))
    assert run.plugins[0].kept_samples() == 0
    assert not run.plugins[0].stored
