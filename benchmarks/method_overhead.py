"""What methods cost: a training step of task 10 against one of plain sequential LoRA training, memory, stored bytes.

Each method learns short tasks of random images on glyph-vit with the settings of the suite `glyphs`, in a process of
its own, so that its tree, its past adapters or its Fisher information are those of task 10 of 10; then steps of task
10 are timed, method and reference in turn, and so are steps of task 2, which shows whether a step grows with the tasks.
What happens once a task (a tree built, a Fisher estimated, statistics read) is not in a step; it is in the training
seconds of the tables. Read the columns `ratio`: the median over the blocks of (method / reference), both at task 10,
and `growth`: that of (task 10 / task 2); quartiles say how quiet the machine was. Peak memory is what learning task
10 takes on top of the process before the model was made; stored are the bytes kept for later tasks and for answering,
after ten tasks, and how many of them came with each of the last eight.

    python benchmarks/method_overhead.py --threads 1 --out results/tables
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _learner import Standing, learner, random_task
from _paired import compare, parser

from clbench import catalog, checkpoint
from clbench.meter import tensor_bytes
from clbench.origin import device_name
from clbench.strategy import Plugin
from clbench.suite import Contender

TASKS, EARLY = 10, 2
SHORT_STEPS = 3
REFERENCE = Contender("seqlora")
CONTROL = "seqlora, again"
TARGETS = {"treelora, plain": 1.05, "treelora": 1.10, "hidelora": 1.10, "olora": 1.10, "ewc": 1.10}
"""The ratio aimed at, where one is."""


def rows() -> dict[str, Contender]:
    """Every method for images that learns task after task, by what is printed; the reference is its own control."""
    found = {CONTROL: REFERENCE}
    for row in catalog.suite("cifar100-subset").contenders:
        label = f"{row.method}, {row.label}" if row.label else row.method
        if label != REFERENCE.method and catalog.method_type(row.method).cls.schedule in ("sequential", "first"):
            found[label] = row
    return found


def new(row: Contender) -> Standing:
    settings = {**catalog.suite("glyphs").settings.get(row.method, {}), **row.settings}
    return learner(row.method, TASKS, **settings)


def standing(row: Contender, tasks: int, steps: int) -> Standing:
    """A learner inside task `tasks`."""
    strategy = new(row)
    for index in range(tasks - 1):
        strategy.learn(index, random_task(index, SHORT_STEPS))
    strategy.stand(tasks - 1, random_task(tasks - 1, steps))
    return strategy


def kept(row: Contender, steps: int) -> dict[str, Any]:
    """Peak memory of learning the last task, MiB, and bytes stored after it and after an early one."""
    strategy, stored = new(row), []
    untouched = checkpoint.Untouched(strategy.model)
    once = catalog.method_type(row.method).cls.schedule == "first"
    peak = 0.0
    for index in range(TASKS):
        strategy.train_epochs = 0 if once and index else 1
        strategy.learn(index, random_task(index, steps if index + 1 == TASKS else SHORT_STEPS))
        peak = strategy.meter.stop().peak_mib
        states = [plugin.state() for plugin in strategy.plugins if isinstance(plugin, Plugin)]
        stored.append(tensor_bytes(checkpoint.tensors_of([checkpoint.learned(strategy.model, untouched), states])))
    return {
        "peak_mib": peak,
        "stored_bytes": stored[-1],
        "stored_bytes_per_task": (stored[-1] - stored[EARLY - 1]) / (TASKS - EARLY),
    }


def measured(label: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """One line of the table. Runs in a process of its own."""
    torch.set_num_threads(chosen.threads)
    row = rows()[label]
    facts: dict[str, Any] = {"method": label, **kept(row, chosen.steps)}
    if catalog.method_type(row.method).cls.schedule == "first":
        return facts  # it takes no step at these tasks
    reference = standing(REFERENCE, TASKS, chosen.steps)
    late, early = (standing(row, tasks, chosen.steps) for tasks in (TASKS, EARLY))
    results = compare(reference.block, {"late": (late.block, 1), "early": (early.block, 1)}, chosen.blocks)
    times = {result.name: np.array(result.mine) for result in results}
    ratios = times["late"] / np.array(results[0].reference)
    growths = times["late"] / times["early"]
    facts |= {"ms_step": 1000 * float(np.median(times["late"])) / chosen.steps}
    for name, values in (("ratio", ratios), ("growth", growths)):
        for what, percent in (("q1", 25), ("median", 50), ("q3", 75)):
            facts[f"{name}_{what}"] = float(np.percentile(values, percent))
    return facts


COLUMNS = ["ms_step", "ratio_q1", "ratio_median", "ratio_q3", "growth_q1", "growth_median", "growth_q3"]
COLUMNS += ["peak_mib", "stored_bytes", "stored_bytes_per_task"]


def shown(facts: dict[str, Any]) -> str:
    """A line for the terminal."""
    target = TARGETS.get(facts["method"])
    verdict = "" if target is None else f"  aim {target:.2f}, {'met' if facts['ratio_median'] <= target else 'missed'}"
    step = f"{'-':>8}{'no step at this task':^44}"
    if "ms_step" in facts:
        ratio, growth = (
            f"{facts[f'{name}_median']:>7.3f} ({facts[f'{name}_q1']:.3f}-{facts[f'{name}_q3']:.3f})"
            for name in ("ratio", "growth")
        )
        step = f"{facts['ms_step']:>8.2f}{ratio:>22}{growth:>22}"
    stored = f"{facts['stored_bytes'] / 1e6:>9.2f}{facts['stored_bytes_per_task'] / 1e3:>10.1f}"
    return f"{facts['method']:<18}{step}{facts['peak_mib']:>8.0f}{stored}{verdict}"


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("--methods", nargs="+", choices=rows(), default=list(rows()), metavar="NAME", help="only these")
    found.add_argument("--out", type=Path, help="also write method-costs.csv into this folder")
    return found.parse_args()


def main() -> None:
    chosen = arguments()
    print(f"steps of task {TASKS} against {REFERENCE.method}'s; {chosen.threads} threads, {chosen.blocks} blocks")
    heads = f"{'ms/step':>8}{'ratio':>22}{f'task {TASKS} / {EARLY}':>22}{'MiB':>8}{'MB kept':>9}{'kB/task':>10}"
    print(f"{'':<18}{heads}", flush=True)
    lines: list[dict[str, Any]] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as apart:
        for facts in apart.map(partial(measured, chosen=chosen), chosen.methods):
            print(shown(facts), flush=True)
            lines.append(facts)
    if chosen.out is not None:
        table = pd.DataFrame(lines).reindex(columns=["method", *COLUMNS])
        table = table.assign(
            device=device_name(torch.device("cpu")), threads=chosen.threads, blocks=chosen.blocks, steps=chosen.steps
        )
        chosen.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(chosen.out / "method-costs.csv", index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    main()
