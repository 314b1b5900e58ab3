"""digits: scikit-learn's 1,797 real handwritten digits, 5 tasks x 2 classes.

Source: UCI ML hand-written digits data, test part (Alpaydin and Kaynak 1998), CC BY 4.0, shipped with
scikit-learn. Command: `clbench run quick`. Two minutes on two cores. Expected: joint near 99 %,
SeqLoRA near 63 % with masked and near 23 % with unmasked logits.
"""

from __future__ import annotations

from clbench.recipe import Recipe
from clbench.suite import Suite, later
from clbench.suites._contenders import CONTENDERS

quick = Suite(
    name="quick",
    make_stream=later("clbench.suites._digits:stream"),
    stream_name="digits",
    backbone="glyph-vit",
    recipe=Recipe(epochs=5, batch_size=32, learning_rate=1e-3),
    transform="8x8 bilinear to 24x24, padded to 32x32",
    normalisation="none",
    contenders=CONTENDERS,
    settings={"l2p": {"learning_rate": 0.03 * 32 / 256}},  # its paper scales the step size with the batch
)
