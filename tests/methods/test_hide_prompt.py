from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clbench import plan, runner, tiny
from clbench.adapters.prefix import TaskPrefixes
from clbench.method import Method, Workbench
from clbench.methods.hide_prompt import HiDePrompt
from clbench.strategy import Plugin
from clbench.stream import Stream

MIB = 2**20
FEW = {"length": 1, "epochs": 2}


@cache
def whole(begin: Callable[..., runner.Run], teach: Callable[..., runner.Run]) -> runner.Run:
    """A run of all tasks; shared by the tests that only look at it."""
    return teach(begin(HiDePrompt(**tiny.tiny.settings["hide-prompt"])))


def prompts(run: runner.Run) -> Any:
    return run.model.prefixer.prompts


class Used(Plugin):
    """Notes the prefix of each training step, as blocks x keys, values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        module = strategy.model.prefixer.prompts
        self.seen.append((module.live.detach().clone(), module(1)[0].detach().clone()))


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_each_pass_and_what_is_kept_mix_in_the_mean_of_the_past(momentum: float, begin: Any, teach: Any) -> None:
    run, probe = begin(HiDePrompt(**FEW, momentum=momentum)), Used()
    run.strategy.plugins.append(probe)
    ends: list[Tensor] = []
    run.strategy.on_epoch = lambda epoch, of, loss: ends.append(prompts(run).live.detach().clone())
    for task in range(3):
        probe.seen.clear()
        before = prompts(run).live.detach().clone()
        teach(run, task)
        past = prompts(run).bank[:task]
        if task:
            torch.testing.assert_close(before, past[-1])  # a task starts from the last one's
        for live, used in probe.seen:
            mixed = (1 - momentum) * live + momentum * past.mean(0) if task and momentum else live
            torch.testing.assert_close(used, mixed)
        mixed = (1 - momentum) * ends[-1] + momentum * past.mean(0) if task else ends[-1]
        torch.testing.assert_close(prompts(run).bank[task], mixed)
        assert prompts(run).towards is None


class OnePrefix(Method):
    """The prefixes alone, trained through all tasks."""

    name = "oneprefix"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        bench.model.prefixer = TaskPrefixes((0, 1), 1, 16, bench.generator("prefix"))
        return []


def test_without_its_terms_the_prefixes_train_alone_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    runs = [begin(HiDePrompt(**FEW, momentum=0, contrast_weight=0, clip=None)), begin(OnePrefix(epochs=2))]
    for run in runs:
        teach(run, 0)
    ours, theirs = (weights(run) for run in runs)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    for run in runs:
        teach(run, 1, 2)
    ours, theirs = (weights(run) for run in runs)  # nor does the alignment of the head touch them
    assert {name for name, weight in theirs.items() if not torch.equal(ours[name], weight)} == {
        *("head.weight", "head.bias")
    }


def test_learns_and_each_sample_is_answered_behind_the_prefix_of_its_inferred_task(begin: Any, teach: Any) -> None:
    run = whole(begin, teach)
    assert sum(run.state.scores[3]) / 3 > 0.4  # guessing: one of six classes
    accuracies = run.facts()["router_accuracy"]
    assert accuracies[0] == 1
    assert accuracies[2] > 0.6  # guessing: one of three tasks
    outcomes, module = run.outcomes(), prompts(run)
    images = torch.cat([task.test.images for task in tiny.stream()])
    live = module.live.detach().clone()
    for task in range(3):
        with torch.no_grad():
            module.live.copy_(module.bank[task])
            answers = run.model(images).argmax(1)
            module.live.copy_(live)
        mine = outcomes["inferred_3"] == task
        assert mine.any()
        assert outcomes["round_3"][mine].tolist() == answers[mine].tolist()


def test_the_router_never_sees_a_prefix(begin: Any, teach: Any) -> None:
    run = teach(begin(HiDePrompt(**FEW)))
    inferred = run.outcomes()["inferred_3"].copy()
    nn.init.normal_(prompts(run).live.data, std=50.0, generator=torch.Generator().manual_seed(0))
    prompts(run).bank.mul_(-30).add_(7)
    again = run.exam.score(2)
    assert again.facts["inferred"].tolist() == inferred.tolist()
    assert again.facts["round"].tolist() != run.outcomes()["round_3"].tolist()


@pytest.mark.parametrize(("depth", "blocks"), [(1, 1), (5, 2)])
def test_the_first_blocks_have_prefixes(depth: int, blocks: int, begin: Any) -> None:
    run = begin(HiDePrompt(depth=depth))
    assert run.model.prefixer.blocks == tuple(range(blocks))
    assert prompts(run).live.shape == (blocks, 2, 5, 16)


def test_the_ports_deviation_is_off_unless_asked_for(begin: Any) -> None:
    for compat in (False, True):
        method = HiDePrompt(compat_reshape=compat)
        assert begin(method).model.prefixer.reshaped is compat
        assert method.compat() == (("reshape",) if compat else ())


def test_what_is_kept_grows_by_a_prefix_and_the_statistics(begin: Any, teach: Any) -> None:
    sizes = [cost.stored_bytes for cost in whole(begin, teach).state.costs]
    prefix, a_class = 2 * 2 * 1 * 16 * 4, 10 * (16 + 16) * 4 + 10 + 8
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == prefix + 2 * 2 * a_class
    large = 5 * 2 * 20 * 768 + 2 * 20 * 10 * 2 * 768  # ViT-B/16, 20 classes a task
    assert large * 4 < HiDePrompt().resources().stored_mib_per_task * MIB


def test_a_class_in_two_tasks_is_declined() -> None:
    tasks = tiny.stream().tasks
    stream = Stream((*tasks, tasks[0]))
    cell = plan.cells(tiny.tiny, stream, [plan.Row(HiDePrompt(), "", "")], [0], 0, "cpu")[0]
    record, _ = runner.run(cell, stream, device=torch.device("cpu"))
    assert record.status == "unsupported"
