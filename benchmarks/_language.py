"""Language models to be timed: one that is shipped or drawn, or a real one where CLBENCH_TEST_DATA names its folder."""

from __future__ import annotations

import os
from pathlib import Path

from clbench import backbones
from clbench.backbones.causal import TINY_LM
from clbench.backbones.language import LanguageModel
from clbench.recipe import Recipe
from clbench.stream import Stream, Task
from clbench.text import Row, TextTask
from clbench.words import MONEY, NAMES, PLACES, Draws

REAL = "stories260k"


def models() -> dict[str, str]:
    """Name in the table -> name of the backbone."""
    found = {"tiny-lm's shape": TINY_LM.name}
    folder = Path(os.environ.get("CLBENCH_TEST_DATA", "")) / REAL
    if (folder / "config.json").is_file():
        found[REAL] = f"hf:{REAL}@{folder}"
    return found


def built(name: str) -> LanguageModel:
    """The backbone; random weights do for a listed one."""
    model = backbones.build(name, 0, 0, weights="default" if "@" in name else "random")
    assert isinstance(model, LanguageModel)
    return model


def lessons(model: LanguageModel, recipe: Recipe, rows: int, answer_tokens: int = 32) -> Task:
    """A task of so many generated questions of a hundred letters or so, as the model reads it."""
    draws = Draws("benchmark", 0)

    def row() -> Row:
        told = " ".join(
            f"{draws.pick(NAMES)} sees the {draws.pick(MONEY)} at the {draws.pick(PLACES)}."
            for _ in range(1 + draws.pick(range(4)))
        )
        return Row(f"What is seen?\n{told}\nAnswer:", draws.pick(PLACES))

    made = tuple(row() for _ in range(rows))
    task = TextTask(
        name="seen",
        kind="label",
        prefix="What is seen?\n",
        cue="\nAnswer:",
        answer_tokens=answer_tokens,
        train=made,
        validation=made[:1],
        test=made,
    )
    return model.read(Stream.of_text([task]), recipe).tasks[0]
