from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from clbench.methods._task_router import RIDGE, TaskRouter

CPU = torch.device("cpu")


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups(*middles: list[float]) -> Tensor:
    """Twenty points about each of the middles."""
    return torch.cat([torch.tensor(middle) + 0.1 * numbers(seed, 20, 2) for seed, middle in enumerate(middles)])


def test_it_is_the_density_of_mixtures_with_one_covariance() -> None:
    """Two tasks of two far groups each: k-means finds them, so means and scatter are those of the groups."""
    router = TaskRouter(2, CPU, centroids=2)
    tasks = [groups([0.0, 9.0], [0.0, -9.0]), groups([9.0, 0.0], [-9.0, 0.0])[:-5]]
    for seed, features in enumerate(tasks):
        router.add(features, seed)
    parts = [(task, part.double()) for task, features in enumerate(tasks) for part in features.split(20)]
    scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for _, part in parts)
    covariance = scatter / 75
    covariance = covariance + RIDGE * covariance.trace() / 2 * torch.eye(2)
    points = 5 * numbers(7, 6, 2)
    expected = torch.full((6, 2), -math.inf, dtype=torch.float64)
    for task, part in parts:
        density = multivariate_normal(part.mean(0).numpy(), covariance.numpy()).logpdf(points.numpy())
        shared = math.log(len(part) / len(tasks[task])) + torch.from_numpy(density)
        expected[:, task] = torch.logaddexp(expected[:, task], shared)
    found = router.likelihoods(points)
    torch.testing.assert_close(found.diff(), expected.diff())
    assert router.tasks(torch.tensor([[0.0, -8.0], [-8.0, 1.0]])).tolist() == [0, 1]
    assert router.tasks(points).tolist() == expected.argmax(1).tolist()


def test_a_feature_that_varies_much_within_tasks_counts_little() -> None:
    router = TaskRouter(2, CPU, centroids=1)
    for task in range(2):
        router.add(numbers(task, 200, 2) * torch.tensor([10.0, 0.1]) + torch.tensor([8.0, 5.0]) * task, task)
    point = torch.tensor([[8.0, 1.0]])  # nearer to the second mean where features vary, to the first where not
    assert router.tasks(point).tolist() == [0]
    router.scatter = router.scatter.diagonal().flip(0).diag()
    router.load_state(router.state())
    assert router.tasks(point).tolist() == [1]


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_fewer_rows_than_centroids_or_numbers_and_equal_rows(rows: int) -> None:
    router = TaskRouter(32, CPU, centroids=10)
    points = numbers(1, 2, 32)
    for task in range(2):
        router.add(points[task].expand(rows, 32) + (0.01 * numbers(task, rows, 32) if rows == 40 else 0), task)
    assert router.likelihoods(points).isfinite().all()
    assert router.tasks(points).tolist() == [0, 1]
    assert router.shares.sum(1).tolist() == pytest.approx([1, 1])


def test_an_answer_does_not_hang_on_the_batch_and_survives_a_checkpoint() -> None:
    router, other = TaskRouter(16, CPU), TaskRouter(16, CPU)
    for task in range(3):
        router.add(numbers(task, 60, 16) + 0.3 * task, task)
    points = numbers(9, 30, 16) + 0.3
    together = router.likelihoods(points)
    alone = torch.cat([router.likelihoods(point[None]) for point in points])
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)
    other.load_state(router.state())
    assert torch.equal(other.likelihoods(points), together)
    assert len(other) == 3
    for each in (router, other):
        each.add(numbers(5, 60, 16) - 1, 5)
    assert torch.equal(other.likelihoods(points), router.likelihoods(points))
    assert not math.isclose(float(router.scatter.trace()), 0)
