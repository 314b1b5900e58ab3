from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clbench import tiny
from clbench.methods.ease import EASE, SubspaceHead, synthesised
from clbench.strategy import Plugin
from clbench.stream import ImageSet, Stream, Task


@torch.no_grad()
def views(run: Any, images: torch.Tensor) -> torch.Tensor:
    """Features `[subspaces, n, width]`, each by a pass of its own."""
    found = []
    for slot in [*run.plugins[0].views.earlier, "live"]:
        with run.plugins[0].adapters.using(slot):
            found.append(run.model.features(images))
    return torch.stack(found)


def means_of(run: Any, task: Task) -> torch.Tensor:
    """`[classes of the task, subspaces, width]`."""
    seen = views(run, task.train.images)
    return torch.stack([seen[:, task.train.targets == c].mean(1) for c in task.classes])


def test_a_synthesised_prototype_by_hand() -> None:
    old = torch.tensor([[2.0, 0.0]])
    new = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])  # cosines 1 and 0
    here = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    share = math.e / (math.e + 1)
    torch.testing.assert_close(synthesised(old, new, here), torch.tensor([[10 * share, 10 * (1 - share)]]))


def test_the_weights_of_the_new_classes_sum_to_one() -> None:
    draws = torch.Generator().manual_seed(0)
    old, new = torch.randn(4, 5, generator=draws), torch.randn(4, 3, 5, generator=draws)
    everywhere = torch.randn(5, generator=draws)
    torch.testing.assert_close(synthesised(old, new, everywhere.expand(3, 5)), everywhere.expand(4, 5))


def test_after_one_task_it_is_the_nearest_mean_of_adapted_features(begin: Any, teach: Any) -> None:
    run = teach(begin(EASE()), 0)
    task = tiny.stream().tasks[0]
    means = means_of(run, task)[:, 0]
    with torch.no_grad():
        asked = run.model.features(task.test.images)
        expected = F.cosine_similarity(asked[:, None], means[None], dim=-1)
        torch.testing.assert_close(run.model(task.test.images)[:, :2], expected, atol=1e-5, rtol=1e-5)
    assert run.outcomes()["round_1"][: len(asked)].tolist() == expected.argmax(1).tolist()


def test_prototypes_are_true_at_home_and_before_and_synthesised_after(begin: Any, teach: Any) -> None:
    run = teach(begin(EASE()))
    tasks, head = tiny.stream().tasks, run.model.head
    true = torch.cat([means_of(run, task) for task in tasks])  # the last adapters are still those of each task
    assert head.home.tolist() == [0, 0, 1, 1, 2, 2]
    for c in range(6):
        home = c // 2
        torch.testing.assert_close(head.prototypes[c, : home + 1], true[c, : home + 1], atol=1e-5, rtol=1e-4)
        for later in range(home + 1, 3):
            others = true[2 * later : 2 * later + 2]
            cosines = F.cosine_similarity(true[c, home][None], others[:, home], dim=-1)
            expected = cosines.softmax(0) @ others[:, later]
            torch.testing.assert_close(head.prototypes[c, later], expected, atol=1e-5, rtol=1e-4)


def test_logits_by_hand_and_the_answers_are_theirs(begin: Any, teach: Any) -> None:
    run = teach(begin(EASE(alpha=0.3)))
    head = run.model.head
    images = torch.cat([task.test.images for task in tiny.stream()])
    seen = views(run, images)
    expected = torch.zeros(len(images), 6)
    for c in range(6):
        cosines = torch.stack([F.cosine_similarity(seen[s], head.prototypes[c, s][None], dim=-1) for s in range(3)])
        home = c // 2
        expected[:, c] = cosines[home] + 0.3 / 2 * (cosines.sum(0) - cosines[home])
    assert run.outcomes()["round_3"].tolist() == expected.argmax(1).tolist()
    head.views._beside = seen[:2]
    torch.testing.assert_close(head(seen[2]), expected, atol=1e-5, rtol=1e-5)


def test_old_adapters_and_prototypes_stay_and_each_task_starts_afresh(begin: Any, teach: Any) -> None:
    run = teach(begin(EASE()), 0)
    layer = run.plugins[0].adapters.layers[0]
    first = torch.cat([part.detach().flatten() for part in layer.parts])
    prototypes = run.model.head.prototypes.clone()
    run.strategy.learning_rate = 1e-12
    teach(run, 1)
    assert torch.equal(layer.bank[0], first)
    assert torch.equal(run.model.head.prototypes[:2, :1], prototypes[:2])
    assert layer.up.abs().max() < 1e-9
    assert len(layer.bank) == 1


def test_passes_of_the_backbone_grow_at_test_only(begin: Any, teach: Any, monkeypatch: Any) -> None:
    run = begin(EASE())
    passes: list[int] = []
    encode = run.model.encode
    monkeypatch.setattr(run.model, "encode", lambda tokens: (passes.append(len(tokens)), encode(tokens))[1])
    steps: list[int] = []

    class Count(Plugin):
        def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            self.before = len(passes)

        def after_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            steps.append(len(passes) - self.before)

    run.strategy.plugins.append(Count())
    test = tiny.stream().tasks[0].test
    for task in range(3):
        teach(run, task)
        passes.clear()
        run.strategy.answer(test, torch.zeros(len(test), dtype=torch.int64))
        assert len(passes) == task + 1
    assert set(steps) == {1}


def test_no_old_data_is_touched(begin: Any, teach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = teach(begin(EASE()), 0)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("old data was read")

    monkeypatch.setattr(run.stream.tasks[0].train, "batch", refuse)
    teach(run, 1)
    assert run.model.head.home.tolist() == [0, 0, 1, 1, -1, -1]


def test_a_class_in_two_tasks_is_declined() -> None:
    data = ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
    task = Task("a", data, data, data, (0, 1))
    assert EASE().unsupported(tiny.stream()) is None
    assert "two tasks" in str(EASE().unsupported(Stream((task, task))))


@pytest.mark.parametrize("classes", [3])
def test_a_class_never_seen_has_no_say(classes: int, begin: Any) -> None:
    head = SubspaceHead(4, classes, 0.1, begin(EASE()).plugins[0].views)
    head.learn(torch.randn(1, 6, 4), torch.tensor([0, 0, 0, 2, 2, 2]))
    assert torch.equal(head(torch.randn(5, 4))[:, 1], torch.zeros(5))
