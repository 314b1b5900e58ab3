from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from clbench import tiny
from clbench.methods.ncm import NCM, PrototypeHead
from clbench.stream import Stream


def test_equals_the_offline_nearest_mean_by_cosine(begin: Any, teach: Any) -> None:
    run = teach(begin(NCM()))
    tasks = list(tiny.stream())
    with torch.no_grad():
        features = {c: [] for c in range(6)}
        for task in tasks:
            for image, label in zip(task.train.images, task.train.targets.tolist(), strict=True):
                features[label].append(run.model.features(image[None])[0])
        means = torch.stack([torch.stack(features[c]).mean(0) for c in range(6)])
        asked = torch.cat([run.model.features(task.test.images) for task in tasks])
    expected = F.cosine_similarity(asked[:, None], means[None], dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(run.model.head(asked), expected, atol=1e-5, rtol=1e-5)
    assert run.outcomes()["round_3"].tolist() == expected.argmax(1).tolist()


def test_the_order_of_the_tasks_changes_nothing(begin: Any, teach: Any) -> None:
    tasks = tiny.stream().tasks
    orders = [(0, 1, 2), (2, 0, 1)]
    answers = []
    for order in orders:
        run = teach(begin(NCM(), stream=Stream(tuple(tasks[j] for j in order))))
        outcomes = run.outcomes()
        answers.append({j: outcomes["round_3"][outcomes["tasks"] == order.index(j)].tolist() for j in order})
    assert answers[0] == answers[1]


def test_sums_are_exact_in_any_order_and_unseen_classes_score_zero() -> None:
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 3
    heads = []
    for order in (torch.arange(40), torch.arange(40).flip(0)):
        head = PrototypeHead(5, 4)
        for part in order.split(7):
            head.add(features[part], labels[part])
        heads.append(head)
    assert torch.equal(heads[0].sums, heads[1].sums)
    assert heads[0].counts.tolist() == [14, 13, 13, 0]
    assert torch.equal(heads[0](features)[:, 3], torch.zeros(40))


def test_nothing_is_trained(begin: Any, teach: Any, weights: Any) -> None:
    run = begin(NCM())
    before = weights(run)
    teach(run)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(run).items())
    assert [cost.steps for cost in run.state.costs] == [0, 0, 0]
