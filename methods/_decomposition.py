"""Task decomposition: infer the task, use its adapter, and align the head on class statistics."""

from __future__ import annotations

import contextlib
from abc import ABC
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.lora import LoRA
from clbench.method import Method, Search, Workbench
from clbench.methods._router import Router
from clbench.methods._statistics import ClassStatistics, Kind
from clbench.methods._task_router import TaskRouter
from clbench.methods._untouched import untouched
from clbench.model import ImageClassifier
from clbench.seeding import derive, generator
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream

TEMPERATURE = 0.8
"""Of the contrastive term, as in the released code."""
ALIGNMENT_BATCH = 120


class TaskAdapters(Protocol):
    """Trainable parts of which a copy is kept for each task: LoRAs, or prompts."""

    def off(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the model is the untouched backbone."""
        ...

    def keep(self) -> None:
        """Put a copy of the live parts at the end of the bank."""
        ...

    def draw_to_kept(self, share: float, slots: list[int]) -> None:
        """Move the live parts by `share` towards the mean of the kept ones in `slots`."""
        ...

    def choose(self, slots: Tensor | None) -> None:
        """Use the kept parts in `slots` `[batch]` for each sample; None: the live ones."""
        ...


class Contrast:
    """The contrastive term: keep features apart from one another and from the past classes' centroids.

    With rows Z = [centroids; batch] it is cross-entropy of Z Z' / 0.8 against the identity (HiDe-Prompt,
    released code; inner products are not normalised). The products of centroids among themselves do not
    change within a task, so only their logarithmic sums are kept: a step costs O(centroids x batch),
    not (centroids + batch)^2.
    """

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids  # [K, width], K may be 0
        products = centroids @ centroids.T / TEMPERATURE
        self.own = products.diagonal()[:, None].clone()  # [K, 1]
        self.sums = (products - self.own).logsumexp(1)  # [K]

    def __call__(self, features: Tensor) -> Tensor:
        """The term for `features` `[batch, width]`, a scalar."""
        within = features @ features.T / TEMPERATURE
        across = features @ self.centroids.T / TEMPERATURE  # [batch, K]
        # A row's own product, in the thousands, is taken off before the sum, which would round what is left.
        own = within.diagonal()[:, None]
        present = torch.logaddexp((within - own).logsumexp(1), (across - own).logsumexp(1))
        past = torch.logaddexp(self.sums, (across.T - self.own).logsumexp(1))
        return torch.cat([past, present]).mean()


def align(
    logits: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    statistics: ClassStatistics,
    *,
    epochs: int,
    per_class: int,
    rate: float,
    draws: torch.Generator,
) -> None:
    """Train a classifier on features drawn from the statistics of all known classes, unmasked.

    `logits` maps features `[n, width]` to `[n, known]`, columns in the order of `statistics.classes`.
    SGD with momentum 0.9 and weight decay 5e-4, a cosine from `rate` to 0 over the epochs. An epoch
    draws `per_class` features of each class and goes through them once in batches of `ALIGNMENT_BATCH`;
    the released code draws as many of each centroid, and uses one batch of `per_class` of all these for
    each past class.
    """
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for _ in range(epochs):
        features, places = statistics.sample(per_class, draws)
        for rows in torch.randperm(len(places), generator=draws).to(features.device).split(ALIGNMENT_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(logits(features[rows]), places[rows]).backward()
            optimizer.step()
        schedule.step()


class Decomposition(Plugin):
    """The three parts of HiDe's decomposition around any adapters that can be kept for each task."""

    def __init__(self, method: TaskDecomposition, bench: Workbench, adapters: TaskAdapters) -> None:
        super().__init__()
        self.method, self.bench, self.adapters = method, bench, adapters
        model, device = bench.model, bench.device
        self.router = Router(model.width, model.classes, derive(bench.seed, "router")).to(device)
        self.untuned = ClassStatistics(model.width, device, method.statistics, method.centroids)
        self.tuned = ClassStatistics(model.width, device, method.statistics, method.centroids)
        self.slots: list[int] = []
        """Where each task's adapter is in the bank."""

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Listen to the features that the head is given."""
        self.contrast = Contrast(self.tuned.centroids())
        self.trained = strategy.model.trainable()
        self.features: Tensor | None = None

        def listen(head: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.features = given[0]

        self.listening = strategy.model.head.register_forward_pre_hook(listen)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add the contrastive term."""
        if self.method.contrast_weight:
            assert self.features is not None
            strategy.loss += self.method.contrast_weight * self.contrast(self.features.float())

    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Limit the length of the gradient."""
        if self.method.clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.method.clip)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the task's adapter and class statistics; teach the router; align both classifiers."""
        self.listening.remove()
        self.features = None
        task, method = strategy.task_index, self.method
        if self.slots:
            self.adapters.draw_to_kept(method.momentum, self.slots)
        self.slots.append(max(self.slots, default=-1) + 1)
        self.adapters.keep()
        strategy.model.eval()
        seed = derive(self.bench.seed, "decomposition", task)
        with self.adapters.off():
            plain, targets = self._all_features(strategy)
        self.untuned.add(plain, targets, seed)
        self.tuned.add(*self._all_features(strategy), seed)
        self.router.learn(
            plain, targets, task,
            epochs=method.router_epochs, batch=strategy.recipe.batch_size, rate=method.router_learning_rate, seed=seed,
        )  # fmt: skip
        if task:
            self._align(seed)

    def _align(self, seed: int) -> None:
        method, router, head = (
            self.method,
            self.router,
            _Rows(self.bench.model.get_submodule("head"), self.tuned.classes),
        )
        guide = _Rows(router.head, self.untuned.classes)
        body = [parameter for part in (router.up, router.down, router.norm) for parameter in part.parameters()]
        epochs, rate = method.alignment_epochs, method.alignment_learning_rate
        align(
            lambda features: guide(router.adapted(features)), [*body, guide.weight, guide.bias], self.untuned,
            epochs=epochs, per_class=method.router_samples, rate=rate, draws=generator(seed, "router alignment"),
        )  # fmt: skip
        align(
            head, [head.weight, head.bias], self.tuned,
            epochs=epochs, per_class=method.alignment_samples, rate=rate, draws=generator(seed, "head alignment"),
        )  # fmt: skip
        guide.write_back()
        head.write_back()

    @torch.no_grad()
    def _all_features(self, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Features `[n, width]` and targets `[n]` of the task's training data, as the model stands."""
        found = [(_features(strategy, inputs), targets) for inputs, targets, *_ in strategy.dataloader]
        return torch.cat([features for features, _ in found]), torch.cat([targets for _, targets in found])

    @torch.no_grad()
    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Infer the task of each sample and choose its adapter."""
        with self.adapters.off():
            plain = _features(strategy, strategy.mb_x)
        strategy.inferred = self.router.tasks(plain)
        self.adapters.choose(torch.tensor(self.slots, device=plain.device)[strategy.inferred])

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Back to the live adapter."""
        self.adapters.choose(None)

    def merge(self, i: int, j: int) -> None:
        """The adapters in slots `i` < `j` have become one, in slot `i`."""
        self.slots = merged_slots(self.slots, i, j)

    def state(self) -> dict[str, Any]:
        """Router, statistics, and where the adapters are; the adapters are the model's."""
        parts = {"router": self.router.state_dict(), "untuned": self.untuned.state(), "tuned": self.tuned.state()}
        return {**parts, "slots": self.slots}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.router.load_state_dict(state["router"])
        self.untuned.load_state(state["untuned"])
        self.tuned.load_state(state["tuned"])
        self.slots = state["slots"]


class OpenDecomposition(Plugin):
    """The same where answers are open, so that there is neither a head to align nor a class to be told from others.

    A task's adapter starts from the last one's, and is drawn to the mean of the past ones when it is learned; the
    task of a question is inferred from the untouched backbone's features of it, and its adapter answers [ours].
    """

    def __init__(self, method: TaskDecomposition, bench: Workbench, adapters: TaskAdapters) -> None:
        super().__init__()
        self.method, self.bench, self.adapters = method, bench, adapters
        self.router = TaskRouter(bench.model.width, bench.device, method.centroids)
        self.slots: list[int] = []
        """Where each task's adapter is in the bank."""

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Note what is trained."""
        self.trained = strategy.model.trainable()

    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Limit the length of the gradient."""
        if self.method.clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.method.clip)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the task's adapter, and where its questions lie."""
        if self.slots:
            self.adapters.draw_to_kept(self.method.momentum, self.slots)
        self.slots.append(max(self.slots, default=-1) + 1)
        self.adapters.keep()
        strategy.model.eval()
        features = torch.cat([self._untouched(strategy, inputs) for inputs, *_ in strategy.dataloader])
        self.router.add(features, derive(self.bench.seed, "decomposition", strategy.task_index))

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Infer the task of each question and choose its adapter."""
        strategy.inferred = self.router.tasks(self._untouched(strategy, strategy.mb_x))
        self.adapters.choose(torch.tensor(self.slots, device=strategy.inferred.device)[strategy.inferred])

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Back to the live adapter."""
        self.adapters.choose(None)

    def _untouched(self, strategy: Strategy, inputs: Tensor) -> Tensor:
        with self.adapters.off():
            return untouched(strategy, inputs)

    def merge(self, i: int, j: int) -> None:
        """The adapters in slots `i` < `j` have become one, in slot `i`."""
        self.slots = merged_slots(self.slots, i, j)

    def state(self) -> dict[str, Any]:
        """The router, and where the adapters are; the adapters are the model's."""
        return {"router": self.router.state(), "slots": self.slots}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.router.load_state(state["router"])
        self.slots = state["slots"]


