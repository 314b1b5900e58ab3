from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from clbench.errors import BadValue
from clbench.methods.sd_lora import SDLoRA, inner_products

LAYER = "body.blocks.0.attn.qkv"


def logits(run: Any, task: int = 0) -> Tensor:
    run.plugins[0].before_eval_forward(run.strategy)
    answer: Tensor = run.model(run.stream.tasks[task].train.images).detach()
    return answer


def switch(run: Any, task: int) -> None:
    """What happens to the model when the next task begins."""
    run.strategy.task_index = task
    run.plugins[0].before_train_dataset_adaptation(run.strategy)


def directions(run: Any, *, own: bool = True) -> Tensor:
    """Every kept direction B A of all layers and parts as one vector, `[kept, numbers]`; `own`: with its shares."""
    plugin, found = run.plugins[0], []
    for layer, shares in zip(plugin.lora.layers, plugin.shares, strict=True):
        for part in range(2):
            down = layer.bank_down.split(layer.rank, 1)[part]
            product = layer.bank_up.split(layer.sizes, 1)[part] @ down
            found.append((shares[: len(down), part, None, None] if own else 1) * product)
    return torch.cat([product.flatten(1) for product in found], 1)


def test_before_any_past_it_is_a_lora_scaled_by_its_magnitude(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA()), 0)
    here = logits(run)
    run.plugins[0].lora.choose(None)
    for layer in run.plugins[0].lora.layers:
        layer.scale *= run.plugins[0].magnitudes.item()
    torch.testing.assert_close(run.model(run.stream.tasks[0].train.images), here)


def test_the_first_magnitude_starts_at_its_value(begin: Any) -> None:
    assert begin(SDLoRA()).plugins[0].magnitudes.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("task", [1, 2])
def test_features_do_not_jump_between_tasks_unless_sizes_are_forgotten(
    task: int, reset: bool, begin: Any, teach: Any
) -> None:
    run = teach(begin(SDLoRA(compat_reset=reset)), *range(task))
    before = logits(run)
    switch(run, task)
    assert torch.allclose(logits(run), before, atol=1e-5) is not reset
    magnitudes = run.plugins[0].magnitudes.tolist()
    assert magnitudes[-1] == pytest.approx(0.8)
    assert len(magnitudes) == task + 1
    assert (magnitudes == pytest.approx([0.8] * len(magnitudes))) is reset


@pytest.mark.parametrize("reset", [False, True])
def test_past_factors_have_unit_norm_and_stay(reset: bool, begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA(compat_reset=reset)), 0, 1)
    layer = run.model.get_submodule(LAYER)
    down, up = layer.bank_down.clone(), layer.bank_up.clone()
    for factor in (*down[0].split(layer.rank), *up[0].split(layer.sizes)):
        assert factor.norm().item() == pytest.approx(1, abs=1e-6)
    teach(run, 2)
    assert torch.equal(layer.bank_down[:1], down)
    assert torch.equal(layer.bank_up[:1], up)
    shares = run.plugins[0].shares
    assert shares.shape == (2, 3, 2)
    torch.testing.assert_close(shares.square().mean((0, 2)), torch.ones(3))
    assert torch.equal(shares, torch.ones_like(shares)) is reset


def test_old_magnitudes_are_trained_in_one_number_a_task(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA()), 0)
    switch(run, 1)
    before = run.plugins[0].magnitudes.detach().clone()
    run.plugins[0].before_forward(run.strategy)
    run.model(run.stream.tasks[1].train.images).square().sum().backward()
    slopes = run.plugins[0].magnitudes.grad
    assert slopes[0] != 0
    assert slopes[1] == 0  # the live pair does nothing yet
    assert before.shape == (2,)
    names = [name for name, weight in run.model.named_parameters() if weight.requires_grad]
    assert "lora_magnitudes" in names


def test_magnitudes_may_take_other_steps(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA(magnitude_rate=10)), 0)
    rates = {id(weight): group["lr"] for group in run.strategy.optimizer.param_groups for weight in group["params"]}
    assert rates.pop(id(run.plugins[0].magnitudes)) == pytest.approx(10 * run.strategy.learning_rate)
    assert set(rates.values()) == {run.strategy.learning_rate}


def test_one_merged_matrix_gives_the_same_answers(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA()))
    plugin, here = run.plugins[0], logits(run)
    weights = (plugin.magnitudes[:, None] * plugin.shares).detach()
    for layer, own in zip(plugin.lora.layers, weights, strict=True):
        layer.weight = layer.base.weight.detach().clone()
        pairs = [*zip(layer.bank_down, layer.bank_up, strict=True), (layer.down.detach(), layer.up.detach())]
        for (down, up), shares in zip(pairs, own, strict=True):
            for part, (first, last) in enumerate(layer.bounds):
                product = up.split(layer.sizes)[part] @ down.split(layer.rank)[part]
                layer.weight[first:last] += layer.scale * shares[part] * product
    with plugin.lora.off():
        torch.testing.assert_close(run.model(run.stream.tasks[0].train.images), here, atol=1e-5, rtol=1e-5)


def test_lower_ranks_for_later_tasks(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA(ranks=(2, 1))))
    layer = run.model.get_submodule(LAYER)
    assert (layer.bank_up[0] != 0).any(0).tolist() == [True, True]
    for up, down in ((layer.bank_up[1], layer.bank_down[1]), (layer.up, layer.down)):
        assert (up != 0).any(0).tolist() == [True, False]
        assert (down != 0).any(1).tolist() == [True, False, True, False]


def test_refuses_ranks_it_cannot_have(begin: Any) -> None:
    with pytest.raises(BadValue, match="lora_rank 2"):
        begin(SDLoRA(ranks=(4,)))
    with pytest.raises(ValidationError, match="1 or more"):
        SDLoRA(ranks=(0,))
    with pytest.raises(ValidationError, match="choose one"):
        SDLoRA(distil=0.1, compat_reset=True)


def test_inner_products_are_those_of_the_full_matrices(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA()))
    full = directions(run).double()
    found = inner_products(run.plugins[0].lora, run.plugins[0].shares[:, :-1])
    torch.testing.assert_close(found, full @ full.T, atol=1e-6, rtol=1e-5)


def test_a_direction_that_older_ones_span_is_given_to_them(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA(distil=1e-4)), 0, 1)
    plugin = run.plugins[0]
    assert len(plugin.magnitudes) == 2
    with torch.no_grad():  # what task 2 learned: minus three times the first direction, shares and all
        for layer, shares in zip(plugin.lora.layers, plugin.shares, strict=True):
            layer.down.copy_(layer.bank_down[0])
            layer.up.copy_(
                -3 * torch.repeat_interleave(shares[0], torch.tensor(layer.sizes))[:, None] * layer.bank_up[0]
            )
    before, magnitudes = logits(run), plugin.magnitudes.tolist()
    switch(run, 2)
    torch.testing.assert_close(logits(run), before, atol=1e-4, rtol=1e-4)
    assert plugin.magnitudes.tolist() == pytest.approx([magnitudes[0] - 3 * magnitudes[1], 0.8], rel=1e-4)
    assert len(plugin.lora.layers[0].bank_up) == 1


def test_a_new_direction_is_kept(begin: Any, teach: Any) -> None:
    run = teach(begin(SDLoRA(distil=1e-4)))
    assert len(run.plugins[0].magnitudes) == 3
