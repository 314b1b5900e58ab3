"""TreeLoRA's ablations on letters: which part does what, how deep, how many epochs, how sensitive.

Source and licence: see `_letters`. Command: `clbench run treelora-ablation` and likewise -depth, -epochs
and -sensitivity; about a minute a row and seed on two cores. They repeat tables 5, 4, 2 and 6 of
Qian et al., ICML 2025 (arXiv 2506.10355), on the embedded letters. The row `penalty=none` is hidelora.
"""

from __future__ import annotations

from clbench.recipe import Recipe
from clbench.suite import Contender, Suite, later


def _rows(field: str, *values: float | str) -> tuple[Contender, ...]:
    return tuple(Contender("treelora", {field: value}) for value in values)


def _suite(name: str, *contenders: Contender) -> Suite:
    return Suite(
        name=f"treelora-{name}",
        make_stream=later("clbench.suites._letters:stream"),
        stream_name="glyphs",
        backbone="glyph-vit",
        recipe=Recipe(epochs=5, batch_size=32, learning_rate=1e-3),
        transform="none",
        normalisation="none",
        contenders=(Contender("treelora"), *contenders),
    )


ablation = _suite(
    "ablation",
    *_rows("penalty", "none", "alignment"),
    *_rows("search", "random", "greedy", "exhaustive"),
    *_rows("signature", "gradient"),
    *_rows("split", "principal"),
    *_rows("exploration", 0.02, 2.0),
    Contender("treelora", {"exploration_unit": "std", "exploration": 1.0}),
)
depth = _suite("depth", *_rows("depth", 1, 3, 6))
epochs = _suite("epochs", *_rows("epochs", 1, 2, 10))
sensitivity = _suite(
    "sensitivity",
    *_rows("penalty_weight", 0.01, 1.0, 5.0),
    *_rows("learning_rate", 5e-4, 2e-3),
)
