"""HiDe-Prompt: a prefix for each task, chosen by the inferred task, and a head aligned on class statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from clbench.adapters.prefix import TaskPrefixes
from clbench.method import Resources, Search, Workbench
from clbench.methods._decomposition import TaskDecomposition, decomposition, repeated_classes
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream


class _Ensemble(Plugin):
    """While a task is taught, each pass uses (1 - m) p_t + m mean(p_<t); when it is learned, p_t becomes that."""

    def __init__(self, prefixes: TaskPrefixes, momentum: float) -> None:
        super().__init__()
        self.prompts, self.momentum = prefixes.prompts, momentum

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Mix the mean of the past prefixes in; the decomposition's draw to them ends it."""
        if self.momentum and len(self.prompts.bank):
            self.prompts.towards = (self.prompts.bank.mean(0), self.momentum)


class HiDePrompt(TaskDecomposition):
    """Wang et al., NeurIPS 2023 (HiDe-Prompt): within-task prediction by a prefix of keys and values a task.

    Attention of the first `depth` blocks sees the task's prefix p_t; a new task's starts from the last one's.
    Training uses (1 - m) p_t + m mean(p_<t), m = `momentum`, and keeps that. A router on the untouched
    backbone's features infers each sample's task; the head reads the class token and is aligned on features
    drawn from class statistics. The loss is CE + w CE(Z Z' / 0.8, I), w = `contrast_weight`, over the rows
    Z = [past classes' centroids; the batch's features] (`Contrast`).

    Text has no classes: each task's prefix answers the questions that a Gaussian router gives to its task, and
    there is nothing to align (`OpenDecomposition`) [ours; no paper has it].

    Departures: one step size for prefixes and head (the released scripts: a tenth of it for the head), not
    scaled with the batch; the router is taught beside the tasks, not in a run before. `align` and
    `ClassStatistics` name theirs. The released code hands keys and values to the wrong halves of a batch:
    `compat_reshape`. A stream that brings a class again in a later task is declined.
    """

    name = "hide-prompt"
    paper = "Wang et al. 2023 (HiDe-Prompt)"

    depth: int = Field(default=5, ge=1, description="put prefixes into the first so many blocks")
    length: int = Field(default=5, ge=1, description="keys, and values, of a prefix in a block; 20 for ImageNet-R")
    momentum: Annotated[float, Search(0.0, 0.5, log=False)] = Field(
        default=0.01, ge=0, le=1, description="share of the past prefixes' mean in a task's"
    )
    contrast_weight: Annotated[float, Search(1e-3, 1.0)] = Field(
        default=0.1, ge=0, description="of the contrastive term"
    )
    clip: float | None = Field(default=1.0, gt=0, description="longest gradient; null: any")
    compat_reshape: bool = Field(default=False, description="mix up keys and values over the batch, as ports do")

    def resources(self) -> Resources:
        """A prefix a task and the statistics of its classes, before and after adaptation, or of its questions."""
        return Resources(class_statistics=True, stored_mib_per_task=512.0 if self.statistics == "covariance" else 32.0)

    def unsupported(self, stream: Stream) -> str | None:
        """A class in two tasks."""
        return repeated_classes(stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """The prefixes, mixed with the past ones, and the decomposition around them."""
        model = bench.model
        blocks, draws = range(min(self.depth, model.depth)), bench.generator("prefix")
        prefixes = TaskPrefixes(blocks, self.length, model.prefix_width, draws, self.compat_reshape).to(bench.device)
        model.prefixer = prefixes
        return [_Ensemble(prefixes, self.momentum), decomposition(self, bench, prefixes)]
