"""What the strategy costs: a training step through it against a bare PyTorch loop doing the same mathematics.

Both train glyph-vit with a LoRA on the same 10-class task of random images: the same batches in the
same order, the same mask, the same fused Adam. Their weights must be equal to the bit at the end, so
that a loop that does less cannot pass for a faster one. Read the column `ratio`: the median over the
blocks of (strategy / bare loop); quartiles and extremes say how quiet the machine was.

    python benchmarks/step_overhead.py --threads 2
"""

from __future__ import annotations

import torch
from _learner import CLASSES, CPU, RECIPE, learner, random_task
from _paired import arguments, compare, show

from clbench.loader import Loader
from clbench.seeding import derive
from clbench.stream import Examples

METHOD = "seqlora"


class Bare:
    """The same in plain PyTorch."""

    def __init__(self, examples: Examples) -> None:
        self.model = learner(METHOD, tasks=1).model.train()
        self.optimizer = torch.optim.Adam(self.model.trainable(), lr=RECIPE.learning_rate, fused=True)
        tasks = torch.zeros(len(examples), dtype=torch.int64)
        self.loader = Loader(examples, tasks, RECIPE.batch_size, CPU, derive(0, "order", 0))
        self.forbidden = torch.zeros(CLASSES, dtype=torch.bool)

    def block(self) -> None:
        """One epoch."""
        total = torch.zeros(())
        for inputs, targets, _ in self.loader:
            self.optimizer.zero_grad()
            logits = self.model(inputs).masked_fill(self.forbidden, float("-inf"))
            loss = torch.nn.functional.cross_entropy(logits, targets)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        float(total)
        self.loader.epoch += 1


def main() -> None:
    chosen = arguments(__doc__)
    task = random_task(0, chosen.steps)
    strategy, bare = learner(METHOD, tasks=1), Bare(task.train)
    strategy.stand(0, task)
    for _ in range(2):
        strategy.block()
        bare.block()
    for ours, theirs in zip(strategy.model.trainable(), bare.model.trainable(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    results = compare(bare.block, {"strategy": (strategy.block, 1.05)}, chosen.blocks)
    show("a step through the strategy against a bare loop", results, chosen)


if __name__ == "__main__":
    main()
