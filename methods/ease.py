"""EASE: an adapter and so a subspace for each task; old classes' prototypes in new subspaces are synthesised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.adapters import bottleneck
from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._prototypes import Answering, CosineHead, Views, class_sums, open_answers
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream


def synthesised(old: Tensor, new: Tensor, new_here: Tensor) -> Tensor:
    """Prototypes `[old, width]` of old classes in a subspace that their data has never been in.

    Each is a mean of the new classes' prototypes there, `new_here` `[new, width]`, weighted by the softmax of the
    cosines in the old class's own subspace: between `old` `[old, width]` and `new` `[old, new, width]`.
    """
    cosines = torch.einsum("od,ond->on", F.normalize(old, dim=-1), F.normalize(new, dim=-1))
    return cosines.softmax(dim=1) @ new_here


class SubspaceHead(Answering):
    """Cosines to each class's prototypes in all subspaces, the class's own weighing most.

    prototypes: `[classes, subspaces, width]`, home: `[classes]`, the subspace that was made for the class's
    task, -1 before it.
    """

    prototypes: Tensor
    home: Tensor

    def __init__(self, width: int, classes: int, alpha: float, views: Views) -> None:
        super().__init__()
        self.alpha, self.views = alpha, views
        self.register_buffer("prototypes", torch.zeros(classes, 0, width))
        self.register_buffer("home", torch.full((classes,), -1))

    @torch.no_grad()
    def learn(self, features: Tensor, targets: Tensor) -> None:
        """Take in a task: `features` `[subspaces, n, width]`, the last being the task's own, of `targets` `[n]`."""
        here, old = len(features) - 1, (self.home >= 0).nonzero().flatten()
        sums, counts = class_sums(features, targets, len(self.home))
        new = counts.nonzero().flatten()
        means = (sums[new] / counts[new, None, None]).float()  # [new, subspaces, width]
        self.prototypes = F.pad(self.prototypes, (0, 0, 0, 1))
        self.prototypes[new] = means
        own = self.home[old]
        self.prototypes[old, here] = synthesised(
            self.prototypes[old, own], means[:, own].transpose(0, 1), means[:, here]
        )
        self.home[new] = here

    def forward(self, features: Tensor) -> Tensor:
        """cos(f_i, P_ci) + α / others Σ_j≠i cos(f_j, P_cj), `[batch, classes]`; 0 for a class never seen."""
        with torch.autocast(features.device.type, enabled=False):
            views, prototypes = self.views.joined(features), self.prototypes
            subspaces = torch.arange(len(views), device=views.device)
            weights = torch.where(self.home[:, None] == subspaces, 1.0, self.alpha / max(1, len(views) - 1))
            weighted = F.normalize(prototypes, dim=-1) * weights[..., None]
            logits: Tensor = torch.einsum("sbd,csd->bc", F.normalize(views, dim=-1), weighted)
            return logits


class _Subspaces(Plugin):
    def __init__(self, method: EASE, bench: Workbench) -> None:
        super().__init__()
        self.bench, self.model = bench, bench.model
        self.adapters = bottleneck.attach(bench.model, method.hidden, method.scale, bench.generator("adapter", 0))
        self.views = Views(self.adapters)
        self.answer = SubspaceHead(bench.model.width, bench.model.classes, method.alpha, self.views).to(bench.device)
        self.rows = bench.model.get_parameter("head.weight").detach()
        self.model.head = CosineHead(self.rows)

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the last task's adapter; begin with a fresh one and a classifier for this task alone."""
        task = strategy.task_index
        if task > 0:
            self.adapters.keep()
            self.adapters.restart(self.bench.generator("adapter", task))
            self.views.earlier = tuple(range(task))
            self.model.head = CosineHead(self.rows)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Put the task's classes into all subspaces, and the old ones into the new."""
        self.model.head = self.answer
        self.answer.learn(*self.views.of_task(strategy))

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The batch in the earlier subspaces."""
        self.views.look(strategy)

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The batch is answered."""
        self.views.forget()

    def state(self) -> dict[str, Any]:
        """How many adapters are kept; they and the prototypes are the model's."""
        return {"kept": len(self.views.earlier)}

    def load_state(self, state: dict[str, Any]) -> None:
        """There is a state only after a task, when the prototypes are in place."""
        self.views.earlier = tuple(range(state["kept"]))
        self.model.head = self.answer


class EASE(Method):
    """Zhou et al., CVPR 2024: logit_c = cos(f_i, P_ci) + α/(t-1) Σ_j≠i cos(f_j, P_cj), i the task of c, t the tasks.

    Each task trains a fresh AdaptFormer adapter beside the frozen backbone, with a temporary cosine classifier
    over its own classes; a training step knows nothing of earlier tasks. Then the task's classes get their means
    in all subspaces, which takes t passes over its data, and the old classes, whose data is gone, a synthesised
    prototype in the new one: P̂_cj = Σ_k softmax_k(cos(P_ci, P_ki)) P_kj. Answering takes t passes.

    Departures: optimiser, passes and batch are the recipe's (released: SGD, a cosine, 20 epochs); the untouched
    backbone is not a subspace of its own, an option of the released code that is off there. A stream that brings
    a class again in a later task is declined.
    """

    name = "ease"
    paper = "Zhou et al. 2024 (EASE)"

    hidden: int = Field(default=64, ge=1, description="units of an adapter")
    scale: Annotated[float, Search(0.01, 1)] = Field(default=0.1, gt=0, description="what adapters are multiplied by")
    alpha: Annotated[float, Search(0.01, 1)] = Field(default=0.1, ge=0, description="weight of the other subspaces")

    def resources(self) -> Resources:
        """An adapter a task, and a prototype of every class in its subspace."""
        return Resources(class_statistics=True, stored_mib_per_task=32.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Open answers, or a class in two tasks."""
        taught = [c for task in stream for c in task.classes]
        if len(set(taught)) == len(taught):
            return open_answers(stream)
        return "each class has one subspace of its own, and a class comes in two tasks"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """The adapters and the prototypes behind them."""
        return [_Subspaces(self, bench)]
