from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clbench.adapters.lora import LoRALinear
from clbench.methods.seqlora import SeqLoRA
from clbench.methods.tasl import TaSL, case_shares, to_unit_range, unit_indices, unit_scores
from clbench.model import Site


def layer() -> LoRALinear:
    """Parts of 4 and 2 rows, rank 2, width 3."""
    site = Site("x", 0, {"q": (0, 4), "v": (4, 6)})
    return LoRALinear(nn.Linear(3, 6), site, 2, 2, torch.Generator().manual_seed(0))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_units_are_the_matrices_of_each_part() -> None:
    found = unit_indices([layer(), layer()], "matrix")
    assert found[:12].tolist() == [0] * 6 + [2] * 6  # A: two rows of width 3 a part
    assert found[12:24].tolist() == [1] * 8 + [3] * 4  # B: 4 and 2 rows of rank 2
    assert torch.equal(found[24:], found[:24] + 4)


def test_units_of_rank_one_are_a_row_and_its_column() -> None:
    found = unit_indices([layer(), layer()], "rank1")
    assert found[:12].tolist() == [0] * 3 + [2] * 3 + [4] * 3 + [6] * 3
    assert found[12:24].tolist() == [1, 3] * 4 + [5, 7] * 2
    assert torch.equal(found[24:], found[:24] + 8)


def test_scores_are_means_in_the_unit_range() -> None:
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    values = torch.tensor([1.0, 3, 0, 3, 6, 4, 0, 2])  # means 2, 3, 4, 1
    torch.testing.assert_close(unit_scores(values, groups, "matrix"), numbers(1, 2, 3, 0) / 3)
    outer = [torch.outer(torch.tensor([0.0, 3, 6]), torch.tensor([1.0, 3])).mean()]
    outer.append(torch.outer(torch.tensor([0.0, 2]), torch.tensor([4.0])).mean())
    assert [float(mean) for mean in outer] == [6, 4]
    torch.testing.assert_close(unit_scores(values, groups, "rank1"), numbers(1, 0))
    assert to_unit_range(numbers(2, 2)).tolist() == [0, 0]


def test_scores_do_not_depend_on_the_order_of_the_units() -> None:
    groups, values = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([5.0, 1, 2, 7, 1, 0])
    order = torch.tensor([2, 0, 1])
    renamed = unit_scores(values, order[groups], "matrix")
    torch.testing.assert_close(renamed[order], unit_scores(values, groups, "matrix"))


def test_the_four_cases() -> None:
    past, current = numbers(0.9, 0.8, 0.1, 0.0), numbers(0.7, 0.2, 0.9, 0.1)
    method = TaSL(important_share=0.5)
    assert case_shares(past, current, method).tolist() == [0.3, 0.0, 1.0, 0.5]


def test_as_many_are_important_as_the_share_says() -> None:
    scores = torch.linspace(0, 1, 11).double()
    shares = case_shares(scores, scores.flip(0), TaSL(important_share=0.2))
    assert shares.tolist() == [1.0] * 3 + [0.5] * 5 + [0.0] * 3


def step(plugin: Any, weights: list[Tensor], slopes: list[Tensor]) -> None:
    for factor, weight, slope in zip(plugin.factors, weights, slopes, strict=True):
        factor.data, factor.grad = weight, slope
    plugin.before_update(SimpleNamespace())


@pytest.mark.parametrize("units", ["matrix", "rank1"])
def test_importance_is_a_running_mean_and_its_spread(units: Any, begin: Any) -> None:
    plugin = begin(TaSL(units=units, level_decay=0.5, spread_decay=0.75)).plugins[0]
    plugin.before_training_exp(SimpleNamespace())
    shapes = [factor.shape for factor in plugin.factors]
    for weight, slope in ((2.0, -3.0), (1.0, 2.0)):
        step(plugin, [torch.full(s, weight) for s in shapes], [torch.full(s, slope) for s in shapes])
    first, second = (6.0, 2.0) if units == "matrix" else (6 + 18, 0)  # |θg|, or |θg - (θg)²/2|
    level = [first / 2, first / 4 + second / 2]
    spread = [0.25 * abs(first - level[0])]
    spread.append(0.75 * spread[0] + 0.25 * abs(second - level[1]))
    torch.testing.assert_close(plugin.level, torch.full_like(plugin.level, level[1]))
    torch.testing.assert_close(plugin.spread, torch.full_like(plugin.spread, spread[1]))


@pytest.mark.parametrize("units", ["matrix", "rank1"])
def test_a_task_ends_with_the_mixture_by_units(units: Any, begin: Any, teach: Any) -> None:
    method = TaSL(units=units)
    run = teach(begin(method), 0)
    plugin = run.plugins[0]
    assert [plugin.history.min().item(), plugin.history.max().item()] == [0, 1]
    past, history = plugin._flat(), plugin.history.clone()
    learned: list[Tensor] = []
    consolidate = plugin.after_training_exp

    def listen(*args: Any, **kwargs: Any) -> None:
        learned.append(plugin._flat())
        consolidate(*args, **kwargs)

    plugin.after_training_exp = listen
    teach(run, 1)
    scores = unit_scores(plugin.level * plugin.spread, plugin.groups, units)
    if units == "matrix":
        shares = case_shares(history, scores, method)[plugin.groups]
    else:
        heat = (scores / 0.25).exp(), (history / 0.25).exp()
        shares = (heat[0] / (heat[0] + heat[1]))[plugin.groups // 2]
    expected = shares * learned[0] + (1 - shares) * past
    torch.testing.assert_close(plugin._flat(), expected.float(), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(plugin._flat(), learned[0])
    torch.testing.assert_close(plugin.history, to_unit_range(0.3 * scores + 0.7 * history))


def test_all_to_the_new_is_one_lora_to_the_bit(begin: Any, teach: Any) -> None:
    run, plain = teach(begin(TaSL(important_share=1.0, both_share=1.0))), teach(begin(SeqLoRA()))
    assert run.facts()["scores"] == plain.facts()["scores"]
    theirs = dict(plain.model.named_parameters())
    for name, weight in run.model.named_parameters():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize("units", ["matrix", "rank1"])
def test_equal_weights_are_a_fixed_point(units: Any, begin: Any, teach: Any) -> None:
    run = teach(begin(TaSL(units=units)), 0)
    before = run.plugins[0]._flat().clone()
    run.strategy.learning_rate = 1e-20
    teach(run, 1)
    assert torch.equal(run.plugins[0]._flat(), before)
