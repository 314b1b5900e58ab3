"""IncLoRA: a new LoRA for each task on top of the frozen sum of the past ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clbench.adapters.lora import LoRA
from clbench.method import Method, Resources, Workbench
from clbench.strategy import Plugin, Strategy


class _Increments(Plugin):
    def __init__(self, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.bench, self.lora = bench, lora

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Merge the last task's pairs into the effective weights and start fresh ones."""
        if strategy.task_index > 0:
            self.lora.retire(self.bench.generator("fresh pair", strategy.task_index))


class IncLoRA(Method):
    """W_t = W_0 + s Σ_i≤t B_i A_i; only B_t and A_t are trained, and nothing keeps them from the past ones.

    The baseline of Wang et al., Findings of EMNLP 2023: O-LoRA without its penalty. What is merged is kept
    as factors, `rank` rows and columns a task, because the frozen backbone is never written to; a step
    costs the same in every task. Not on a backbone of less than 32 bits, whose weights could not hold them: there
    the past pairs are applied beside it in one product, whose rank, and so the cost of a step, grows with the tasks.
    """

    name = "inclora"
    paper = "Wang et al. 2023 (IncLoRA)"

    def resources(self) -> Resources:
        """One pair of factors a task."""
        return Resources(stored_mib_per_task=32.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA that is merged at each new task."""
        return [_Increments(bench, bench.lora())]
