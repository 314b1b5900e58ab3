"""O-LoRA: a new LoRA for each task, pushed to be orthogonal to the frozen past ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.adapters.lora import LoRA, LoRALinear
from clbench.method import Method, Resources, Search, Workbench
from clbench.strategy import Plugin, Strategy


def overlap(past: Sequence[Tensor], live: Sequence[Tensor], norm: Literal["l1", "l2sq"]) -> Tensor:
    """Sum over matrices and past tasks of |A_i A_t'| entries, or of their squares.

    past: `[matrices, tasks * rank, width]`, live: `[matrices, rank, width]`, of each width; one product each,
    however many tasks there are. Zero exactly where the row spaces are orthogonal.
    """
    products = [before @ now.mT for before, now in zip(past, live, strict=True)]
    sums = [each.abs().sum() if norm == "l1" else each.square().sum() for each in products]
    return torch.stack(sums).sum()


def by_width(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices `[rows, width]` of equally many rows in stacks, one for each width, in order."""
    widths = dict.fromkeys(matrix.shape[-1] for matrix in matrices)
    return [torch.stack([matrix for matrix in matrices if matrix.shape[-1] == width]) for width in widths]


class _Orthogonal(Plugin):
    def __init__(self, method: OLoRA, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.method, self.bench, self.lora = method, bench, lora
        self.past: list[Tensor] = []

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Freeze the last task's pairs; all past ones are summed into the effective weights."""
        if strategy.task_index > 0:
            self.lora.retire(self.bench.generator("fresh pair", strategy.task_index))
            self.past = self._past()

    def _past(self) -> list[Tensor]:
        found: list[Tensor] = []
        for layer in self.lora.layers:
            each = [self._matrices(layer, *pair) for pair in zip(layer.past_down, layer.past_up, strict=True)]
            found += [torch.cat(tasks) for tasks in zip(*each, strict=True)]
        return by_width(found)

    def _live(self) -> list[Tensor]:
        found = [self._matrices(layer, layer.down, layer.up) for layer in self.lora.layers]
        return by_width([matrix for own in found for matrix in own])

    def _matrices(self, layer: LoRALinear, down: Tensor, up: Tensor) -> Sequence[Tensor]:
        """Of each part, `[rank, width]` on the chosen side."""
        return down.split(layer.rank) if self.method.side == "A" else [part.mT for part in up.split(layer.sizes)]

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add both penalties."""
        if self.past and self.method.penalty_weight:
            strategy.loss += self.method.penalty_weight * overlap(self.past, self._live(), self.method.norm)
        if self.method.size_weight:
            sizes = torch.stack([torch.linalg.vector_norm(factor) for factor in self.lora.parameters()])
            strategy.loss += self.method.size_weight * sizes.sum()

    @torch.no_grad()
    def notes(self) -> dict[str, Any]:
        """The overlap of the last task's pairs with the past ones, so that a penalty that does nothing is seen."""
        past = self._past()
        return {"last_overlap": float(overlap(past, self._live(), self.method.norm)) if past else 0.0}


class OLoRA(Method):
    """Wang et al., Findings of EMNLP 2023: L + λ1 Σ_i<t |A_i A_t'| + λ2 Σ ‖new factor‖₂.

    Old pairs are frozen and all of them are summed in training and at test; there is no router. The
    paper writes squared overlaps on the factor that spans the update, its released code an L1 norm on
    A, the input side, which is what keeps old inputs undisturbed: the default here. Both are options.
    Where q and v are one layer, λ2 (off by default) takes the norm of their factors stacked; the released
    code, whose layers are apart, adds two norms.
    """

    name = "olora"
    paper = "Wang et al. 2023"

    penalty_weight: Annotated[float, Search(0.01, 10)] = Field(default=0.5, ge=0, description="λ1")
    size_weight: float = Field(default=0.0, ge=0, description="λ2")
    norm: Literal["l1", "l2sq"] = Field(default="l1", description="of the overlaps: released code or paper")
    side: Literal["A", "B"] = Field(default="A", description="factor that is kept orthogonal")

    def resources(self) -> Resources:
        """One pair of factors a task."""
        return Resources(stored_mib_per_task=32.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA that is retired at each new task."""
        return [_Orthogonal(self, bench, bench.lora())]
