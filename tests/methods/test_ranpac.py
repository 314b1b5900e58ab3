from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clbench import tiny
from clbench.errors import Diverged
from clbench.methods.ranpac import RIDGES, RanPAC, best_ridge, solution
from clbench.stream import Stream


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def expanded(run: Any, part: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Of all tasks, in the stream's order."""
    sets = [getattr(task, part) for task in tiny.stream()]
    images = torch.cat([examples.images for examples in sets])
    return run.model.head.expanded(run.model.features(images)).double(), torch.cat([s.targets for s in sets])


def test_streaming_is_ridge_regression_on_all_data(begin: Any, teach: Any) -> None:
    run = teach(begin(RanPAC(expansion=96)))
    features, targets = expanded(run)
    labels = F.one_hot(targets, 6).double()
    ridge = run.plugins[0].notes()["last_ridge"]
    assert ridge in RIDGES
    offline = torch.linalg.solve(features.T @ features + ridge * torch.eye(96), features.T @ labels)
    torch.testing.assert_close(run.model.head.readout.T.double(), offline, atol=1e-4, rtol=1e-4)
    asked, _ = expanded(run, "test")
    assert run.outcomes()["round_3"].tolist() == (asked @ offline).argmax(1).tolist()


def test_the_order_of_later_tasks_changes_nothing(begin: Any, teach: Any) -> None:
    tasks, heads = tiny.stream().tasks, []
    for order in ((0, 1, 2), (0, 2, 1)):
        run = teach(begin(RanPAC(expansion=64, ridge=10.0), stream=Stream(tuple(tasks[j] for j in order))))
        heads.append(run.model.head)
    torch.testing.assert_close(heads[0].gram, heads[1].gram)
    torch.testing.assert_close(heads[0].readout, heads[1].readout, atol=1e-6, rtol=1e-4)


def test_only_the_first_task_is_trained(begin: Any, teach: Any, weights: Any) -> None:
    run = begin(RanPAC(expansion=32))
    assert run.cell.protocol.schedule == "first"
    before = weights(run)
    teach(run, 0)
    learned = weights(run)
    assert any(not torch.equal(weight, before[name]) for name, weight in learned.items())
    teach(run, 1, 2)
    assert all(torch.equal(weight, learned[name]) for name, weight in weights(run).items())
    assert [cost.epochs for cost in run.state.costs] == [3, 0, 0]
    assert [cost.trainable_parameters > 0 for cost in run.state.costs] == [True, False, False]


@pytest.mark.parametrize("columns", [5, 200])  # the primal form, and the dual
def test_the_ridge_is_the_one_with_the_least_error_on_the_last_fifth(columns: int) -> None:
    features = numbers(60, columns).relu()
    labels = F.one_hot(torch.arange(60) % 3, 3).double() + 0.1 * features[:, :3]
    fit, rest = features[:48], features[48:]
    errors = {}
    for ridge in RIDGES:
        weights = torch.linalg.solve(fit.T @ fit + ridge * torch.eye(columns), fit.T @ labels[:48])
        errors[ridge] = (rest @ weights - labels[48:]).square().mean()
    assert best_ridge(features, labels) == min(errors, key=errors.__getitem__)


def test_a_ridge_too_small_to_factor_is_raised(begin: Any) -> None:
    assert solution(torch.diag(torch.tensor([1.0, -1.0])), 0.5, torch.eye(2)) is None
    torch.testing.assert_close(solution(torch.eye(2), 1.0, torch.eye(2)), torch.eye(2) / 2)
    head = begin(RanPAC(expansion=3)).plugins[0].answer
    head.gram.copy_(-torch.eye(3))
    head._solve(1e-2)
    assert head.ridge.item() == pytest.approx(10.0)
    head.gram.fill_(torch.nan)
    with pytest.raises(Diverged, match="not finite"):
        head._solve(1.0)


def test_one_sample_is_enough(begin: Any) -> None:
    head = begin(RanPAC(expansion=8)).plugins[0].answer
    head.learn(torch.randn(1, 1, 16), torch.tensor([2]))
    assert torch.isfinite(head.readout).all()


def test_the_readout_is_linear_and_by_cosines_only_when_asked(begin: Any, teach: Any) -> None:
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    heads = {compat: teach(begin(RanPAC(expansion=32, compat_cosine=compat)), 0).model.head for compat in (False, True)}
    expected = heads[False].expanded(features) @ heads[False].readout.T
    torch.testing.assert_close(heads[False](features), expected)
    lengths = heads[True].expanded(features).norm(dim=1)[:, None] * heads[True].readout.norm(dim=1).clamp(min=1e-9)
    torch.testing.assert_close(heads[True](features), expected / lengths)


def test_the_projection_comes_from_the_run_s_seed(begin: Any) -> None:
    first, same, other = (begin(RanPAC(expansion=32), seed=seed).plugins[0].answer.projection for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