def decomposition(
    method: TaskDecomposition, bench: Workbench, adapters: TaskAdapters
) -> Decomposition | OpenDecomposition:
    """The form for a model with a head over classes to align, or for one without."""
    form = Decomposition if isinstance(bench.model, ImageClassifier) else OpenDecomposition
    return form(method, bench, adapters)


def task_lora(bench: Workbench, depth: int | None) -> LoRA:
    """K and V of the first `depth` blocks (all: None), HiDe's own; without a head, the recipe's projections.

    Language models are given LoRAs on Q and V throughout the literature, so that all methods have the same.
    """
    return bench.lora(depth, ("k", "v") if isinstance(bench.model, ImageClassifier) else None)


def merged_slots(slots: list[int], i: int, j: int) -> list[int]:
    """`slots` when what was in slots `i` < `j` has become one, in slot `i`."""
    return [i if slot == j else slot - (slot > j) for slot in slots]


class _Rows:
    """A copy of some rows of a linear classifier, to be trained without touching the others."""

    def __init__(self, head: nn.Module, classes: Tensor) -> None:
        self.classes = classes
        self.whole = (head.get_parameter("weight"), head.get_parameter("bias"))
        self.weight, self.bias = (nn.Parameter(part.detach()[classes]) for part in self.whole)

    def __call__(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def write_back(self) -> None:
        for whole, rows in zip(self.whole, (self.weight, self.bias), strict=True):
            whole[self.classes] = rows


def _features(strategy: Strategy, inputs: Tensor) -> Tensor:
    with strategy.autocast():
        features: Tensor = strategy.model.features(inputs)
    return features.float()


def repeated_classes(stream: Stream) -> str | None:
    """Why `stream` cannot be decomposed; None when each class is of one task, as inferring tasks needs."""
    taught: set[int] = set()
    for task in stream:
        again = taught.intersection(task.classes)
        if again:
            return f"it infers a sample's task from its class, and task '{task.name}' has class {min(again)} again"
        taught.update(task.classes)
    return None


class TaskDecomposition(Method, ABC):
    """The settings of the decomposition, for methods that use it."""

    momentum: Annotated[float, Search(0.0, 0.5, log=False)] = Field(
        default=0.1, ge=0, le=1, description="how far a learned adapter is drawn to the mean of the past ones"
    )
    contrast_weight: Annotated[float, Search(1e-4, 0.1)] = Field(
        default=0.01, ge=0, description="of the contrastive term"
    )
    clip: float | None = Field(default=2.0, gt=0, description="longest gradient; null: any")
    statistics: Kind = Field(default="centroids", description="what is kept of a class's features")
    centroids: int = Field(default=10, ge=1, description="k-means centroids a class; of open answers, a task")
    router_epochs: int = Field(default=20, ge=1, description="passes of the router over a task's features")
    router_learning_rate: Annotated[float, Search(1e-4, 1e-2)] = Field(
        default=5e-4, gt=0, description="step size of the router (Adam)"
    )
    router_samples: int = Field(default=24, ge=1, description="features drawn a class and epoch to align the router")
    alignment_epochs: int = Field(default=30, ge=1, description="passes of the alignment of both classifiers")
    alignment_learning_rate: Annotated[float, Search(1e-4, 1e-1)] = Field(
        default=0.005, gt=0, description="step size of the alignment (SGD)"
    )
    alignment_samples: int = Field(default=120, ge=1, description="features drawn a class and epoch to align the head")
