"""The search that restates the released code's sampling rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clbench.methods.treelora.bandit import Bandit
from clbench.methods.treelora.tree import Node, build

EPOCH = 7  # steps


def random_signatures(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(root: Node, signatures: Tensor, seed: int = 0) -> Bandit:
    return Bandit(root, signatures, exploration=0.1, search="reference", steps_per_epoch=EPOCH, seed=seed)


def medians(root: Node, *thresholds: float | None) -> Node:
    """The root with other thresholds of its children."""
    sides = [replace(child, threshold=value) for child, value in zip(root.children, thresholds, strict=True)]
    return replace(root, children=tuple(sides))


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


class Plain:
    """The rule in plain numbers: `seen[k][d]` lists the distances that arm k showed in layer d in this epoch."""

    def __init__(self, root: Node, layers: int) -> None:
        self.root, self.step = root, 0
        self.seen: list[list[list[float]]] = [[[] for _ in range(layers)] for _ in root.tasks]

    def shifted(self) -> list[list[float]]:
        top = math.log(2 * EPOCH * (self.step + 1) * (self.step + 2))
        bounds = [[self._bound(pulls, top) for pulls in arm] for arm in self.seen]
        least = min(min(row) for row in bounds)
        return [[value + least for value in row] for row in bounds]

    @staticmethod
    def _bound(pulls: list[float], top: float) -> float:
        width = math.sqrt(top) / math.sqrt(2 * len(pulls) + 1e-5)
        similarity = -sum(pulls) / len(pulls) if pulls else 0.0
        return -(similarity - width)

    def first(self) -> list[float]:
        """Probability that each arm is the first one drawn."""
        return softmax([sum(row) for row in self.shifted()])

    def arms(self, first: int) -> list[list[float]]:
        """Probabilities of the arms in each layer, [D][N], once `first` was drawn."""
        scores = self.shifted()
        for child in self.root.children:
            if first in child.tasks:
                factor = min(1.0 if child.threshold is None else child.threshold, 1.5)
                scores = [[v * factor for v in row] if k in child.tasks else row for k, row in enumerate(scores)]
        flat = [value for row in scores for value in row]
        span = max(flat) - min(flat) + 1e-5
        return [softmax([row[d] / span for row in scores]) for d in range(len(scores[0]))]


def assert_same_odds(bandit: Bandit, plain: Plain) -> None:
    bounds = bandit.reference_bounds()
    assert torch.softmax(bounds.sum(0), 0).tolist() == pytest.approx(plain.first(), abs=1e-6)
    for first in range(len(plain.seen)):
        scores = bandit.reference_scores(bounds, torch.tensor([first]))
        for odds, expected in zip(torch.softmax(scores, 1).tolist(), plain.arms(first), strict=True):
            assert odds == pytest.approx(expected, abs=1e-5)


def play(bandit: Bandit, plain: Plain, current: Tensor) -> None:
    """One step of both, on the arms that the bandit draws."""
    pull = bandit.pull(current)
    for d, arm in enumerate(pull.arms.tolist()):
        distance = float((current[d] - pull.signatures[d]).abs().sum())
        assert pull.residuals[d].item() == pytest.approx(distance)
        plain.seen[arm][d].append(distance)
    plain.step += 1


@pytest.mark.parametrize("thresholds", [(0.4, 1.2), (1.3, 40.0), (-2.0, 0.0), (None, 0.7)])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_equal_the_plain_restatement(seed: int, thresholds: tuple[float | None, float | None]) -> None:
    signatures = random_signatures(seed, 7, 3, 5)
    root = medians(build(signatures, similarity="inner"), *thresholds)
    bandit, plain = reference(root, signatures), Plain(root, 3)
    for step in range(25):
        assert_same_odds(bandit, plain)
        play(bandit, plain, random_signatures(100 + step, 3, 5))
    bandit.reset()
    assert_same_odds(bandit, Plain(root, 3))


@pytest.mark.parametrize("depth", [0, 1])
def test_leaves_below_the_root_and_a_root_without_children_boost_nothing(depth: int) -> None:
    signatures = random_signatures(5, 4, 2, 5)
    root = build(signatures, similarity="inner", depth=depth)
    bandit = reference(root, signatures)
    play(bandit, Plain(root, 2), signatures[0])
    bounds = bandit.reference_bounds()
    span = bounds.max() - bounds.min() + 1e-5
    for first in range(4):
        assert torch.equal(bandit.reference_scores(bounds, torch.tensor([first])), bounds / span)


def test_arms_are_drawn_with_these_probabilities() -> None:
    # all arms pulled, distances that leave the first draw open, and two children that boost differently
    signatures = 0.3 * random_signatures(4, 5, 2, 4)
    root = medians(build(signatures, similarity="inner"), -1.0, 1.4)
    bandit, plain = reference(root, signatures), Plain(root, 2)
    while not bandit.counts.all():
        play(bandit, plain, random_signatures(bandit.step, 2, 4))
    conditional = torch.tensor([plain.arms(k) for k in range(5)])  # [first, D, N]
    first = torch.tensor(plain.first())
    expected = torch.einsum("f,fdk->dk", first, conditional)
    near_first = torch.einsum("f,fdk->dk", (1 / first) / (1 / first).sum(), conditional)
    assert (expected - near_first).abs().max() > 0.1  # the first draw's direction shows
    draws, seen = 6000, torch.zeros(2, 5)
    for _ in range(draws):
        seen[torch.arange(2), bandit.choose(signatures[0])] += 1
    assert (seen / draws - expected).abs().max() < 0.02  # three standard errors


def test_the_near_arm_is_drawn_less_often_than_the_far_one() -> None:
    signatures = torch.stack([torch.zeros(3, 10), 10 * torch.ones(3, 10)])
    bandit = reference(build(signatures, similarity="inner"), signatures)
    for _ in range(1500):
        bandit.pull(torch.full((3, 10), 0.1))
    near, far = bandit.pull_shares().T
    assert near.max() < 0.33  # 1 / (1 + e) = 0.27 in the limit
    assert far.min() > 0.67
