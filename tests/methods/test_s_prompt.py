from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench import tiny
from clbench.methods.s_prompt import SPrompt, TaskHead, centroids
from clbench.stream import ImageSet, Stream, Union


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everything(stream: Stream) -> Tensor:
    union = Union([task.test for task in stream])
    return union.batch(torch.arange(len(union)), torch.device("cpu"))[0]


def test_centroids_are_the_means_of_the_clusters() -> None:
    middles = torch.tensor([[0.0, 10.0], [10.0, 0.0], [0.0, -10.0]])
    rows = middles.repeat(6, 1) + 0.1 * numbers(0, 18, 2)
    found = centroids(rows, 3, seed=2**40)
    expected = torch.stack([rows[i::3].mean(0) for i in range(3)])
    torch.testing.assert_close(found[found.sum(1).argsort()], expected[expected.sum(1).argsort()])
    assert len(centroids(rows[:2], 5, seed=0)) == 2
    assert len(centroids(rows[:1].expand(9, 2), 5, seed=0)) == 5  # no warning for equal rows


def test_each_sample_is_classified_by_its_own_task() -> None:
    head = TaskHead(nn.Linear(4, 5))
    kept = []
    for task, classes in enumerate(([0, 1, 2], [2, 3])):
        with torch.no_grad():
            head.live.weight.copy_(numbers(task, 5, 4))
        head.keep(torch.tensor(classes))
        kept.append((head.live.weight.detach().clone(), head.live.bias.detach().clone(), classes))
    features, slots = numbers(5, 6, 4), torch.tensor([1, 0, 0, 1, 1, 0])
    assert torch.equal(head(features), head.live(features))
    head.slots = slots
    for row, logits, slot in zip(features, head(features), slots.tolist(), strict=True):
        weight, bias, classes = kept[slot]
        known = [c in classes for c in range(5)]
        assert torch.isfinite(logits).tolist() == known
        torch.testing.assert_close(logits[known], (weight @ row + bias)[known])


def test_a_task_leaves_the_parts_of_the_others_alone_and_begins_anew(begin: Any, teach: Any) -> None:
    run = teach(begin(SPrompt(length=2)), 0)
    prompts, head = run.model.prefixer.prompts, run.model.head
    kept = [part.clone() for part in (prompts.bank, head.kept_weight, run.plugins[0].centroids)]
    assert torch.equal(prompts.bank[0], prompts.live)
    run.strategy.learning_rate = 1e-12
    teach(run, 1)
    torch.testing.assert_close(head.live.weight.detach(), head.start["weight"], atol=1e-9, rtol=0)
    assert (prompts.bank[1] - prompts.bank[0]).abs().max() > 0.1
    for after, before in zip((prompts.bank, head.kept_weight, run.plugins[0].centroids), kept, strict=True):
        assert torch.equal(after[: len(before)], before)
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert trained == {"prefixer.prompts.live", "head.live.weight", "head.live.bias"}


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("l2", 2)])
def test_the_nearest_centroid_decides_prompt_and_classes(distance: Any, power: int, begin: Any, teach: Any) -> None:
    run = teach(begin(SPrompt(length=2, distance=distance)))
    plugin, found, inputs = run.plugins[0], run.outcomes(), everything(tiny.stream())
    with torch.no_grad():
        features = F.normalize(run.model.query(inputs))
    assert plugin.task_of.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    distances = (features[:, None] - plugin.centroids[None]).abs().pow(power).sum(2)
    expected = plugin.task_of[distances.argmin(1)]
    assert found["inferred_3"].tolist() == expected.tolist()
    assert (found["round_3"] // 2).tolist() == expected.tolist()  # two classes a task
    assert run.facts()["router_accuracy"][2] > 0.6
    for task in range(3):
        mine = expected == task
        with torch.no_grad():
            run.model.prefixer.prompts.live.copy_(run.model.prefixer.prompts.bank[task])
            run.model.head.live.weight.copy_(run.model.head.kept_weight[task])
            run.model.head.live.bias.copy_(run.model.head.kept_bias[task])
            answers = 2 * task + run.model(inputs)[:, 2 * task : 2 * task + 2].argmax(1)
        assert found["round_3"][mine].tolist() == answers[mine].tolist()


def test_classes_that_come_again_are_taught_to_a_classifier_of_their_own(begin: Any, teach: Any) -> None:
    def inverted(part: Any) -> ImageSet:
        return ImageSet(255 - part.images, part.targets)

    first, _, _ = tiny.stream()
    parts = {name: inverted(getattr(first, name)) for name in ("train", "validation", "test")}
    run = teach(begin(SPrompt(length=2, epochs=10), stream=Stream((first, replace(first, name="inverted", **parts)))))
    assert run.model.head.taught.tolist() == [[True, True]] * 2
    assert not torch.equal(*run.model.head.kept_weight)
    assert run.facts()["router_accuracy"][1] > 0.9
    assert min(run.state.scores[2]) > 0.8
