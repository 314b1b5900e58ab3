from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from clbench import backbones, tiny
from clbench.methods._prototypes import CosineHead
from clbench.methods.aper_adapter import APERAdapter
from clbench.stream import Stream


@torch.no_grad()
def both(run: Any, images: torch.Tensor) -> torch.Tensor:
    """Features of the untouched backbone and of the adapted one, end to end."""
    plain = backbones.build("tiny-vit", 6, 0).eval().features(images)
    return torch.cat([plain, run.model.features(images)], dim=1)


def test_equals_the_offline_nearest_mean_of_both_views(begin: Any, teach: Any) -> None:
    run = teach(begin(APERAdapter()))
    tasks = list(tiny.stream())
    images = torch.cat([task.train.images for task in tasks])
    targets = torch.cat([task.train.targets for task in tasks])
    features = both(run, images)
    means = torch.stack([features[targets == c].mean(0) for c in range(6)])
    asked = both(run, torch.cat([task.test.images for task in tasks]))
    expected = F.cosine_similarity(asked[:, None], means[None], dim=-1)
    assert not torch.allclose(asked[:, :16], asked[:, 16:], atol=1e-3)
    assert run.outcomes()["round_3"].tolist() == expected.argmax(1).tolist()


def test_the_order_of_later_tasks_changes_nothing(begin: Any, teach: Any) -> None:
    tasks, heads = tiny.stream().tasks, []
    for order in ((0, 1, 2), (0, 2, 1)):
        heads.append(teach(begin(APERAdapter(), stream=Stream(tuple(tasks[j] for j in order)))).model.head)
    torch.testing.assert_close(heads[0].sums, heads[1].sums)
    assert torch.equal(heads[0].counts, heads[1].counts)


def test_only_the_first_task_is_trained(begin: Any, teach: Any, weights: Any) -> None:
    run = begin(APERAdapter())
    before = weights(run)
    teach(run, 0)
    learned = weights(run)
    moved = {name for name, weight in learned.items() if not torch.equal(weight, before[name])}
    assert moved == {f"body.blocks.{i}.mlp.{part}" for i in (0, 1) for part in ("down", "down_bias", "up", "up_bias")}
    teach(run, 1, 2)
    assert all(torch.equal(weight, learned[name]) for name, weight in weights(run).items())
    assert [cost.epochs for cost in run.state.costs] == [3, 0, 0]
    assert [cost.trainable_parameters > 0 for cost in run.state.costs] == [True, False, False]
    assert run.cell.protocol.schedule == "first"


def test_the_classifier_of_the_first_session_gives_cosines() -> None:
    head = CosineHead(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    with torch.no_grad():
        head.scale.fill_(2.0)
    torch.testing.assert_close(head(torch.tensor([[0.0, 5.0]])), torch.tensor([[1.6, 2.0]]))
