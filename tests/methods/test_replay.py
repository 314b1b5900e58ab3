from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chi2

from clbench import tiny
from clbench.methods._buffer import Buffer
from clbench.methods.replay import Replay
from clbench.methods.seqlora import SeqLoRA
from clbench.strategy import Plugin
from clbench.stream import ImageSet

SETTINGS = tiny.tiny.settings["replay"]


def numbered(first: int, count: int, classes: int) -> ImageSet:
    """Images whose only pixel is their number."""
    numbers = torch.arange(first, first + count, dtype=torch.uint8)
    return ImageSet(numbers.reshape(-1, 1, 1, 1), first + torch.arange(count) % classes)


@pytest.mark.parametrize("policy", ["class", "reservoir"])
def test_every_sample_is_kept_equally_often(policy: Any) -> None:
    runs, size, samples = 2000, 6, 18
    tasks = [numbered(0, 6, 1), numbered(6, 12, 2)]  # three classes of six samples
    generator = torch.Generator().manual_seed(0)
    kept = torch.zeros(samples)
    for _ in range(runs):
        buffer = Buffer(size, policy)
        for task in tasks:
            buffer.add(task, generator)
        assert len(buffer) == size
        kept[buffer.inputs.flatten().long()] += 1
    share = size / samples
    statistic = ((kept - runs * share).square() / (runs * share * (1 - share))).sum().item()
    # `size` of `samples` without repetition: the counts add up to runs * size
    assert 1e-3 < chi2.sf(statistic * (samples - 1) / samples, samples - 1) < 1 - 1e-3


@pytest.mark.parametrize("policy", ["class", "reservoir"])
def test_never_above_its_size(policy: Any) -> None:
    buffer, generator = Buffer(7, policy), torch.Generator().manual_seed(0)
    for first in range(0, 40, 4):
        buffer.add(numbered(first, 4, 2), generator)
        assert len(buffer) <= 7
        assert len(set(buffer.inputs.flatten().tolist())) == len(buffer)
    assert buffer.passed == 40


def test_the_class_counts_differ_by_one_at_most(begin: Any, teach: Any) -> None:
    run = begin(Replay(**SETTINGS))
    for number in range(3):
        teach(run, number)
        buffer = run.plugins[0].buffer
        counts = torch.bincount(buffer.targets)
        assert len(counts) == 2 * (number + 1)
        assert counts.max() - counts.min() <= 1
        assert 18 < len(buffer) <= 24


def test_only_training_samples_of_past_tasks_enter(begin: Any, teach: Any) -> None:
    run = teach(begin(Replay(**SETTINGS)), 0, 1)
    buffer = run.plugins[0].buffer
    own = {
        (image.numpy().tobytes(), label)
        for task in tiny.stream(tasks=2)
        for image, label in zip(task.train.images, task.train.targets.tolist(), strict=True)
    }
    kept = [
        (image.numpy().tobytes(), label) for image, label in zip(buffer.inputs, buffer.targets.tolist(), strict=True)
    ]
    assert len(set(kept)) == 24
    assert set(kept) <= own


class Batches(Plugin):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[int], list[int], Any]] = []

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        tasks = strategy.mbatch[2].tolist()
        self.seen.append((strategy.mb_y.tolist(), tasks, strategy.allowed.expand(len(tasks), -1).clone()))


@pytest.mark.parametrize(("masking", "current"), [("seen", {0, 1, 2, 3}), ("current", {2, 3})])
def test_each_sample_sees_its_own_logits(masking: Any, current: set[int], begin: Any, teach: Any) -> None:
    run = begin(Replay(**SETTINGS, head_masking=masking))
    probe = Batches()
    run.strategy.plugins.append(probe)
    teach(run, 0)
    assert all(len(labels) == 16 and set(tasks) == {0} for labels, tasks, _ in probe.seen)  # nothing kept yet
    probe.seen.clear()
    teach(run, 1)
    assert len(probe.seen) == 12
    for labels, tasks, allowed in probe.seen:
        assert tasks == [1] * 16 + [-1] * 8
        assert set(labels[:16]) <= {2, 3}
        assert set(labels[16:]) <= {0, 1}
        for row in range(24):
            assert set(allowed[row].nonzero().flatten().tolist()) == (current if row < 16 else {0, 1, 2, 3})


def test_the_first_task_is_learned_as_without_a_buffer(begin: Any, teach: Any, weights: Any) -> None:
    mine = weights(teach(begin(Replay(**SETTINGS)), 0))
    plain = weights(teach(begin(SeqLoRA(head_masking="seen")), 0))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_forgets_less_than_without_a_buffer(begin: Any, teach: Any) -> None:
    kept = [
        sum(teach(begin(method), 0, 1, 2).state.scores[3][:2])
        for method in (Replay(**SETTINGS), SeqLoRA(head_masking="seen"))
    ]
    assert kept[0] > kept[1]
