"""Costs: what a lesson took, and whether it kept within what its method declares."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.errors import LeakError
from clbench.meter import Reading
from clbench.method import Method
from clbench.record import TaskCosts
from clbench.strategy import Strategy

_MIB = 2**20


def task_costs(
    strategy: Strategy, reading: Reading, *, train_samples: int, eval_seconds: float, eval_samples: int, stored: int
) -> TaskCosts:
    """The costs of the lesson that `strategy` has just been through.

    `train_samples`: how many the lesson has; `stored`: bytes kept after it. The first step is timed
    apart, so its samples are not among those of the timed steps. A schedule without steps looks at
    each sample once.
    """
    epochs, steps = strategy.clock.train_exp_epochs, strategy.clock.train_exp_iterations
    first = min(strategy.recipe.batch_size, train_samples)
    return TaskCosts(
        train_seconds=reading.seconds,
        warmup_seconds=reading.first_step_seconds,
        train_samples=max(0, epochs * train_samples - first) if steps else train_samples,
        steps=max(0, steps - 1),
        epochs=epochs,
        eval_seconds=eval_seconds,
        eval_samples=eval_samples,
        peak_memory_mib=reading.peak_mib,
        trainable_parameters=sum(parameter.numel() for parameter in strategy.model.trainable()),
        stored_bytes=stored,
        flops_per_step=reading.flops,
        phase_seconds=reading.phases,
    )


def check_declared(method: Method, kept_samples: int, costs: Sequence[TaskCosts]) -> None:
    """Raise LeakError where `method` keeps more than its `resources()` say. `costs`: of all lessons so far."""
    declared = method.resources()
    if kept_samples > declared.buffer_samples:
        raise LeakError(
            f"{method.name} keeps {kept_samples} samples and declared {declared.buffer_samples}; "
            "raise buffer_samples in its resources() or keep fewer."
        )
    growth = costs[-1].stored_bytes - costs[-2].stored_bytes if len(costs) > 1 else 0
    if growth > declared.stored_mib_per_task * _MIB:
        raise LeakError(
            f"{method.name} stored {growth / _MIB:.2f} MiB more after a task and declared "
            f"{declared.stored_mib_per_task:.2f}; raise stored_mib_per_task in its resources() or keep less."
        )
