"""Recipe: how any method is trained on a suite: passes, batch, optimiser, adapter size."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """The settings that a suite gives to all its methods alike; `--set recipe.FIELD=VALUE` changes one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=5, ge=1, description="passes over a task's training data")
    batch_size: int = Field(default=32, ge=1, description="samples in a training batch")
    eval_batch_size: int = Field(default=256, ge=1, description="samples in a scoring batch")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(default="adam", description="built anew for each task")
    learning_rate: float = Field(default=1e-3, gt=0, description="constant step size")
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    lora_rank: int = Field(default=8, ge=1, description="rank of every LoRA")
    lora_alpha: float = Field(default=8.0, gt=0, description="a LoRA's update is scaled by alpha / rank")
    lora_sites: tuple[str, ...] = Field(default=("q", "v"), description="projections that get a LoRA: q, k, v")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the forward pass")
