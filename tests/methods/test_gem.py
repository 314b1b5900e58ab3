from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.methods import agem
from clbench.methods._gradients import flat
from clbench.methods.gem import GEM, correction
from clbench.methods.seqlora import SeqLoRA
from clbench.strategy import Plugin

RIDGE = 1e-5


def vectors(seed: int, rows: int, width: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, generator=generator), torch.randn(rows, width, generator=generator)


def test_a_step_against_the_only_past_is_not_taken() -> None:
    """min ½(x + 1)² with x ≥ 0 is 0; with the signs of another solver's convention it would be -2."""
    added = correction(torch.tensor([-1.0]), torch.tensor([[1.0]]), 0.0, RIDGE)
    assert added is not None
    assert -1 + added.item() == pytest.approx(0, abs=2 * RIDGE)


def test_by_hand() -> None:
    """Of (-1, -2, 5), (1, 0, 0) and (0, 3, 0) leave (0, 0, 5); with margin ½, v = max(½, violation / |g|)."""
    direction, past = torch.tensor([-1.0, -2.0, 5.0]), torch.tensor([[1.0, 0, 0], [0, 3, 0]])
    added = correction(direction, past, 0.0, RIDGE)
    assert added is not None
    torch.testing.assert_close(direction + added, torch.tensor([0.0, 0, 5]), atol=1e-4, rtol=0)
    half = correction(direction, past, 0.5, RIDGE)
    assert half is not None
    size = 30**0.5
    torch.testing.assert_close(half, torch.tensor([0.5 * size, 0.5 * size, 0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_dual_is_that_of_another_solver(seed: int, margin: float) -> None:
    direction, past = vectors(seed, 4)
    found = correction(direction, past, margin, 1e-3)
    rows, unit = F.normalize(past).double().numpy(), F.normalize(direction, dim=0).double().numpy()
    if (rows @ unit >= 0).all():
        assert found is None
        return
    matrix = np.concatenate([rows.T, 1e-3**0.5 * np.eye(4)])
    v = lsq_linear(matrix, -np.concatenate([unit, np.zeros(4)]), bounds=(margin, np.inf), tol=1e-12).x
    assert found is not None
    expected = direction.norm().item() * v @ rows
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-4)
    projected = (unit + v @ rows) @ rows.T
    assert (projected >= -1e-3 * v - 1e-6).all()  # M g̃ ≥ -ridge v


def test_agreement_is_left_alone_and_projecting_twice_is_projecting_once() -> None:
    direction, past = vectors(3, 3)
    past *= (past @ direction).sign()[:, None]
    assert correction(direction, past, 0.5, RIDGE) is None
    once = -direction + correction(-direction, past, 0.0, RIDGE)  # type: ignore[operator]
    again = correction(once, past, 0.0, RIDGE)
    assert again is None or again.norm() < 1e-3 * once.norm()


def test_one_past_task_without_margin_is_the_average_form() -> None:
    direction, past = vectors(1, 1)
    past *= -(past @ direction).sign()[:, None]
    mine = correction(direction, past, 0.0, RIDGE)
    assert mine is not None
    torch.testing.assert_close(mine, agem.correction(direction, past[0]), atol=1e-4, rtol=1e-4)


def test_the_gradients_size_does_not_matter() -> None:
    direction, past = vectors(2, 3)
    past *= -(past @ direction).sign()[:, None]
    plain, small = correction(direction, past, 0.5, 1e-3), correction(direction * 1e-6, past * 1e-9, 0.5, 1e-3)
    assert plain is not None
    assert small is not None
    torch.testing.assert_close(small * 1e6, plain, atol=1e-5, rtol=1e-4)


class Steps(Plugin):
    """How far each step goes along each past task's gradient, as a share of both lengths."""

    def __init__(self, constraints: Any) -> None:
        super().__init__()
        self.constraints, self.along = constraints, []

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.weights = flat(strategy.model.trainable()).detach()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        step = self.weights - flat(strategy.model.trainable()).detach()
        rows = F.normalize(self.constraints.references, dim=1)
        self.along.append(rows @ step / step.norm())


@pytest.mark.parametrize("settings", [{}, {"reference_batch": 8, "buffer_samples": 24}])
def test_no_step_of_adam_goes_against_a_past_task(settings: Any, begin: Any, teach: Any) -> None:
    run = teach(begin(GEM(margin=0.0, ridge=RIDGE, **settings)), 0)
    probe = Steps(run.plugins[0])
    run.strategy.plugins.append(probe)
    teach(run, 1, 2)
    assert {len(along) for along in probe.along} == {1, 2}
    assert torch.cat(probe.along).min() > -1e-3
    free = begin(GEM(margin=0.0, ridge=RIDGE, projected="gradient", **settings))
    other = Steps(teach(free, 0).plugins[0])
    free.strategy.plugins.append(other)
    teach(free, 1, 2)
    assert torch.cat(other.along).min() < -1e-2  # Adam bends a projected gradient back


def test_references_are_the_gradients_of_each_task_s_loss(begin: Any, teach: Any) -> None:
    run = teach(begin(GEM(buffer_samples=24)), 0, 1, 2)
    plugin, model = run.plugins[0], run.model
    plugin.before_training_exp(run.strategy)
    plugin.memory.inputs[0], plugin.memory.targets[0] = plugin.memory.inputs[0][:3], plugin.memory.targets[0][:3]
    plugin.kept = plugin.memory.stacked()
    assert plugin.prepare(run.strategy)
    for task, reference in enumerate(plugin.references):
        model.zero_grad()
        nn.functional.cross_entropy(model(plugin.memory.inputs[task]), plugin.memory.targets[task]).backward()
        expected = flat(p.grad for p in model.trainable())
        torch.testing.assert_close(reference, expected, atol=1e-6, rtol=1e-4)


def test_the_first_task_is_learned_as_without_a_past(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(GEM()), 0)), weights(teach(begin(SeqLoRA()), 0))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_runs_in_half_precision(begin: Any, teach: Any) -> None:
    run = teach(begin(GEM()), 0)
    run.strategy.recipe = run.strategy.recipe.model_copy(update={"precision": "bfloat16"})
    references = teach(run, 1).plugins[0].references
    assert references.dtype == torch.float32
    assert references.isfinite().all()


def test_what_is_looked_at_is_declared() -> None:
    assert GEM(buffer_samples=50).resources().replay_batch == 50
    assert GEM(buffer_samples=50, reference_batch=20).resources().replay_batch == 20


def test_a_memory_smaller_than_the_tasks_is_declined_before_training(begin: Any) -> None:
    stream = begin(GEM()).stream
    assert "less than one for each of 3 tasks" in str(GEM(buffer_samples=2).unsupported(stream))
    assert GEM(buffer_samples=3).unsupported(stream) is None
