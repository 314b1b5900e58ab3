from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clbench import tiny
from clbench.methods._gradients import flat, flat_gradient, parts
from clbench.methods.ogd import OGD, extended
from clbench.methods.seqlora import SeqLoRA
from clbench.seeding import generator
from clbench.strategy import Plugin


def drawn(seed: int, rows: int, width: int = 30) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_an_orthonormal_basis_of_all_that_was_given() -> None:
    first, second = drawn(0, 4), drawn(1, 5)
    basis = extended(extended(first[:0], first), second)
    torch.testing.assert_close(basis @ basis.T, torch.eye(9), atol=1e-6, rtol=0)
    for vector in (*first, *second):
        torch.testing.assert_close((basis @ vector) @ basis, vector, atol=1e-5, rtol=1e-5)


def test_what_is_in_the_span_already_adds_nothing() -> None:
    first = drawn(0, 4)
    basis = extended(first[:0], first)
    again = torch.stack([first[2], first[0] - 3 * first[1], torch.zeros(30), first[3]])
    assert len(extended(basis, again)) == 4


def test_nearly_equal_vectors_stay_orthogonal() -> None:
    first = drawn(2, 1)
    basis = extended(first[:0], torch.cat([first, first + 1e-4 * drawn(3, 6)]))
    torch.testing.assert_close(basis @ basis.T, torch.eye(7), atol=1e-5, rtol=0)


def test_projecting_twice_is_projecting_once(begin: Any) -> None:
    plugin, direction = begin(OGD()).plugins[0], drawn(5, 1)[0]
    plugin.basis = extended(drawn(0, 1)[:0], drawn(4, 6))
    once = direction + plugin.correction(direction)
    assert (plugin.basis @ once).abs().max() < 1e-5
    torch.testing.assert_close(once + plugin.correction(once), once, atol=1e-5, rtol=0)


def kept(run: Any, vectors: int) -> tuple[Tensor, Tensor]:
    """The samples whose gradients were kept of the first task."""
    task = tiny.stream().tasks[0].train
    picks = torch.randperm(len(task), generator=generator(0, "method", "vectors", 0))[:vectors]
    return task.batch(picks, run.device)


def true_logits(run: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    return run.model(inputs).gather(1, targets[:, None])[:, 0]


def test_kept_are_the_gradients_of_the_true_logits(begin: Any, teach: Any) -> None:
    run = teach(begin(OGD(vectors=5)), 0)
    basis, model = run.plugins[0].basis, run.model
    for x, y in zip(*kept(run, 5), strict=True):
        gradient = flat(torch.autograd.grad(true_logits(run, x[None], y[None])[0], model.trainable()))
        torch.testing.assert_close((basis @ gradient) @ basis, gradient, atol=1e-5, rtol=1e-4)
    assert len(basis) == 5


def test_a_projected_step_changes_kept_logits_in_second_order(begin: Any, teach: Any) -> None:
    run = teach(begin(OGD(vectors=12)), 0)
    model, plugin = run.model.eval(), run.plugins[0]
    inputs, targets = kept(run, 12)
    new, labels = tiny.stream().tasks[1].train.batch(torch.arange(0, 64, 4), run.device)
    model.zero_grad()
    F.cross_entropy(model(new), labels).backward()
    plain = flat_gradient(model.trainable())
    start = [parameter.detach().clone() for parameter in model.trainable()]

    @torch.no_grad()
    def change(direction: Tensor, size: float) -> float:
        moved = parts(direction / direction.norm() * size, start)
        for parameter, from_ in zip(model.trainable(), start, strict=True):
            parameter.copy_(from_)
        before = true_logits(run, inputs, targets)
        for parameter, by in zip(model.trainable(), moved, strict=True):
            parameter -= by
        return (true_logits(run, inputs, targets) - before).norm().item()

    projected = plain + plugin.correction(plain)
    assert change(plain, 0.1) / change(plain, 0.05) == pytest.approx(2, rel=0.2)
    assert change(projected, 0.1) / change(projected, 0.05) == pytest.approx(4, rel=0.2)
    assert change(projected, 0.05) < 0.2 * change(plain, 0.05)


class Steps(Plugin):
    def __init__(self, projection: Any) -> None:
        super().__init__()
        self.projection, self.inside = projection, []

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.weights = flat(strategy.model.trainable()).detach()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        step = self.weights - flat(strategy.model.trainable()).detach()
        self.inside.append(((self.projection.basis @ step).norm() / step.norm()).item())


def test_steps_of_adam_are_orthogonal_to_the_basis(begin: Any, teach: Any) -> None:
    inside = {}
    for projected in ("update", "gradient"):
        run = teach(begin(OGD(projected=projected, vectors=20)), 0)
        probe = Steps(run.plugins[0])
        run.strategy.plugins.append(probe)
        teach(run, 1, 2)
        inside[projected] = max(probe.inside)
    assert inside["update"] < 1e-3
    assert inside["gradient"] > 1e-2  # bent back


def test_the_first_task_is_learned_as_without_a_past(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(OGD()), 0)), weights(teach(begin(SeqLoRA()), 0))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)
