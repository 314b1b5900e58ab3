"""What O-LoRA's penalty costs: a step of a late task with it against the same step without.

A byte-reading Llama of the shape of tiny-lm (random weights) with rank-8 LoRAs on q and v learns short tasks of
random text; at task 2 and at task 8 of 8 the step is timed with penalty_weight 0.5 and 0, on both sides of the
penalty. All else is the same: the past pairs, the batches, the optimiser. The row `control` is the reference against
itself: what it differs from 1 by is the machine. Read the column `ratio`, the median over the blocks of (with /
without); at most 1.10 is wanted at task 8.

    python benchmarks/olora_penalty.py --threads 2
"""

from __future__ import annotations

import random
import string
from typing import Any

from _learner import CPU, Standing
from _paired import arguments, compare, show

from clbench import backbones, catalog
from clbench.meter import Meter
from clbench.method import Workbench
from clbench.recipe import Recipe
from clbench.stream import Stream, Task
from clbench.text import Row, TextTask

METHOD, BACKBONE = "olora", "tiny-lm"
TASKS = 8
TARGET = 1.10
RECIPE = Recipe(epochs=1, batch_size=16, learning_rate=1e-3, lora_rank=8, lora_alpha=32)
QUESTION, ANSWER = 100, 20
"""Letters of each row."""


def random_text(index: int, steps: int) -> TextTask:
    """A task of random letters, as many rows as `steps` batches hold."""
    draws = random.Random(index)

    def letters(count: int) -> str:
        return "".join(draws.choices(string.ascii_lowercase, k=count))

    rows = tuple(Row(letters(QUESTION), letters(ANSWER)) for _ in range(steps * RECIPE.batch_size))
    return TextTask(
        name=str(index), kind="exact", prefix="", cue="", answer_tokens=ANSWER, train=rows, validation=rows, test=rows
    )


def at_task(number: int, steps: int, **settings: Any) -> Standing:
    """A strategy inside task `number`, from 1, after short ones."""
    model = backbones.build(BACKBONE, 0, 0, weights="random")
    written = [random_text(index, 1) for index in range(number - 1)] + [random_text(number - 1, steps)]
    tasks: tuple[Task, ...] = model.read(Stream.of_text(written), RECIPE).tasks
    answer = catalog.method_type(METHOD).cls(**settings)
    plugins = answer.plugins(Workbench(model, RECIPE, CPU, TASKS, 0))
    strategy = Standing(model=model, recipe=RECIPE, plugins=plugins, meter=Meter(CPU), device=CPU, seed=0)
    for index, task in enumerate(tasks[:-1]):
        strategy.learn(index, task)
    strategy.stand(number - 1, tasks[-1])
    return strategy


def main() -> None:
    chosen = arguments(__doc__)
    reference = at_task(TASKS, chosen.steps, penalty_weight=0)
    contenders = {"control": (at_task(TASKS, chosen.steps, penalty_weight=0).block, TARGET)}
    for number, side in ((2, "A"), (TASKS, "A"), (TASKS, "B")):
        contenders[f"side {side}, task {number}"] = (at_task(number, chosen.steps, side=side).block, TARGET)
    results = compare(reference.block, contenders, chosen.blocks)
    show(f"a step of {METHOD} with its penalty against one at task {TASKS} without", results, chosen)


if __name__ == "__main__":
    main()
