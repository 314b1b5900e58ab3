from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from clbench import plan, runner, tiny
from clbench.adapters.lora import LoRALinear
from clbench.method import Method, Workbench
from clbench.methods._statistics import Kind
from clbench.methods.hidelora import HiDeLoRA
from clbench.strategy import Plugin
from clbench.stream import ImageSet, Stream, Task

MIB = 2**20


@cache
def whole(begin: Callable[..., runner.Run], teach: Callable[..., runner.Run]) -> runner.Run:
    """A run of all tasks with the defaults; shared by the tests that only look at it."""
    return teach(begin(HiDeLoRA()))


def adapters(run: runner.Run) -> list[LoRALinear]:
    return [module for module in run.model.modules() if isinstance(module, LoRALinear)]


def factors(run: runner.Run) -> list[Tensor]:
    return [factor.detach().clone() for factor in run.plugins[0].adapters.parameters()]


def kept(run: runner.Run) -> list[Tensor]:
    return [bank for layer in adapters(run) for bank in (layer.bank_down, layer.bank_up)]


@pytest.mark.parametrize("momentum", [0.1, 0.4])
def test_a_learned_pair_is_drawn_to_the_mean_of_the_past_ones(momentum: float, begin: Any, teach: Any) -> None:
    run = begin(HiDeLoRA(momentum=momentum))
    epochs: list[list[Tensor]] = []
    run.strategy.on_epoch = lambda epoch, of, loss: epochs.append(factors(run))
    expected: list[list[Tensor]] = []  # [tasks][factors]
    for task in range(3):
        teach(run, task)
        learned = epochs[-1]
        if task:
            means = [torch.stack(past).mean(0) for past in zip(*expected, strict=True)]
            learned = [(1 - momentum) * end + momentum * mean for end, mean in zip(learned, means, strict=True)]
        expected.append(learned)
        for bank, live, *tasks in zip(kept(run), factors(run), *expected, strict=True):
            torch.testing.assert_close(bank, torch.stack(tasks))
            assert torch.equal(bank[-1], live)  # where the next task starts


def test_a_task_starts_from_the_pair_of_the_last_one(begin: Any, teach: Any) -> None:
    run = teach(begin(HiDeLoRA()), 0, 1)
    last = [bank[-1] for bank in kept(run)]
    starts: list[list[Tensor]] = []
    run.strategy.on_epoch = lambda epoch, of, loss: starts.append(factors(run))
    run.strategy.learning_rate = 1e-12  # so small that after an epoch the weights are still those of the start
    teach(run, 2)
    for start, end in zip(starts[0], last, strict=True):
        torch.testing.assert_close(start, end, atol=1e-9, rtol=0)
        assert end.abs().max() > 1e-3


@pytest.mark.parametrize(("depth", "adapted"), [(1, 1), (5, 2)])
def test_k_and_v_of_the_first_blocks_carry_a_lora(depth: int, adapted: int, begin: Any) -> None:
    run = begin(HiDeLoRA(depth=depth))  # the tiny suite's recipe puts a LoRA on q and v
    assert [layer.name for layer in adapters(run)] == [f"block {block} k+v" for block in range(adapted)]
    blocks = {name.split(".")[2] for name, p in run.model.body.named_parameters(prefix="body") if p.requires_grad}
    assert blocks == {str(block) for block in range(adapted)}


class OneLoRA(Method):
    """seqlora's training where hidelora has its LoRA."""

    name = "onelora"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        bench.lora(5, ("k", "v"))
        return []


def test_without_its_terms_it_trains_as_seqlora_does_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    runs = [begin(HiDeLoRA(momentum=0, contrast_weight=0, clip=None)), begin(OneLoRA())]
    for run in runs:
        teach(run, 0)
    ours, theirs = (weights(run) for run in runs)
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    for run in runs:
        teach(run, 1, 2)
    ours, theirs = (weights(run) for run in runs)  # a loss over the task's own classes sees no aligned row
    assert {name for name, weight in theirs.items() if not torch.equal(ours[name], weight)} == {
        *("head.weight", "head.bias")
    }


@pytest.mark.parametrize("change", [{"contrast_weight": 0.0}, {"clip": None}, {"clip": 1e-3}])
def test_each_term_does_something(change: dict[str, Any], begin: Any, teach: Any) -> None:
    pairs = [factors(teach(begin(HiDeLoRA(**{"contrast_weight": 1.0, **terms})), 0)) for terms in ({}, change)]
    assert not any(torch.equal(first, second) for first, second in zip(*pairs, strict=True))


def test_learns_and_tells_how_often_the_task_was_inferred(begin: Any, teach: Any) -> None:
    run = whole(begin, teach)
    scores = run.state.scores[3]
    assert sum(scores) / 3 > 0.4  # guessing: one of six classes
    accuracies = run.facts()["router_accuracy"]
    assert accuracies[0] == 1
    assert len(accuracies) == 3
    assert accuracies[2] > 0.6  # guessing: one of three tasks
    found = run.outcomes()
    right = found["inferred_3"] == found["tasks"]
    assert accuracies[2] == pytest.approx(right.mean())


