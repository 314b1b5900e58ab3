from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch.nn import functional as F

from clbench import tiny
from clbench.errors import BadValue
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


@pytest.mark.parametrize("policy", ["class", "task", "reservoir"])
def test_never_above_its_size(policy: Any) -> None:
    buffer, generator = Buffer(21, policy), torch.Generator().manual_seed(0)
    for first in range(0, 40, 4):
        buffer.add(numbered(first, 4, 2), generator)
        assert len(buffer) <= 21
        assert len(set(buffer.inputs.flatten().tolist())) == len(buffer)
    assert buffer.passed == 40


def test_a_buffer_smaller_than_its_classes_is_refused() -> None:
    buffer, generator = Buffer(3, "class"), torch.Generator().manual_seed(0)
    buffer.add(numbered(0, 4, 2), generator)
    with pytest.raises(BadValue, match="buffer_samples is 3, less than one for each of 4 classes; give at least"):
        buffer.add(numbered(10, 4, 2), generator)


def test_a_buffer_smaller_than_the_stream_is_refused_before_training() -> None:
    assert Replay(buffer_samples=6).unsupported(tiny.stream()) is None
    assert "5, less than one for each of 6 classes" in str(Replay(buffer_samples=5).unsupported(tiny.stream()))
    assert Replay(buffer_samples=5, policy="reservoir").unsupported(tiny.stream()) is None
    assert Replay(buffer_samples=3, policy="task").unsupported(tiny.stream()) is None
    assert "2, less than one for each of 3 tasks" in str(
        Replay(buffer_samples=2, policy="task").unsupported(tiny.stream())
    )
    assert "2, less than one for each of 3 tasks" in str(Replay(buffer_samples=2).unsupported(tiny.text_stream()))


def test_tasks_have_equal_quotas_however_many_classes_they_have() -> None:
    buffer, generator = Buffer(13, "task"), torch.Generator().manual_seed(0)
    for first, classes in ((0, 1), (20, 4), (40, 2)):
        buffer.add(numbered(first, 20, classes), generator)
    assert (buffer.inputs.flatten() // 20).bincount().tolist() == [4, 4, 4]  # one place is left over
    again = Buffer(13, "task")
    again.load_state(buffer.state())
    again.add(numbered(60, 20, 2), generator)
    assert (again.inputs.flatten() // 20).bincount().tolist() == [3, 3, 3, 3]


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


@pytest.mark.parametrize("nothing", [{"replay_batch": 0}, {"buffer_weight": 0.0}])
def test_nothing_joined_is_the_baseline_to_the_bit(nothing: Any, begin: Any, teach: Any, weights: Any) -> None:
    method = Replay(**{**SETTINGS, **nothing})
    mine, plain = teach(begin(method)), teach(begin(SeqLoRA(head_masking="seen")))
    assert method.resources().replay_batch == 0
    assert mine.state.scores == plain.state.scores
    own = weights(mine)
    assert all(torch.equal(own[name], weight) for name, weight in weights(plain).items())


def test_two_means_are_one_at_another_step_size(begin: Any, teach: Any, weights: Any) -> None:
    learned = []
    for weight, factor in ((None, 1.5), (0.5, 1.0)):  # 16 new samples and 8 kept ones: 3/2 (16 CE + 8 CE_buf) / 24
        run = begin(Replay(**SETTINGS, buffer_weight=weight), optimizer="sgd", learning_rate=0.1)
        teach(run, 0)
        run.strategy.learning_rate *= factor
        learned.append(weights(teach(run, 1)))
    for name, weight in learned[0].items():
        torch.testing.assert_close(weight, learned[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("masking", "current"), [("seen", [0, 1, 2, 3]), ("current", [2, 3])])
def test_the_kept_samples_have_their_own_mean(masking: Any, current: list[int], begin: Any, teach: Any) -> None:
    run = teach(begin(Replay(**SETTINGS, head_masking=masking, buffer_weight=3.0)), 0)
    plugin, found = run.plugins[0], []

    class Losses(Plugin):
        def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            new = F.cross_entropy(strategy.mb_output[:, current], strategy.mb_y - current[0])
            kept = F.cross_entropy(plugin.logits[:, :4], plugin.apart)
            found.append((strategy.loss.item(), (new + 3 * kept).item(), len(strategy.mb_y), len(plugin.apart)))

    run.strategy.plugins.append(Losses())
    teach(run, 1)
    assert len(found) == 12
    for loss, expected, new, kept in found:
        assert (new, kept) == (16, 8)
        assert loss == pytest.approx(expected, rel=1e-5)
