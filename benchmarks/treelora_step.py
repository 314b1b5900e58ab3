"""What TreeLoRA adds to a training step, against one of plain sequential LoRA training on glyph-vit.

Its plain form (one LoRA carried through all tasks), after 10 and after 100 past tasks, with the search on the
tree (`lcb`) and with the exhaustive one for contrast. The past tasks are not learned: random signatures are
planted as the state that the method's plugin would have kept. A step holds everything: running mean, search and
penalty; the tree, planted once a task, is not in it (`search_cost.py` times that). The row `control` is the
reference against itself: what it differs from 1 by is the machine, not the code. Read the column `ratio`, the
median over the blocks of (method / reference); at most 1.05 is wanted after 10 and after 100 tasks alike.

    python benchmarks/treelora_step.py --threads 2
"""

from __future__ import annotations

from typing import Any

import torch
from _learner import Standing, learner, random_task
from _paired import arguments, compare, show

from clbench.strategy import Plugin

METHOD, REFERENCE = "treelora", "seqlora"
PAST_TASKS = (10, 100)
SEARCHES = ("lcb", "exhaustive")
TARGET = 1.05
TASKS = max(PAST_TASKS) + 1
DISPLACEMENT = 0.01
"""Standard deviation of a number of A over a past task: the size of ten steps of Adam at the recipe's rate."""


def planted(state: dict[str, Any], past_tasks: int) -> dict[str, Any]:
    """The state of a plugin that has learned nothing yet, with that many random past tasks in it."""
    layers, numbers = state["past"].shape[1:]
    past = torch.randn(past_tasks, layers, numbers, generator=torch.Generator().manual_seed(0))
    return {**state, "past": DISPLACEMENT * past, "rows": [[task] for task in range(past_tasks)]}


def standing(method: str, past_tasks: int, steps: int, **settings: Any) -> Standing:
    """A strategy inside the task after `past_tasks` others; the head is equally large after any number of them."""
    strategy = learner(method, TASKS, **settings)
    for plugin in strategy.plugins:
        if isinstance(plugin, Plugin):
            plugin.load_state(planted(plugin.state(), past_tasks))
    strategy.stand(past_tasks, random_task(past_tasks, steps))
    return strategy


def main() -> None:
    chosen = arguments(__doc__)
    reference = standing(REFERENCE, max(PAST_TASKS), chosen.steps)
    contenders = {"control": (standing(REFERENCE, max(PAST_TASKS), chosen.steps).block, TARGET)}
    for search in SEARCHES:
        for past_tasks in PAST_TASKS:
            strategy = standing(METHOD, past_tasks, chosen.steps, decomposition="none", search=search)
            contenders[f"{search}, N = {past_tasks}"] = (strategy.block, TARGET)
    results = compare(reference.block, contenders, chosen.blocks)
    show(f"a step of {METHOD} after N past tasks against one of {REFERENCE}", results, chosen)


if __name__ == "__main__":
    main()
