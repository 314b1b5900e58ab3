"""HiDe-LoRA: a LoRA for each task, chosen by the inferred task, and a head aligned on class statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.adapters.lora import LoRA
from clbench.method import Resources, Workbench
from clbench.methods._decomposition import TEMPERATURE, TaskDecomposition, decomposition, repeated_classes, task_lora
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream

COMPAT_WEIGHT = 0.5
"""Of the released code's regulariser."""


def row_contrast(down: Tensor, rank: int) -> Tensor:
    """Σ over the projections of `down` `[parts * rank, in]` of cross-entropy of A A' / 0.8 against the identity."""
    rows = torch.arange(rank, device=down.device)
    parts = (F.cross_entropy(part @ part.T / TEMPERATURE, rows) for part in down.split(rank))
    return torch.stack(list(parts)).sum()


class _ApartRows(Plugin):
    """What TreeLoRA's code for language models calls HiDe-LoRA: one LoRA, whose A's rows are kept apart."""

    def __init__(self, lora: LoRA) -> None:
        super().__init__()
        self.lora = lora

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add the term of every projection."""
        terms = [row_contrast(layer.down, layer.rank) for layer in self.lora.layers]
        strategy.loss += COMPAT_WEIGHT * torch.stack(terms).sum()


class HiDeLoRA(TaskDecomposition):
    """Wang et al., NeurIPS 2023 (HiDe-Prompt), in its LoRA form (HiDe-PET, Wang et al. 2024).

    K and V of the first `depth` blocks carry a LoRA; a new task's starts from the last one's, and is
    drawn towards the mean of the past ones when it is learned. A router on the untouched backbone's
    features infers each sample's task; the head is aligned on features drawn from class statistics.

    The loss is CE + w CE(Z Z' / 0.8, I), w = `contrast_weight`, over the rows Z = [past classes' centroids; the
    batch's features] (`Contrast`). After a task A_t ← (1 - m) A_t + m mean(A_<t), m = `momentum`, and B_t alike.

    K and V are the method's own, whatever the recipe's `lora_sites` are.

    Text has no classes, so there are neither a head to align nor a contrastive term: each task's LoRA, on the
    recipe's `lora_sites`, answers the questions that a Gaussian router gives to its task (`OpenDecomposition`,
    `TaskRouter`) [ours]. `compat_treelora` is what TreeLoRA's code for language models runs under this name: one
    LoRA for all tasks, no router, and half the cross-entropy of A A' / 0.8 against the identity, summed over the
    projections; fields of the decomposition have no effect on it.

    Departures: rank and alpha are the recipe's, so that all LoRA methods of a suite have the same
    (the released code: alpha 1); the router looks at the untouched backbone, as in HiDe-Prompt and
    TreeLoRA, not at a slowly learned shared LoRA; its step size is not scaled with the batch. `align`
    and `ClassStatistics` name theirs. A stream that brings a class again in a later task is declined.
    """

    name = "hidelora"
    paper = "Wang et al. 2024 (HiDe-PET)"

    depth: int | None = Field(default=5, ge=1, description="adapt the first so many blocks; null: all")
    compat_treelora: bool = Field(default=False, description="one LoRA with a term on its rows, as TreeLoRA's code has")

    def resources(self) -> Resources:
        """A LoRA a task and the statistics of its classes, before and after adaptation, or of its questions."""
        if self.compat_treelora:
            return Resources()
        return Resources(class_statistics=True, stored_mib_per_task=512.0 if self.statistics == "covariance" else 32.0)

    def unsupported(self, stream: Stream) -> str | None:
        """A class in two tasks."""
        return None if self.compat_treelora else repeated_classes(stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """The LoRA and the decomposition around it."""
        if self.compat_treelora:
            return [_ApartRows(bench.lora(self.depth))]
        return [decomposition(self, bench, task_lora(bench, self.depth))]
