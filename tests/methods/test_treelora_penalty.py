from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor

import clbench.methods.treelora.penalty as penalty_module
from clbench.methods.treelora.penalty import alignment_penalty, l1_penalty, l1_scale, ramp

PAST = torch.tensor([[[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]], [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])  # lengths 4 and 4


def live(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, requires_grad=True)


def gradient(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value, of)[0]


def test_l1_by_hand() -> None:
    u = live([2.0, -3.0, 0.0], [0.0, 0.0, 1.0])
    value = l1_penalty(u, PAST[0], l1_scale(PAST))
    assert value.item() == (1 + 1 + 0 + 0 + 1 + 1) / 4
    assert (gradient(value, u) * 4).tolist() == [[1, -1, 0], [0, -1, 1]]


def test_l1_is_zero_on_the_signatures_and_one_without_displacement() -> None:
    assert l1_penalty(PAST[0], PAST[0], l1_scale(PAST)).item() == 0
    u = live([0.0] * 3, [0.0] * 3)
    value = l1_penalty(u, PAST[0], l1_scale(PAST))
    assert value.item() == 1
    assert (gradient(value, u) * 4).tolist() == [[-1, 1, 0], [0, -1, 0]]


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_l1_means_the_same_at_any_size_and_learning_rate(factor: float) -> None:
    u = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    plain = l1_penalty(u, PAST[1], l1_scale(PAST))
    longer = l1_penalty(u * factor, PAST[1] * factor, l1_scale(PAST * factor))
    wide = l1_penalty(u.repeat(3, 5), PAST[1].repeat(3, 5), l1_scale(PAST.repeat(1, 3, 5)))
    torch.testing.assert_close(longer, plain)
    torch.testing.assert_close(wide, plain)


def test_l1_of_signatures_that_are_all_zero_is_zero() -> None:
    u = live([1.0, 2.0, 3.0])
    value = l1_penalty(u, torch.zeros(1, 3), l1_scale(torch.zeros(4, 1, 3)))
    assert value.item() == 0
    assert gradient(value, u).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("loss", [0.5, 2.0])
def test_alignments_gradient_is_that_of_the_alignment_over_the_alignment(loss: float) -> None:
    u = live([1.0, 1.0, 5.0], [0.0, 3.0, 0.0])
    value = alignment_penalty(u, PAST[0], torch.tensor(loss))
    alignment = 1 - 2 + 3  # <u, v>
    assert value.item() == -loss
    torch.testing.assert_close(gradient(value, u), -loss * PAST[0] / alignment)


def test_alignments_gradient_is_that_of_the_logarithm() -> None:
    u = live([1.0, 1.0, 5.0], [0.0, 3.0, 0.0])
    logarithm = -(u * PAST[0]).sum().abs().log()
    value = alignment_penalty(u, PAST[0], torch.tensor(1.0))
    torch.testing.assert_close(gradient(value, u), gradient(logarithm, u))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_descent_step_moves_the_alignment_away_from_zero_in_its_sign(sign: float) -> None:
    u = (PAST[0] * sign).clone().requires_grad_()
    step = u - 0.1 * gradient(alignment_penalty(u, PAST[0], torch.tensor(1.0)), u)
    before, after = (u * PAST[0]).sum().item(), (step * PAST[0]).sum().item()
    assert after * sign > before * sign > 0


def test_alignment_without_displacement_is_safe() -> None:
    u = live([0.0] * 3, [0.0] * 3)
    value = alignment_penalty(u, PAST[0], torch.tensor(2.0))
    assert value.item() == 0
    assert gradient(value, u).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_alignment_sends_no_gradient_into_the_task_loss() -> None:
    u, weight = live([1.0, 0.0, 0.0]), torch.tensor(3.0, requires_grad=True)
    value = alignment_penalty(u, PAST[0, :1], weight * 2)
    assert torch.autograd.grad(value, weight, allow_unused=True)[0] is None


@pytest.mark.parametrize("name", ["l1", "alignment"])
def test_a_list_of_layers_equals_the_stack_and_layers_may_differ_in_size(name: str) -> None:
    def penalty(u: Tensor | list[Tensor], v: Tensor | list[Tensor]) -> Tensor:
        return l1_penalty(u, v, torch.tensor(0.25)) if name == "l1" else alignment_penalty(u, v, torch.tensor(1.5))

    u, v = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).unbind()
    u.requires_grad_()
    torch.testing.assert_close(penalty(list(u), list(v)), penalty(u, v))
    torch.testing.assert_close(gradient(penalty(list(u), list(v)), u), gradient(penalty(u, v), u))
    uneven = penalty([u.flatten()[:7], u.flatten()[7:]], [v.flatten()[:7], v.flatten()[7:]])
    torch.testing.assert_close(uneven, penalty(u, v))


def test_chosen_signatures_take_no_gradient() -> None:
    u, v = live([1.0, 2.0, 3.0]), live([3.0, 2.0, 2.0])
    for value in (l1_penalty(u, v, torch.tensor(1.0)), alignment_penalty(u, v, torch.tensor(1.0))):
        assert torch.autograd.grad(value, v, allow_unused=True)[0] is None


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(1, 3\)"):
        l1_penalty(PAST[0], PAST[0, :1], torch.tensor(1.0))


def test_ramp_rises_linearly_from_zero() -> None:
    assert [ramp(step, 5) for step in range(5)] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_examples() -> None:
    assert doctest.testmod(penalty_module).failed == 0
