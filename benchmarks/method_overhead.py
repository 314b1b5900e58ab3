"""What methods cost: a training step of task 10 against one of plain sequential LoRA training.

Each method learns nine very short tasks of random images on glyph-vit, so that its tree, its past
adapters or its Fisher information are those of task 10 of 10; then steps of task 10 are timed, method
and reference in turn. What happens once a task (a tree built, a Fisher estimated) is not in a step and
not in these numbers; it is in the table's training seconds. Read the column `ratio`: the median over
the blocks of (method / reference); quartiles and extremes say how quiet the machine was.

    python benchmarks/method_overhead.py --threads 2
"""

from __future__ import annotations

from typing import Any

from _learner import Standing, learner, random_task
from _paired import arguments, compare, show

TASKS = 10
SHORT_STEPS = 3
REFERENCE = "seqlora"
CONTENDERS: dict[str, tuple[str, dict[str, Any], float]] = {
    "treelora, plain": ("treelora", {"decomposition": "none"}, 1.05),
    "treelora": ("treelora", {}, 1.10),
    "hidelora": ("hidelora", {}, 1.10),
    "olora": ("olora", {}, 1.10),
    "ewc": ("ewc", {}, 1.10),
}
"""What is printed, method, settings and the ratio aimed at."""


def at_last_task(method: str, steps: int, settings: dict[str, Any]) -> Standing:
    strategy = learner(method, TASKS, **settings)
    for index in range(TASKS - 1):
        strategy.learn(index, random_task(index, SHORT_STEPS))
    strategy.stand(TASKS - 1, random_task(TASKS - 1, steps))
    return strategy


def main() -> None:
    chosen = arguments(__doc__)
    reference = at_last_task(REFERENCE, chosen.steps, {})
    contenders = {
        shown: (at_last_task(method, chosen.steps, settings).block, target)
        for shown, (method, settings, target) in CONTENDERS.items()
    }
    results = compare(reference.block, contenders, chosen.blocks)
    show(f"a step of task {TASKS} against one of {REFERENCE}", results, chosen)


if __name__ == "__main__":
    main()
