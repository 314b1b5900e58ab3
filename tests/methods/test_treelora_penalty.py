from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch import Tensor

import clbench.methods.treelora.penalty as penalty_module
from clbench.methods.treelora.penalty import alignment_gradient, gradient_ratio, l1_gradient, l1_scale, ramp

PAST = torch.tensor([[[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]], [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])  # lengths 4 and 4


def live(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, requires_grad=True)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def l1_term(u: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Equation 3, as it would be added to the loss."""
    return scale * sum((u[d] - v[d]).abs().sum() for d in range(len(u)))


def alignment_term(u: Tensor, v: Tensor, loss: Tensor) -> Tensor:
    """The released code's term, as it would be added to the loss."""
    a = sum((u[d] * v[d]).sum() for d in range(len(u)))
    assert isinstance(a, Tensor)
    return -loss.detach() * a / a.detach()


def by_autograd(value: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(value, of)[0]


def test_l1_by_hand() -> None:
    u = live([2.0, -3.0, 0.0], [0.0, 0.0, 1.0])
    assert (l1_gradient(u, PAST[0], l1_scale(PAST)) * 4).tolist() == [[1, -1, 0], [0, -1, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_l1_equals_autograd_of_equation_3_with_ties(seed: int) -> None:
    u, v = random(seed, 3, 8), random(seed + 10, 3, 8)
    u[:, ::3] = v[:, ::3]
    u.requires_grad_()
    scale = l1_scale(torch.stack([v, v + 1]))
    expected = by_autograd(l1_term(u, v, scale), u)
    assert (expected == 0).sum() == 9
    assert torch.equal(l1_gradient(u, v, scale), expected)


def test_the_scaled_term_is_one_without_displacement() -> None:
    assert l1_scale(PAST).item() == 0.25
    assert l1_term(torch.zeros(2, 3), PAST[0], l1_scale(PAST)).item() == 1


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_l1_means_the_same_at_any_size_and_learning_rate(factor: float) -> None:
    # what a full step along the gradient's direction is worth: <gradient, u> does not change
    def worth(u: Tensor, past: Tensor) -> Tensor:
        return (l1_gradient(u, past[1], l1_scale(past)) * u).sum()

    u = random(0, 2, 3)
    torch.testing.assert_close(worth(u * factor, PAST * factor), worth(u, PAST))
    torch.testing.assert_close(worth(u.repeat(3, 5), PAST.repeat(1, 3, 5)), worth(u, PAST))


def test_l1_of_signatures_that_are_all_zero_is_zero() -> None:
    gradient = l1_gradient(live([1.0, 2.0, 3.0]), torch.zeros(1, 3), l1_scale(torch.zeros(4, 1, 3)))
    assert gradient.tolist() == [[0, 0, 0]]


def test_a_descent_step_on_l1_goes_to_the_chosen_signature() -> None:
    u = random(1, 2, 3)
    step = u - 0.01 * l1_gradient(u, PAST[0], l1_scale(PAST))
    assert (step - PAST[0]).abs().sum() < (u - PAST[0]).abs().sum()


def test_alignment_by_hand() -> None:
    u = live([1.0, 1.0, 5.0], [0.0, 3.0, 0.0])  # <u, v> = 1 - 2 + 3
    assert torch.equal(alignment_gradient(u, PAST[0], torch.tensor(3.0)), -1.5 * PAST[0])


@pytest.mark.parametrize("loss", [0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_alignment_equals_autograd_of_the_released_term(seed: int, loss: float) -> None:
    u, v = random(seed, 3, 8).requires_grad_(), random(seed + 10, 3, 8)
    expected = by_autograd(alignment_term(u, v, torch.tensor(loss)), u)
    torch.testing.assert_close(alignment_gradient(u, v, torch.tensor(loss)), expected)


def test_alignments_gradient_is_that_of_the_logarithm() -> None:
    u = live([1.0, 1.0, 5.0], [0.0, 3.0, 0.0])
    logarithm = -(u * PAST[0]).sum().abs().log()
    torch.testing.assert_close(alignment_gradient(u, PAST[0], torch.tensor(1.0)), by_autograd(logarithm, u))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_descent_step_moves_the_alignment_away_from_zero_in_its_sign(sign: float) -> None:
    u = PAST[0] * sign
    step = u - 0.1 * alignment_gradient(u, PAST[0], torch.tensor(1.0))
    before, after = (u * PAST[0]).sum().item(), (step * PAST[0]).sum().item()
    assert after * sign > before * sign > 0


@pytest.mark.parametrize("u", [[[0.0] * 3, [0.0] * 3], [[2.0, 1.0, 5.0], [9.0, 0.0, 1.0]]])
def test_alignment_of_zero_gives_no_gradient(u: list[list[float]]) -> None:
    assert (torch.tensor(u) * PAST[0]).sum() == 0
    assert alignment_gradient(torch.tensor(u), PAST[0], torch.tensor(2.0)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_gradients_carry_no_graph_and_leave_their_inputs() -> None:
    u, v, loss = live([1.0, 2.0, 3.0]), live([3.0, 2.0, 2.0]), torch.tensor(3.0, requires_grad=True)
    for gradient in (l1_gradient(u, v, torch.tensor(1.0)), alignment_gradient(u, v, loss * 2)):
        assert not gradient.requires_grad
    assert (u.tolist(), v.tolist()) == ([[1.0, 2.0, 3.0]], [[3.0, 2.0, 2.0]])


def test_gradient_ratio_by_hand() -> None:
    penalty, task = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 6.0], [8.0, 0.0]])
    assert gradient_ratio(penalty, task).item() == 0.5
    assert gradient_ratio(penalty, torch.zeros(2, 2)).item() == 0
    assert gradient_ratio(torch.zeros(2, 2), task).item() == 0


def test_gradient_ratio_shows_what_is_not_finite() -> None:
    broken, whole = torch.full((1, 2), math.nan), torch.ones(1, 2)
    assert math.isnan(gradient_ratio(broken, whole).item())
    assert math.isnan(gradient_ratio(whole, broken).item())


def test_nothing_waits_for_the_device() -> None:
    # a tensor of the meta device holds no numbers: whatever would read one raises
    u = torch.empty(2, 3, device="meta")
    assert l1_gradient(u, u, l1_scale(u[None])).shape == (2, 3)
    assert alignment_gradient(u, u, torch.empty((), device="meta")).shape == (2, 3)
    assert gradient_ratio(u, u).shape == ()
    with pytest.raises((RuntimeError, NotImplementedError)):
        u.sum().item()


def test_shapes_that_do_not_match_are_refused() -> None:
    refused = r"\[2, 3\] and \[1, 3\]"
    with pytest.raises(ValueError, match=refused):
        l1_gradient(PAST[0], PAST[0, :1], torch.tensor(1.0))
    with pytest.raises(ValueError, match=refused):
        alignment_gradient(PAST[0], PAST[0, :1], torch.tensor(1.0))
    with pytest.raises(ValueError, match=refused):
        gradient_ratio(PAST[0], PAST[0, :1])


def test_ramp_rises_linearly_from_zero() -> None:
    assert [ramp(step, 5) for step in range(5)] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_examples() -> None:
    assert doctest.testmod(penalty_module).failed == 0
