from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from clbench import catalog, plan, runner, tiny
from clbench.costs import Kept, check_declared
from clbench.errors import LeakError
from clbench.method import Method, Resources, Workbench
from clbench.record import Record, TaskCosts
from clbench.strategy import Plugin, Strategy

CPU = torch.device("cpu")
TRAIN, TEST = 2 * tiny.TRAIN, 2 * tiny.TEST


@pytest.fixture(scope="module", autouse=True)
def _light_heap() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # the meter collects garbage before it measures
    yield
    gc.unfreeze()


def costs(name: str, batch_size: int = 16, plugins: Sequence[Any] = ()) -> list[TaskCosts]:
    suite = replace(tiny.tiny, recipe=tiny.tiny.recipe.model_copy(update={"batch_size": batch_size}))
    stream = suite.stream()
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, [name], {}), [0], 0, "cpu")
    running = runner.Run(cell, stream, CPU, runner.Silent())
    running.strategy.plugins[:0] = plugins
    for lesson in running.lessons():
        running.learn(*lesson)
    return running.state.costs


def counts(found: Sequence[TaskCosts]) -> list[tuple[int, int, int]]:
    return [(cost.train_samples, cost.steps, cost.epochs) for cost in found]


@pytest.mark.parametrize("batch", [16, 48, 64, 100])
def test_steps_and_samples_leave_the_first_step_out(batch: int) -> None:
    steps = 3 * -(-TRAIN // batch)
    assert counts(costs("seqlora", batch)) == [(3 * TRAIN - min(batch, TRAIN), steps - 1, 3)] * 3


def test_replayed_samples_do_not_count() -> None:
    assert counts(costs("replay")) == [(3 * TRAIN - 16, 11, 3)] * 3


def test_a_joint_run_counts_the_union() -> None:
    (cost,) = costs("joint")
    assert counts([cost]) == [(3 * 3 * TRAIN - 16, 3 * 12 - 1, 3)]
    assert cost.eval_samples == 3 * TEST


def test_a_schedule_without_steps_looks_at_each_sample_once() -> None:
    assert counts(costs("ncm")) == [(TRAIN, 0, 0)] * 3


def test_a_method_that_stops_early_is_charged_what_it_did() -> None:
    class Stopping(Plugin):
        def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
            if strategy.clock.train_exp_epochs == 1:
                strategy.stop_training()

    stopped = counts(costs("seqlora", plugins=[Stopping()]))
    assert {steps for _, steps, _ in stopped} == {3}
    assert {samples for samples, _, _ in stopped} == {TRAIN - 16}


def test_everything_is_measured() -> None:
    found = costs("seqlora")
    for index, cost in enumerate(found):
        assert cost.train_seconds > 0
        assert cost.warmup_seconds > 0
        assert cost.eval_seconds > 0
        assert cost.eval_samples == (index + 1) * TEST
        assert cost.flops_per_step is not None
    head, lora = 6 * 16 + 6, 2 * (2 * 2 * 16 + 2 * 16 * 2)
    assert {cost.trainable_parameters for cost in found} == {head + lora}
    assert {cost.stored_bytes for cost in found} == {4 * (head + lora)}


def test_named_parts_are_measured_task_by_task() -> None:
    class Searching(Plugin):
        def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
            with strategy.meter.phase("search"):
                time.sleep(0.002)

    found = costs("seqlora", plugins=[Searching()])
    for cost in found:
        assert list(cost.phase_seconds) == ["search"]
        assert 0.002 * cost.steps <= cost.phase_seconds["search"] < cost.train_seconds
    assert {str(cost.phase_seconds) for cost in costs("seqlora")} == {"{}"}


def test_what_grows_is_counted() -> None:
    first, second, third = (cost.stored_bytes for cost in costs("olora"))
    pair = 4 * 2 * (2 * 2 * 16 + 2 * 16 * 2)
    assert (second - first, third - second) == (pair, pair)


class Declaring(Method):
    """Declares what a test says, and does nothing."""

    name = "declaring"
    samples: int = 0
    gradients: int = 0
    statistics: bool = False
    mib: float = 0.0

    def resources(self) -> Resources:
        return Resources(
            buffer_samples=self.samples,
            stored_gradients=self.gradients,
            class_statistics=self.statistics,
            stored_mib_per_task=self.mib,
        )

    def plugins(self, bench: Workbench) -> Sequence[Any]:
        return []


def stored(*sizes: int) -> list[TaskCosts]:
    cost = Record.example().costs[0]
    return [cost.model_copy(update={"stored_bytes": size}) for size in sizes]


def test_samples_up_to_the_declared_number_may_be_kept() -> None:
    check_declared(Declaring(samples=5), Kept(samples=5), stored(0))
    with pytest.raises(LeakError, match="declaring keeps 6 samples and declared 5; raise buffer_samples"):
        check_declared(Declaring(samples=5), Kept(samples=6), stored(0))


def test_gradients_up_to_the_declared_number_of_each_task_may_be_kept() -> None:
    check_declared(Declaring(gradients=5), Kept(gradients=10), stored(0, 0))
    with pytest.raises(LeakError, match="keeps 6 gradients a task and declared 5; raise stored_grad"):
        check_declared(Declaring(gradients=5), Kept(gradients=6), stored(0))


def test_class_statistics_must_be_declared() -> None:
    check_declared(Declaring(statistics=True), Kept(class_statistics=True), stored(0))
    with pytest.raises(LeakError, match="declaring keeps class statistics and did not declare them; set class_stat"):
        check_declared(Declaring(), Kept(class_statistics=True), stored(0))


def test_what_is_kept_is_what_all_plugins_tell() -> None:
    class Telling(Plugin):
        def __init__(self, held: object = None) -> None:
            super().__init__()
            self.held = held

        def kept_samples(self) -> int:
            return 2

        def kept_gradients(self) -> int:
            return 3

    class Means:
        holds_class_statistics = True

    assert Kept.by([]) == Kept()
    assert Kept.by([Telling(), Telling()]) == Kept(samples=4, gradients=6)
    assert Kept.by([Telling(), Telling(Means())]).class_statistics


def test_bytes_may_grow_by_what_is_declared_a_task() -> None:
    check_declared(Declaring(), Kept(), stored(10**9))
    check_declared(Declaring(), Kept(), stored(10**9, 10))
    check_declared(Declaring(mib=0.5), Kept(), stored(10, 10 + 2**19))
    with pytest.raises(LeakError, match=r"stored 0\.50 MiB more after a task and declared 0\.50"):
        check_declared(Declaring(mib=0.5), Kept(), stored(0, 10, 11 + 2**19))
