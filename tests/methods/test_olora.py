from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from clbench.methods.olora import OLoRA, by_width, overlap

NORMS = ("l1", "l2sq")


def orthonormal(seed: int, rows: int, width: int) -> Tensor:
    square = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q.T[:rows]


def one(matrix: Tensor) -> list[Tensor]:
    """The only stack, of one matrix."""
    return [matrix[None]]


@pytest.mark.parametrize("norm", NORMS)
def test_zero_where_and_only_where_the_rows_are_orthogonal(norm: Any) -> None:
    rows = orthonormal(0, 9, 12)
    past = one(rows[:6])  # two tasks
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert overlap(past, one(mix @ rows[6:]), norm).item() == pytest.approx(0, abs=1e-12)
    assert overlap(past, one(rows[6:] + 1e-3 * rows[4]), norm).item() > 1e-7


@pytest.mark.parametrize("norm", NORMS)
def test_the_rank_for_each_identical_orthonormal_pair(norm: Any) -> None:
    rows = orthonormal(2, 4, 10)
    assert overlap(one(rows), one(rows), norm).item() == pytest.approx(4)
    assert overlap(one(rows.repeat(2, 1)), one(rows), norm).item() == pytest.approx(8)


def test_matrices_and_widths_are_not_mixed() -> None:
    generator = torch.Generator().manual_seed(3)
    widths = (5, 7, 5)
    past = [torch.randn(12, width, generator=generator) for width in widths]
    live = [torch.randn(4, width, generator=generator) for width in widths]
    expected = sum((before @ now.T).abs().sum() for before, now in zip(past, live, strict=True))
    assert [stack.shape for stack in by_width(live)] == [(2, 4, 5), (1, 4, 7)]
    torch.testing.assert_close(overlap(by_width(past), by_width(live), "l1"), expected)


def penalty(run: Any) -> Tensor:
    run.model.zero_grad(set_to_none=True)
    run.strategy.loss = torch.zeros(1)
    run.plugins[0].before_backward(run.strategy)
    return run.strategy.loss


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_penalty_works_from_the_second_task_on(norm: Any, side: Any, begin: Any, teach: Any) -> None:
    run = begin(OLoRA(norm=norm, side=side))
    teach(run, 0)
    assert penalty(run).item() == 0  # there is no past yet
    for number in (1, 2):
        teach(run, number)
        loss = penalty(run)
        assert loss.item() > 0
        loss.sum().backward()
        moved = {name for name, weight in run.model.named_parameters() if weight.grad is not None and weight.grad.any()}
        live = "down" if side == "A" else "up"
        assert moved == {f"body.blocks.{block}.attn.qkv.{live}" for block in (0, 1)}


def test_past_pairs_are_frozen_and_all_are_summed(begin: Any, teach: Any) -> None:
    run = begin(OLoRA())
    layers = run.plugins[0].lora.layers
    ends = []
    for number in range(3):
        teach(run, number)
        ends.append([(layer.down.detach().clone(), layer.up.detach().clone()) for layer in layers])
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    for place, layer in enumerate(layers):
        assert torch.equal(layer.past_down, torch.stack([end[place][0] for end in ends[:2]]))
        assert torch.equal(layer.past_up, torch.stack([end[place][1] for end in ends[:2]]))
        expected = layer.base(x)
        for end in ends:
            down, up = end[place]
            expected[:, :16] += layer.scale * x @ down[:2].T @ up[:16].T
            expected[:, 32:] += layer.scale * x @ down[2:].T @ up[16:].T
        torch.testing.assert_close(layer(x), expected)


def test_a_task_starts_from_a_fresh_pair(begin: Any, teach: Any) -> None:
    run = teach(begin(OLoRA()), 0)
    run.strategy.learning_rate = 1e-12
    first = run.plugins[0].lora.layers[0].down.detach().clone()
    teach(run, 1)
    layer = run.plugins[0].lora.layers[0]
    assert layer.up.abs().max() < 1e-9
    assert not torch.allclose(layer.down, first, atol=1e-2)


def test_the_penalty_makes_the_overlap_smaller(begin: Any, teach: Any) -> None:
    overlaps = [
        run.plugins[0].notes()["last_overlap"]
        for run in (teach(begin(OLoRA(penalty_weight=weight)), 0, 1) for weight in (0.0, 5.0))
    ]
    assert overlaps[1] < overlaps[0] / 2


def test_the_size_of_the_new_pair(begin: Any, teach: Any) -> None:
    run = begin(OLoRA(size_weight=2.0))
    loss = penalty(run)
    factors = list(run.plugins[0].lora.parameters())
    assert loss.item() == pytest.approx(2 * sum(factor.norm().item() for factor in factors), rel=1e-5)
    loss.sum().backward()
    assert all(torch.isfinite(factor.grad).all() for factor in factors)  # also where a factor is zero


def test_the_options_are_those_tested() -> None:
    assert get_args(OLoRA.model_fields["norm"].annotation) == NORMS
