"""glyphs: letters of four scripts that the backbone has not seen, 10 tasks x 10 classes.

Source and licence: see `_letters`. Command: `clbench run glyphs`. Eight minutes a seed on two cores.
Expected: joint near 91 %, the nearest class mean near 81 %, SeqLoRA near 53 %.
"""

from __future__ import annotations

from clbench.recipe import Recipe
from clbench.suite import Contender, Suite, later
from clbench.suites._contenders import CONTENDERS

glyphs = Suite(
    name="glyphs",
    make_stream=later("clbench.suites._letters:stream"),
    stream_name="glyphs",
    backbone="glyph-vit",
    recipe=Recipe(epochs=5, batch_size=32, learning_rate=1e-3),
    transform="none",
    normalisation="none",
    contenders=(*CONTENDERS, Contender("treelora", {"decomposition": "none"}, label="plain")),
    settings={
        # Four samples a class for every method that keeps any.
        **{name: {"buffer_samples": 400} for name in ("replay", "gem", "agem", "derpp", "er-ace")},
        "l2p": {"learning_rate": 0.03 * 32 / 256},  # its paper scales the step size with the batch
    },
)
