"""SLCA: a slowly learning backbone, and a classifier aligned on Gaussians of all classes' features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._decomposition import align
from clbench.methods._prototypes import open_answers
from clbench.methods._statistics import ClassStatistics, Kind
from clbench.model import Classifier
from clbench.seeding import derive
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream

LOG_ZERO = math.log(1e-4)
"""What stands for log 0 in the reverse cross-entropy, as in the released code."""


def by_task_norms(logits: Tensor, homes: Tensor, tasks: int, temperature: float) -> Tensor:
    """Logits `[n, classes]` over τ times the mean length of the tasks' parts; `homes` `[classes]`: each one's task."""
    squares = logits.new_zeros(len(logits), tasks).index_add(1, homes, logits.square())
    return logits / (squares.clamp(min=1e-14).sqrt().mean(dim=1, keepdim=True) * temperature)


def reverse_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-Σ_c p_c log y_c for one-hot y with log 0 = `LOG_ZERO`, the mean over the batch."""
    right = logits.softmax(dim=1).gather(1, targets[:, None])
    return -LOG_ZERO * (1 - right).mean()


class _SlowLearner(Plugin):
    def __init__(self, method: SLCA, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.statistics = ClassStatistics(bench.model.width, bench.device, method.statistics)
        self.homes: list[int] = []
        """The task of each of the statistics' classes."""
        self.trained = [part.detach().clone() for part in self._head()]
        """The classifier as training left it, before any alignment."""

    def _head(self) -> list[nn.Parameter]:
        return list(self.bench.model.get_submodule("head").parameters())

    def learning_rate_factors(self, model: Classifier) -> Mapping[nn.Parameter, float]:
        """All but the classifier learn slowly."""
        method, head = self.method, set(self._head())
        first = method.first_backbone_rate if not self.homes else None
        rate = method.backbone_rate if first is None else first
        return {part: rate for part in model.trainable() if part not in head}

    @torch.no_grad()
    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Recall: go on from the classifier as it was before its alignment."""
        for part, trained in zip(self._head(), self.trained, strict=True):
            part.copy_(trained)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Mix the loss with the reverse cross-entropy over the logits that it sees."""
        weight = self.method.symmetric_weight
        if weight:
            masked = strategy.mb_output.masked_fill(~strategy.allowed, float("-inf"))
            strategy.loss = (1 - weight) * strategy.loss + weight * reverse_cross_entropy(masked, strategy.mb_y)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the trained rows and the task's statistics; align the classifier from the second task on."""
        learned = strategy.allowed.nonzero().flatten()
        for part, trained in zip(self._head(), self.trained, strict=True):
            trained[learned] = part.detach()[learned]
        self._take_statistics(strategy)
        if strategy.task_index > 0 and self.method.alignment_epochs:
            self._align(strategy.task_index)

    @torch.no_grad()
    def _take_statistics(self, strategy: Strategy) -> None:
        strategy.model.eval()
        found = []
        for inputs, targets, *_ in strategy.dataloader:
            with strategy.autocast():
                found.append((strategy.model.features(inputs).float(), targets))
        features, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.statistics.add(features, targets, derive(self.bench.seed, "clusters", strategy.task_index))
        self.homes += [strategy.task_index] * (len(self.statistics) - len(self.homes))

    def _align(self, task: int) -> None:
        """Train the rows of all known classes on drawn features."""
        method, classes = self.method, self.statistics.classes
        homes = torch.tensor(self.homes, device=classes.device)
        weight, bias = (nn.Parameter(part.detach()[classes]) for part in self._head())

        def logits(features: Tensor) -> Tensor:
            plain = F.linear(features, weight, bias)
            return plain if method.temperature is None else by_task_norms(plain, homes, task + 1, method.temperature)

        align(
            logits, [weight, bias], self._shrunk(homes, task),
            epochs=method.alignment_epochs, per_class=method.alignment_samples, rate=method.alignment_learning_rate,
            draws=self.bench.generator("alignment", task),
        )  # fmt: skip
        with torch.no_grad():
            for part, rows in zip(self._head(), (weight, bias), strict=True):
                part[classes] = rows

    def _shrunk(self, homes: Tensor, task: int) -> ClassStatistics:
        """The statistics with means times 0.9 + 0.1 (t_c + 1) / (t + 1): the older the class, the smaller."""
        shrunk = ClassStatistics(self.bench.model.width, self.bench.device, self.method.statistics)
        factors = 0.9 + 0.1 * (homes + 1) / (task + 1)
        state = self.statistics.state()
        shrunk.load_state({**state, "means": state["means"] * factors[:, None, None]})
        return shrunk

    def state(self) -> dict[str, Any]:
        """Statistics, their tasks, and the classifier before alignment."""
        return {"statistics": self.statistics.state(), "homes": self.homes, "trained": self.trained}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.statistics.load_state(state["statistics"])
        self.homes = state["homes"]
        self.trained = [part.to(self.bench.device) for part in state["trained"]]


class SLCA(Method):
    """Zhang et al., ICCV 2023: the backbone learns at `backbone_rate` times the classifier's step size.

    After each task the mean and covariance of each of its classes' features are kept. From the second task on
    the classifier of all classes is then trained on features drawn from N(s_c μ_c, Σ_c + 1e-4 I), s_c = 0.9 + 0.1
    (t_c + 1) / (t + 1), with cross-entropy of logits over τ times the mean of their lengths by task. The next task
    goes on from the rows as they were before that (recall), so that alignments do not add up.

    `tuning="lora"`, with `symmetric_weight` 0.5, `backbone_rate` 0.1 and `first_backbone_rate` 0.5, is the
    parameter-efficient form of SLCA++ (Zhang et al. 2024): a LoRA instead of all weights, and half cross-entropy,
    half reverse cross-entropy. Its released code also trains norms, biases and the class token, puts a LoRA into the
    MLPs, and shrinks what it draws by 1 / (1 + 0.02 (t - t_c)) with some noise; here only the recipe's LoRA is
    trained, and s_c is SLCA's.

    Departures: optimiser and passes of a task are the recipe's (released: SGD, 0.01, drops at two epochs); the
    LoRA's rank is the recipe's (4 in the paper); drawn features come in batches of 120, see `align` (released: as
    many as are drawn of a class, 256). A class's task is looked up, where the released code divides its number by
    the size of a task. A stream that brings a class again in a later task is declined.
    """

    name = "slca"
    paper = "Zhang et al. 2023"

    tuning: Literal["full", "lora"] = Field(default="full", description="what of the backbone learns")
    backbone_rate: Annotated[float, Search(1e-4, 1)] = Field(
        default=0.01, gt=0, description="step size of the backbone over that of the classifier"
    )
    first_backbone_rate: float | None = Field(default=None, gt=0, description="the same in the first task, if another")
    statistics: Kind = Field(default="covariance", description="what is kept of a class's features")
    alignment_epochs: int = Field(default=5, ge=0, description="passes of the alignment; 0: none")
    alignment_learning_rate: Annotated[float, Search(1e-4, 1e-1)] = Field(
        default=0.01, gt=0, description="step size of the alignment (SGD)"
    )
    alignment_samples: int = Field(default=256, ge=1, description="features drawn a class and epoch")
    temperature: Annotated[float | None, Search(0.05, 5)] = Field(
        default=0.1, gt=0, description="τ of the alignment; null: plain logits"
    )
    symmetric_weight: float = Field(default=0.0, ge=0, le=1, description="share of the reverse cross-entropy")

    def resources(self) -> Resources:
        """The statistics of a task's classes."""
        return Resources(class_statistics=True, stored_mib_per_task=512.0 if self.statistics == "covariance" else 32.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Open answers, or a class in two tasks."""
        taught = [c for task in stream for c in task.classes]
        if len(set(taught)) == len(taught):
            return open_answers(stream)
        return "it keeps one statistic a class, and a class comes in two tasks"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Unfreeze the backbone, or give it a LoRA."""
        if self.tuning == "full":
            bench.model.body.requires_grad_(True)
        else:
            bench.lora()
        return [_SlowLearner(self, bench)]
