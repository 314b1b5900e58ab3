"""Recipe: how any method is trained on a suite: passes, batch, optimiser, adapter size."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from clbench.errors import BadValue

FIRST = (
    *("epochs", "batch_size", "eval_batch_size", "optimizer", "learning_rate", "weight_decay", "momentum"),
    *("lora_rank", "lora_alpha", "lora_sites", "precision"),
)
"""The fields that every record's recipe has."""


class Recipe(BaseModel):
    """The settings that a suite gives to all its methods alike; `--set recipe.FIELD=VALUE` changes one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=5, ge=1, description="passes over a task's training data")
    batch_size: int = Field(default=32, ge=1, description="samples in a training batch")
    eval_batch_size: int = Field(default=256, ge=1, description="samples in a scoring batch")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(default="adam", description="built anew for each task")
    learning_rate: float = Field(default=1e-3, gt=0, description="the schedule's highest step size")
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    lora_rank: int = Field(default=8, ge=1, description="rank of every LoRA")
    lora_alpha: float = Field(default=8.0, gt=0, description="a LoRA's update is scaled by alpha / rank")
    lora_sites: tuple[str, ...] = Field(default=("q", "v"), description="projections that get a LoRA: q, k, v")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the forward pass")
    task_epochs: tuple[int, ...] = Field(default=(), description="passes over each task; empty: 'epochs' for all")
    micro_batch: int | None = Field(default=None, ge=1, description="samples in one pass; a batch's gradients add up")
    schedule: Literal["constant", "cosine", "coda", "steps"] = Field(
        default="constant",
        description="of the step size within a task: cosine to 0, CODA's by epoch, tenths at 'steps'",
    )
    steps: tuple[int, ...] = Field(default=(), description="epochs after which the schedule 'steps' divides by ten")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of adam and adamw")
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="of what enters a LoRA while learning")
    prompt_tokens: int = Field(default=1024, ge=8, description="longest question, for text")
    answer_tokens: int = Field(default=512, ge=1, description="longest answer learned or given, for text")
    truncation: Literal["body", "left"] = Field(default="body", description="what a long question loses, for text")
    temperature: float = Field(default=0.0, ge=0, description="of sampled answers; 0: the best token each time")
    carry_optimizer: bool = Field(default=False, description="one optimiser for the whole stream")
    checkpointing: bool = Field(default=False, description="compute activations again instead of keeping them")
    eval_samples: int | None = Field(default=None, ge=1, description="test examples a task before the last round")

    @field_validator("task_epochs", "steps")
    @classmethod
    def _counts(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(number < 1 for number in value):
            raise ValueError("takes whole numbers from 1")
        return value

    @property
    def mean_epochs(self) -> int:
        """Passes over a task; where they differ from task to task their mean, rounded."""
        return round(sum(self.task_epochs) / len(self.task_epochs)) if self.task_epochs else self.epochs

    def epochs_of(self, task: int) -> int:
        """How many passes task number `task` (from 0) gets. Raises BadValue where `task_epochs` does not reach it."""
        if not self.task_epochs:
            return self.epochs
        if task >= len(self.task_epochs):
            raise BadValue(
                f"recipe.task_epochs names {len(self.task_epochs)} tasks and there are more; give each task a number."
            )
        return self.task_epochs[task]

    def rate_at(self, share: float, epoch: int, epochs: int) -> float:
        """The share of the highest step size, when `share` of a task's steps and `epoch` of its `epochs` are done.

        `coda`: cos(99πe / 200(E−1)), as CODA-Prompt's code has it.

        >>> Recipe(schedule="cosine").rate_at(0.5, 0, 1), Recipe(schedule="steps", steps=(2,)).rate_at(0.9, 3, 4)
        (0.5, 0.1)
        """
        if self.schedule == "cosine":
            return round((1 + math.cos(math.pi * share)) / 2, 12)
        if self.schedule == "coda":
            return math.cos(99 * math.pi * epoch / (200 * max(1, epochs - 1)))
        if self.schedule == "steps":
            return 0.1 ** sum(epoch >= end for end in self.steps)
        return 1.0

    def facts(self) -> dict[str, Any]:
        """The fields as plain values, for records and keys; later ones are left out while they have their default.

        So a record that was made before a field was there keeps its key.

        >>> "clip" in Recipe().facts(), "clip" in Recipe(clip=1.0).facts()
        (False, True)
        """
        plain = self.model_dump(mode="json")
        usual = type(self)().model_dump(mode="json")
        return {name: value for name, value in plain.items() if name in FIRST or value != usual[name]}