def test_answers_are_the_same_in_batches_of_one_task_and_of_all(begin: Any, teach: Any) -> None:
    run = whole(begin, teach)
    outcomes = run.outcomes()
    with run.vault.open():
        for number, task in enumerate(run.stream):
            answers = run.strategy.answer(task.test, torch.zeros(len(task.test), dtype=torch.int64))
            mine = outcomes["tasks"] == number
            assert answers.predictions.tolist() == outcomes["round_3"][mine].tolist()
            assert answers.tasks is not None
            assert answers.tasks.tolist() == outcomes["inferred_3"][mine].tolist()


def test_each_sample_is_answered_by_the_adapter_of_its_inferred_task(begin: Any, teach: Any) -> None:
    run = teach(begin(HiDeLoRA()))
    outcomes, layers = run.outcomes(), adapters(run)
    images = torch.cat([task.test.images for task in tiny.stream()])
    for task in range(3):
        with torch.no_grad():
            for layer in layers:
                layer.down.copy_(layer.bank_down[task])
                layer.up.copy_(layer.bank_up[task])
            answers = run.model(images).argmax(1)
        mine = outcomes["inferred_3"] == task
        assert mine.any()
        assert outcomes["round_3"][mine].tolist() == answers[mine].tolist()


@pytest.mark.parametrize(
    ("statistics", "numbers"),  # 16: the width
    [("centroids", 10 * (16 + 16)), ("variance", 16 + 16), ("covariance", 16 + 16 * 16)],
)
def test_what_is_kept_grows_by_a_lora_and_the_statistics(
    statistics: Kind, numbers: int, begin: Any, teach: Any
) -> None:
    method = HiDeLoRA(statistics=statistics)
    run = whole(begin, teach) if method == HiDeLoRA() else teach(begin(method))
    lora = 2 * (2 * 2 * 16 + 2 * 16 * 2) * 4  # blocks, parts x rank x width of A and of B, bytes
    slots = 10 if statistics == "centroids" else 1
    a_class = numbers * 4 + slots + 8  # with which slots are used, and which class it is
    sizes = [cost.stored_bytes for cost in run.state.costs]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == lora + 2 * 2 * a_class  # two classes, before and after
    assert sizes[2] - sizes[1] < method.resources().stored_mib_per_task * MIB


@pytest.mark.parametrize("statistics", ["centroids", "covariance"])
def test_a_large_model_keeps_what_is_declared(statistics: Kind) -> None:
    width, classes, slots = 768, 20, 10  # ViT-B/16, 5 blocks, rank 32
    a_class = slots * 2 * width if statistics == "centroids" else width + width**2
    numbers = 5 * 4 * 32 * width + 2 * classes * a_class
    assert numbers * 4 < HiDeLoRA(statistics=statistics).resources().stored_mib_per_task * MIB


def only(task: Task, label: int) -> Task:
    def part(examples: Any) -> ImageSet:
        return examples.subset((examples.targets == label).nonzero().flatten())

    return Task(str(label), part(task.train), part(task.validation), part(task.test), (label,))


def test_tasks_of_one_class(begin: Any, teach: Any) -> None:
    first, second, _ = tiny.stream()
    run = teach(begin(HiDeLoRA(), stream=Stream((only(first, 0), only(first, 1), second))))
    assert sum(run.state.scores[3]) / 3 > 0.5  # guessing: one of four classes
    assert run.facts()["router_accuracy"][2] > 0.6


def test_half_precision_keeps_full_statistics(monkeypatch: Any, begin: Any, teach: Any) -> None:
    recipe = tiny.tiny.recipe.model_copy(update={"precision": "bfloat16"})
    monkeypatch.setattr(tiny, "tiny", replace(tiny.tiny, recipe=recipe))
    run = teach(begin(HiDeLoRA()))
    plugin = run.plugins[0]
    parts = [*plugin.router.state_dict().values(), *plugin.tuned.state().values(), *plugin.untuned.state().values()]
    assert {part.dtype for part in parts} == {torch.float32, torch.int64, torch.bool}
    assert all(torch.isfinite(part).all() for part in parts)
    assert sum(run.state.scores[3]) / 3 > 0.4


def test_a_class_in_two_tasks_is_declined() -> None:
    tasks = tiny.stream().tasks
    stream = Stream((*tasks, replace(tasks[0], name="again")))
    cell = plan.cells(tiny.tiny, stream, [plan.Row(HiDeLoRA(), "", "")], [0], 0, "cpu")[0]
    record, _ = runner.run(cell, stream, device=torch.device("cpu"))
    assert record.status == "unsupported"
    assert record.reason == "it infers a sample's task from its class, and task 'again' has class 0 again"
