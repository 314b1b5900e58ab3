"""Costs: what a lesson took, and whether it kept within what its method declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clbench.errors import LeakError
from clbench.meter import Reading
from clbench.method import Method
from clbench.plugin import Plugin
from clbench.record import TaskCosts
from clbench.strategy import Strategy

_MIB = 2**20


@dataclass(frozen=True)
class Kept:
    """What is held of past tasks, as the plugins tell."""

    samples: int = 0
    gradients: int = 0
    class_statistics: bool = False

    @classmethod
    def by(cls, plugins: Iterable[Plugin]) -> Kept:
        """All that `plugins` hold together."""
        told = list(plugins)
        return cls(
            sum(plugin.kept_samples() for plugin in told),
            sum(plugin.kept_gradients() for plugin in told),
            any(plugin.keeps_class_statistics() for plugin in told),
        )


def task_costs(
    strategy: Strategy,
    reading: Reading,
    *,
    train_samples: int,
    eval_seconds: float,
    eval_samples: int,
    recalled: tuple[float, float],
    stored: int,
) -> TaskCosts:
    """The costs of the lesson that `strategy` has just been through.

    `train_samples`: how many the lesson has; `stored`: bytes kept after it. `recalled`: by how many seconds learning
    and scoring, as they were measured, would have taken longer without recalled features. The first step is timed
    apart, so its samples are not among those of the timed steps. A schedule without steps looks at
    each sample once.
    """
    epochs, steps = strategy.clock.train_exp_epochs, strategy.clock.train_exp_iterations
    first = min(strategy.recipe.batch_size, train_samples)
    return TaskCosts(
        train_seconds=reading.seconds + recalled[0],
        warmup_seconds=reading.first_step_seconds,
        train_samples=max(0, epochs * train_samples - first) if steps else train_samples,
        steps=max(0, steps - 1),
        epochs=epochs,
        eval_seconds=eval_seconds + recalled[1],
        eval_samples=eval_samples,
        recalled_seconds=sum(recalled),
        peak_memory_mib=reading.peak_mib,
        trainable_parameters=sum(parameter.numel() for parameter in strategy.model.trainable()),
        stored_bytes=stored,
        flops_per_step=reading.flops,
        phase_seconds=reading.phases,
    )


def check_declared(method: Method, kept: Kept, costs: Sequence[TaskCosts]) -> None:
    """Raise LeakError where `method` keeps more than its `resources()` say. `costs`: of all lessons so far."""
    declared = method.resources()
    if kept.samples > declared.buffer_samples:
        raise LeakError(
            f"{method.name} keeps {kept.samples} samples and declared {declared.buffer_samples}; "
            "raise buffer_samples in its resources() or keep fewer."
        )
    if kept.gradients > declared.stored_gradients * len(costs):
        raise LeakError(
            f"{method.name} keeps {kept.gradients / len(costs):g} gradients a task and declared "
            f"{declared.stored_gradients}; raise stored_gradients in its resources() or keep fewer."
        )
    if kept.class_statistics and not declared.class_statistics:
        raise LeakError(
            f"{method.name} keeps class statistics and did not declare them; "
            "set class_statistics in its resources() or keep none."
        )
    growth = costs[-1].stored_bytes - costs[-2].stored_bytes if len(costs) > 1 else 0
    if growth > declared.stored_mib_per_task * _MIB:
        raise LeakError(
            f"{method.name} stored {growth / _MIB:.2f} MiB more after a task and declared "
            f"{declared.stored_mib_per_task:.2f}; raise stored_mib_per_task in its resources() or keep less."
        )
