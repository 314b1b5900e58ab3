"""HiDe-LoRA: a LoRA for each task, chosen by the inferred task, and a head aligned on class statistics."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench.method import Resources, Workbench
from clbench.methods._decomposition import Decomposition, TaskDecomposition, repeated_classes
from clbench.strategy import Plugin
from clbench.stream import Stream


class HiDeLoRA(TaskDecomposition):
    """Wang et al., NeurIPS 2023 (HiDe-Prompt), in its LoRA form (HiDe-PET, Wang et al. 2024).

    K and V of the first `depth` blocks carry a LoRA; a new task's starts from the last one's, and is
    drawn towards the mean of the past ones when it is learned. A router on the untouched backbone's
    features infers each sample's task; the head is aligned on features drawn from class statistics.

    K and V are the method's own, whatever the recipe's `lora_sites` are.

    Departures: rank and alpha are the recipe's, so that all LoRA methods of a suite have the same
    (the released code: alpha 1); the router looks at the untouched backbone, as in HiDe-Prompt and
    TreeLoRA, not at a slowly learned shared LoRA; its step size is not scaled with the batch. `align`
    and `ClassStatistics` name theirs. A stream that brings a class again in a later task is declined.
    """

    name = "hidelora"
    paper = "Wang et al. 2024 (HiDe-PET)"

    depth: int = Field(default=5, ge=1, description="adapt the first so many blocks")

    def resources(self) -> Resources:
        """A LoRA a task and the statistics of its classes, before and after adaptation."""
        return Resources(class_statistics=True, stored_mib_per_task=512.0 if self.statistics == "covariance" else 32.0)

    def unsupported(self, stream: Stream) -> str | None:
        """A class in two tasks."""
        return repeated_classes(stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """The LoRA and the decomposition around it."""
        return [Decomposition(self, bench, bench.lora(self.depth, ("k", "v")))]
