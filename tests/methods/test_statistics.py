from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from clbench import checkpoint
from clbench.methods._statistics import RIDGE, ClassStatistics, Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
MANY = 20_000


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def statistics(kind: Kind, width: int = 3, centroids: int = 10) -> ClassStatistics:
    return ClassStatistics(width, torch.device("cpu"), kind, centroids)


def slanted(seed: int, count: int = 300) -> Tensor:
    """Correlated features `[count, 3]` away from 0."""
    return numbers(seed, count, 3) @ torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, -0.6], [0.0, 0.0, 0.3]]) + 4 * seed


def labels(label: int, features: Tensor) -> Tensor:
    return torch.full((len(features),), label)


@pytest.mark.parametrize("kind", ["variance", "covariance"])
def test_samples_have_the_moments_of_the_features(kind: Kind) -> None:
    kept, seven, two = statistics(kind), slanted(1), slanted(2)
    kept.add(torch.cat([seven, two]), torch.cat([labels(7, seven), labels(2, two)]), 0)
    samples, places = kept.sample(MANY, source())
    assert kept.classes.tolist() == [2, 7]
    assert samples.shape == (2 * MANY, 3)
    for place, features in enumerate((two, seven)):
        mine, covariance = samples[places == place], features.T.cov()
        expected = covariance if kind == "covariance" else covariance.diagonal().diag()
        torch.testing.assert_close(mine.mean(0), features.mean(0), atol=0.04, rtol=0)
        torch.testing.assert_close(mine.T.cov(), expected, atol=0.05, rtol=0)


def test_the_covariance_is_kept_exactly() -> None:
    kept, features = statistics("covariance"), slanted(1)
    kept.add(features, labels(0, features), 0)
    torch.testing.assert_close(kept.spreads[0, 0] @ kept.spreads[0, 0].T, features.T.cov() + RIDGE * torch.eye(3))


def test_every_cluster_is_drawn_equally_often_with_its_own_moments() -> None:
    small, large = slanted(1, 60) * torch.tensor([1.0, 0.1, 2.0]), slanted(9, 240)
    features = torch.cat([large, small])[torch.randperm(300, generator=source(1))]
    kept = statistics("centroids", centroids=2)
    kept.add(features, labels(5, features), 0)
    samples, _ = kept.sample(MANY, source())
    near = (samples - small.mean(0)).norm(dim=1) < (samples - large.mean(0)).norm(dim=1)
    assert near.float().mean().item() == pytest.approx(0.5, abs=0.02)
    for mine, cluster in ((samples[near], small), (samples[~near], large)):
        torch.testing.assert_close(mine.mean(0), cluster.mean(0), atol=0.08, rtol=0)
        torch.testing.assert_close(mine.var(0), cluster.var(0, correction=0), atol=0.05, rtol=0.05)


def test_as_many_centroids_as_different_features() -> None:
    different = torch.tensor([[0.0, 0.0, 9.0], [5.0, 0.0, 0.0], [0.0, -7.0, 0.0]])
    kept, features = statistics("centroids"), different.repeat(4, 1)
    other = slanted(3)
    kept.add(torch.cat([features, other]), torch.cat([labels(0, features), labels(1, other)]), 0)
    assert kept.used.sum(1).tolist() == [3, 10]
    assert sorted(kept.means[0][kept.used[0]].tolist()) == sorted(different.tolist())
    assert len(kept.centroids()) == 13
    samples, places = kept.sample(200, source())
    distances = torch.cdist(samples[places == 0], different).amin(1)
    assert distances.max() < 0.1  # never from an empty slot, which lies at 0


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_of_equal_features(kind: Kind, count: int) -> None:
    kept, features = statistics(kind), torch.tensor([[1.0, -2.0, 30.0]]).repeat(count, 1)
    kept.add(features, labels(4, features), 0)
    samples, _ = kept.sample(MANY, source())
    assert kept.centroids().tolist() == [[1.0, -2.0, 30.0]]
    torch.testing.assert_close(samples.mean(0), features[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.full((3,), RIDGE**0.5), rtol=0.05, atol=0)


def test_a_covariance_of_fewer_features_than_dimensions() -> None:
    kept, features = statistics("covariance", width=40), 100 * numbers(0, 4, 40)
    kept.add(features, labels(0, features), 0)
    samples, _ = kept.sample(50, source())
    centred = features - features.mean(0)
    outside = (samples - features.mean(0)) @ torch.linalg.qr(centred[:3].T, mode="complete").Q[:, 3:]
    assert outside.abs().max() < 0.1  # the ridge alone


def filled(kind: Kind) -> ClassStatistics:
    kept = statistics(kind, centroids=4)
    for task, classes in enumerate(((3, 0), (5,))):
        for c in classes:
            features = slanted(c + 1, 20)
            kept.add(features, labels(c, features), task)
    return kept


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_comes_back_from_a_checkpoint(kind: Kind) -> None:
    kept, fresh = filled(kind), statistics(kind, centroids=4)
    fresh.load_state(checkpoint.unpack(checkpoint.pack(kept.state())))
    assert len(fresh) == 3
    assert fresh.classes.tolist() == [3, 0, 5]
    for ours, theirs in zip(fresh.sample(9, source()), kept.sample(9, source()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_given_numbers_are_used(kind: Kind) -> None:
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    draws = [filled(kind).sample(9, source(seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()
