"""Per-task LoRA: one LoRA for each task, chosen at test by the true task; an upper reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from clbench.adapters.lora import LoRA
from clbench.method import Method, Resources, Workbench
from clbench.strategy import Plugin, Strategy


class _Oracle(Plugin):
    def __init__(self, method: PerTask, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.method, self.bench, self.lora = method, bench, lora
        self.classes = torch.zeros(0, bench.model.classes, dtype=torch.bool, device=bench.device)
        """Which classes each task taught has, `[tasks, classes]`."""

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """A fresh pair; nothing of the past takes part."""
        if strategy.task_index > 0:
            self.lora.restart(self.bench.generator("fresh pair", strategy.task_index))

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the task's LoRA and its classes."""
        self.lora.keep()
        own = torch.zeros_like(strategy.allowed)
        own[strategy.task_classes] = True
        self.classes = torch.cat([self.classes, own[None]])

    def _tasks(self, strategy: Strategy) -> Tensor:
        """The true task of each sample; the last for one that has not been taught yet."""
        tasks: Tensor = strategy.mb_task_id
        return tasks.clamp(max=len(self.classes) - 1)

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Each sample uses the LoRA of its true task."""
        self.lora.choose(self._tasks(strategy))

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """And, where asked for, only its task's classes; then back to the live LoRA."""
        self.lora.choose(None)
        if self.method.own_classes and not self.classes.all():  # where answers are open, every token is every task's
            others = ~self.classes[self._tasks(strategy)]
            strategy.mb_output = strategy.mb_output.masked_fill(others, float("-inf"))

    def state(self) -> dict[str, Any]:
        """The tasks' classes; their LoRAs are the model's."""
        return {"classes": self.classes}

    def load_state(self, state: dict[str, Any]) -> None:
        """The tasks' classes."""
        self.classes = state["classes"].to(self.classes.device)


class PerTask(Method):
    """A LoRA (Hu et al., ICLR 2022) of its own for each task, and an oracle that tells the task at test.

    With `own_classes` and the loss over the current classes nothing that answers a task moves after it, so
    nothing is forgotten, and nothing is transferred. Open answers have no classes, and each is written by the
    LoRA of its true task. It is told what the other methods must find out:
    an upper reference, not a competitor.
    """

    name = "pertask"
    paper = "Hu et al. 2022 (LoRA)"

    own_classes: bool = Field(default=True, description="answer among the true task's classes only, not among all seen")

    def resources(self) -> Resources:
        """One LoRA a task, and the true task at test."""
        return Resources(task_id_at_test=True, stored_mib_per_task=32.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA that is kept for each task."""
        return [_Oracle(self, bench, bench.lora())]
