"""S-Prompts: a prompt and a classifier for each task, chosen by the nearest centroid of frozen features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.prompts import TaskPrompts
from clbench.method import Method, Resources, Workbench
from clbench.methods._untouched import untouched
from clbench.model import ImageClassifier, Prefixes
from clbench.seeding import derive
from clbench.strategy import Plugin, Strategy


class Prepended(nn.Module):
    """The current task's or the chosen prompt of each sample, before its tokens."""

    def __init__(self, prompts: TaskPrompts) -> None:
        super().__init__()
        self.prompts = prompts

    def forward(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        """`[batch, length, width]`."""
        return Prefixes(tokens=self.prompts(len(tokens)))


class TaskHead(nn.Module):
    """The classifier that is trained, and the kept ones, of which a pass can use one for each sample.

    kept_weight: `[tasks, classes, width]`, kept_bias and taught: `[tasks, classes]`. A kept classifier knows
    the classes of its task alone: the logits of others are -inf.
    """

    kept_weight: Tensor
    kept_bias: Tensor
    taught: Tensor

    def __init__(self, live: nn.Module) -> None:
        super().__init__()
        self.live = live
        self.slots: Tensor | None = None
        weight, bias = live.get_parameter("weight").detach(), live.get_parameter("bias").detach()
        self.register_buffer("kept_weight", weight.new_zeros(0, *weight.shape))
        self.register_buffer("kept_bias", bias.new_zeros(0, *bias.shape))
        self.start = {"weight": weight.clone(), "bias": bias.clone()}
        self.register_buffer("taught", torch.zeros(0, len(bias), dtype=torch.bool, device=bias.device))

    def restart(self) -> None:
        """Give the live classifier the numbers that it had when it was made."""
        self.live.load_state_dict(self.start)

    @torch.no_grad()
    def keep(self, classes: Tensor) -> None:
        """Keep a copy of the live classifier, which knows `classes`."""
        taught = self.taught.new_zeros(self.taught.shape[1])
        taught[classes] = True
        self.kept_weight = torch.cat([self.kept_weight, self.live.get_parameter("weight")[None]])
        self.kept_bias = torch.cat([self.kept_bias, self.live.get_parameter("bias")[None]])
        self.taught = torch.cat([self.taught, taught[None]])

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[batch, classes]`; all tasks' at once, of which each sample takes its own."""
        if self.slots is None:
            live: Tensor = self.live(features)
            return live
        every = F.linear(features, self.kept_weight.flatten(0, 1), self.kept_bias.flatten())
        chosen: Tensor = every.unflatten(1, self.kept_bias.shape)[
            torch.arange(len(every), device=every.device), self.slots
        ]
        return chosen.masked_fill(~self.taught[self.slots], float("-inf"))


def centroids(features: Tensor, count: int, seed: int) -> Tensor:
    """`[count, width]` k-means centroids of `features` `[n, width]`; fewer where there are fewer samples."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters
        # In double precision, because its threads add up in any order.
        found = KMeans(min(count, len(features)), n_init=1, random_state=seed % 2**32).fit(features.double().cpu())
    return torch.from_numpy(found.cluster_centers_).to(features)


class _Domains(Plugin):
    def __init__(self, method: SPrompt, bench: Workbench, prompts: TaskPrompts, head: TaskHead | None) -> None:
        super().__init__()
        self.method, self.bench, self.prompts, self.head = method, bench, prompts, head
        self.centroids = torch.zeros(0, bench.model.width, device=bench.device)
        self.task_of = torch.zeros(0, dtype=torch.int64, device=bench.device)

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """A new task has a prompt and a classifier that know nothing of the others."""
        if strategy.task_index > 0:
            if self.head is not None:
                self.head.restart()
            self.prompts.restart(self.bench.generator("prompt", strategy.task_index))

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep prompt and classifier, and the centroids of the task's features."""
        self.prompts.keep()
        if self.head is not None:
            self.head.keep(strategy.task_classes)
        strategy.model.eval()
        features = torch.cat([self._direction(strategy, inputs) for inputs, *_ in strategy.dataloader])
        found = centroids(features, self.method.centroids, derive(self.bench.seed, "domains", strategy.task_index))
        self.centroids = torch.cat([self.centroids, found])
        self.task_of = torch.cat([self.task_of, self.task_of.new_full((len(found),), strategy.task_index)])

    @staticmethod
    def _direction(strategy: Strategy, inputs: Tensor) -> Tensor:
        return F.normalize(untouched(strategy, inputs), dim=1)

    @torch.no_grad()
    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The task of the nearest centroid, its prompt and its classifier."""
        features, norm = self._direction(strategy, strategy.mb_x), 1.0 if self.method.distance == "l1" else 2.0
        # Not by a product of matrices, whose rounding would depend on the size of the batch.
        distances = torch.cdist(features, self.centroids, norm, compute_mode="donot_use_mm_for_euclid_dist")
        strategy.inferred = self.task_of[distances.argmin(1)]
        self._choose(strategy.inferred)

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Back to the live prompt and classifier."""
        self._choose(None)

    def keeps_class_statistics(self) -> bool:
        """The centroids of each task's features."""
        return True

    def _choose(self, slots: Tensor | None) -> None:
        self.prompts.choose(slots)
        if self.head is not None:
            self.head.slots = slots

    def state(self) -> dict[str, Any]:
        """The centroids; prompts and classifiers are the model's."""
        return {"centroids": self.centroids, "task_of": self.task_of}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        device = self.centroids.device
        self.centroids, self.task_of = state["centroids"].to(device), state["task_of"].to(device)


class SPrompt(Method):
    """Wang et al., NeurIPS 2022 (S-Prompts, the form for images): independent prompts for each task.

    A task trains `length` tokens that stand behind the class token, drawn anew, and its own classifier, by
    cross-entropy alone; no past task is touched. `centroids` k-means centroids of its samples' features,
    of the untouched backbone and of unit length, stand for it. At test the task of the nearest centroid
    decides which prompt is used and which classifier answers, with the classes of its task alone:
    t̂ = argmin_t min_j ‖f - c_tj‖, f the sample's feature, c_tj the centroids of task t.

    Text: the prompt stands before the question's first token, its features are the mean of the last hidden
    states over the question's tokens, and the frozen head answers for all tasks [ours; no paper has it].

    A class that comes again in another task is taught to that task's classifier anew, as the paper's streams
    of domains need. Departure: prompts begin uniform in (-1, 1), as those of the other prompt methods (the
    released code: 1 / √width). `distance="l1"` is the released code's, "l2" that of plain k-means.
    """

    name = "s-prompt"
    paper = "Wang et al. 2022 (S-Prompts)"

    length: int = Field(default=10, ge=1, description="tokens of a prompt")
    centroids: int = Field(default=5, ge=1, description="k-means centroids a task")
    distance: Literal["l1", "l2"] = Field(default="l1", description="from features to centroids at test")

    def resources(self) -> Resources:
        """A prompt, a classifier and centroids a task."""
        return Resources(class_statistics=True, stored_mib_per_task=32.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Put the prompt before the tokens and, where there is a head, each task's classifier behind the features."""
        model = bench.model
        prompts = TaskPrompts((self.length, model.width), bench.generator("prompt", 0)).to(bench.device)
        model.prefixer, head = Prepended(prompts), None
        if isinstance(model, ImageClassifier):
            model.head = head = TaskHead(model.head)
        return [_Domains(self, bench, prompts, head)]
