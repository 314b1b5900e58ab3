"""Guidance: what TreeLoRA does in each step, a search for the nearest past task and a pull towards it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from clbench.adapters.lora import LoRA
from clbench.method import Workbench
from clbench.methods._decomposition import Decomposition, OpenDecomposition
from clbench.methods.treelora.bandit import Bandit
from clbench.methods.treelora.budget import merge_groups, merged, nearest_pair
from clbench.methods.treelora.penalty import alignment_gradient, gradient_ratio, l1_gradient, l1_scale, ramp
from clbench.methods.treelora.tree import Node, build
from clbench.seeding import derive
from clbench.strategy import Plugin, Strategy

if TYPE_CHECKING:
    from clbench.methods.treelora.method import TreeLoRA

RATIO_EVERY = 8
"""Steps between two readings of the gradient ratio."""
INACTIVE = 1e-3
"""A penalty whose gradient is a smaller part of the task's does nothing."""


class Guidance(Plugin):
    """Search and penalty. Tensors of the past are `[rows, layers, numbers]`, of the present `[layers, numbers]`.

    A row stands for one past task, or for several that the storage budget has merged.
    """

    def __init__(
        self,
        method: TreeLoRA,
        bench: Workbench,
        lora: LoRA,
        decomposition: Decomposition | OpenDecomposition | None = None,
    ) -> None:
        super().__init__()
        self.method, self.bench, self.lora, self.decomposition = method, bench, lora, decomposition
        self.downs = lora.downs()
        self.numbers = max(down.numel() for down in self.downs)
        """Of a layer; those of fewer are padded with zeros."""
        self.past = torch.empty(0, len(self.downs), self.numbers, device=bench.device)
        """Displacements of the past tasks, what the penalty draws to."""
        self.signatures = self.past
        """What tree and bandit compare."""
        self.rows: list[list[int]] = []
        """The tasks that each row stands for."""
        self.bandit: Bandit | None = None
        self.growth: list[dict[str, Any]] = []
        self.pulls: list[dict[str, Any]] = []
        self.merged: list[dict[str, Any]] = []
        self.ratios: list[float] = []

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Remember where A starts; plant the tree of the past tasks and begin a new search on it."""
        self.start = self._live()
        self.displacement, self.gradient = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self.reference = torch.zeros_like(self.start)
        self.steps, self.bandit = 0, None
        if not self.rows:
            return
        method, tree = self.method, self._tree()
        self.growth.append({"task": strategy.task_index, "arms": self.rows, "root": tree.to_json()})
        self.pulls.append({"task": strategy.task_index, "shares": []})
        self.bandit = Bandit(
            tree,
            self.signatures,
            exploration=method.exploration,
            exploration_unit=method.exploration_unit,
            search=method.search,
            seed=derive(self.bench.seed, "treelora search", strategy.task_index),
            steps_per_epoch=len(strategy.dataloader),
        )
        self.scale = l1_scale(self.past)
        self.ratio = torch.zeros((), device=self.start.device)

    def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Forget the pulls at each epoch where the released code's choice is asked for."""
        self.epoch_start = self.steps
        self.reference.zero_()
        if self.bandit is not None:
            if self.method.reset == "epoch":
                self.bandit.reset()
            self.counted = self.bandit.counts.clone()

    @torch.no_grad()
    def after_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """One pull a layer, then the penalty's gradient towards what was pulled."""
        with strategy.meter.phase("search"):
            self.steps += 1
            live, gradient = self._live(), self._stacked([down.grad for down in self.downs if down.grad is not None])
            moved = live - self.start
            self._follow(live, moved, gradient, len(strategy.dataloader))
            if self.bandit is None:
                return
            arms = self._pull(strategy, self.bandit)
        weight = self.method.penalty_weight
        if self.method.penalty == "none" or not weight:
            return
        with strategy.meter.phase("penalty"):
            if self.method.ramp:
                weight *= ramp(self.steps - 1 - self.epoch_start, len(strategy.dataloader))
            towards = self.past[arms, torch.arange(len(arms), device=arms.device)]
            if self.method.penalty == "l1":
                pull = weight * l1_gradient(moved, towards, self.scale)
            else:
                pull = weight * alignment_gradient(moved, towards, strategy.loss.squeeze())
            for down, row in zip(self.downs, pull, strict=True):
                assert down.grad is not None
                down.grad += row[: down.numel()].view_as(down)
            if self.steps % RATIO_EVERY == 0:
                self.ratio += gradient_ratio(pull, gradient)

    def _follow(self, live: Tensor, moved: Tensor, gradient: Tensor, steps_per_epoch: int) -> None:
        """The running means of this task."""
        self.displacement.lerp_(moved, 1 / self.steps)
        if self.method.signature == "gradient":
            self.gradient.lerp_(gradient, 1 / self.steps)
        elif self.method.signature == "reference":
            self.reference.add_(live, alpha=len(live) / steps_per_epoch)  # the released code adds it once a layer

    def _pull(self, strategy: Strategy, bandit: Bandit) -> Tensor:
        """The arm of each layer, `[layers]`."""
        current = self._signature()
        if self.method.query == "stored":
            return bandit.pull(current).arms
        arms = bandit.choose(current)
        there = self._gradient_at(strategy, arms)
        distances = (current - there).abs().sum(-1)
        bandit.observe(arms, (distances / bandit.scale(current)).clamp(max=1.0))
        return arms

    @torch.enable_grad()
    def _gradient_at(self, strategy: Strategy, arms: Tensor) -> Tensor:
        """The batch's gradient of A where each layer carries the kept LoRA of its arm; one more pass."""
        names = {layer: name for name, layer in strategy.model.named_modules()}
        given: dict[str, Tensor] = {}
        downs: list[Tensor] = []
        for layer, arm in zip(self.lora.layers, arms.split(1), strict=True):
            downs.append(layer.bank_down.index_select(0, arm)[0].requires_grad_())
            given[f"{names[layer]}.down"] = downs[-1]
            given[f"{names[layer]}.up"] = layer.bank_up.index_select(0, arm)[0]
        with strategy.autocast():
            logits = torch.func.functional_call(strategy.model, given, (strategy.mb_x,))
        loss = strategy.model.losses(logits.float(), strategy.mb_y, strategy.allowed).mean()
        return self._stacked(torch.autograd.grad(loss, downs))

    def after_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Note what was pulled in the epoch."""
        if self.bandit is not None:
            pulled = self.bandit.counts - self.counted
            shares = pulled / pulled.sum(1, keepdim=True).clamp_min(1)
            self.pulls[-1]["shares"].append([[round(share, 4) for share in layer] for layer in shares.tolist()])

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the task's signature, and merge the most similar ones where there are more than the budget."""
        if self.bandit is not None:
            self.ratios.append(float(self.ratio) / max(1, self.steps // RATIO_EVERY))
            self.bandit = None
        if self.method.query == "live" and self.decomposition is None:
            self.lora.keep()
        self.rows = [*self.rows, [strategy.task_index]]
        self.past = torch.cat([self.past, self.displacement[None]])
        own = self.method.signature == "adapter"
        self.signatures = self.past if own else torch.cat([self.signatures, self._signature()[None]])
        budget = self.method.budget_tasks
        while budget is not None and len(self.rows) > budget:
            self._merge(strategy.task_index)

    def _merge(self, after: int) -> None:
        i, j = nearest_pair(self.signatures)
        counts = [len(row) for row in self.rows]
        self.merged.append({"after": after, "tasks": [self.rows[i], self.rows[j]]})
        self.rows = merge_groups(self.rows, i, j)
        self.past = merged(self.past, counts, i, j)
        own = self.method.signature == "adapter"
        self.signatures = self.past if own else merged(self.signatures, counts, i, j)
        if self.decomposition is not None:
            self.decomposition.merge(i, j)
        if self.decomposition is not None or self.method.query == "live":
            self.lora.rewrite_kept(lambda bank: merged(bank, counts, i, j))

    def _tree(self) -> Node:
        signatures = self.signatures
        if self.method.signature == "reference":  # the released code plants it over the changes from task to task
            signatures = torch.cat([signatures[:1], signatures.diff(dim=0)])
        return build(signatures, self.method.similarity, self.method.split)

    def _signature(self) -> Tensor:
        """The current task's running signature."""
        kinds = {"adapter": self.displacement, "gradient": self.gradient, "reference": self.reference}
        return kinds[self.method.signature]

    def _live(self) -> Tensor:
        return self._stacked([down.detach() for down in self.downs])

    def _stacked(self, layers: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        missing = [self.numbers - layer.numel() for layer in layers]
        rows = [layer.flatten() for layer in layers]
        return torch.stack([pad(row, (0, less)) if less else row for row, less in zip(rows, missing, strict=True)])

    def state(self) -> dict[str, Any]:
        """What is kept of the past tasks, and what is told of them."""
        kept = {"past": self.past, "rows": self.rows, "growth": self.growth, "pulls": self.pulls}
        if self.method.signature != "adapter":
            kept["signatures"] = self.signatures
        return {**kept, "merged": self.merged, "ratios": self.ratios}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.past = state["past"].to(self.bench.device)
        self.signatures = state["signatures"].to(self.bench.device) if "signatures" in state else self.past
        self.rows, self.growth, self.pulls = state["rows"], state["growth"], state["pulls"]
        self.merged, self.ratios = state["merged"], state["ratios"]

    def notes(self) -> dict[str, Any]:
        """The tree before each task and after the last, what was pulled in each epoch, what was merged, the ratios."""
        final = {"task": None, "arms": self.rows, "root": self._tree().to_json()}
        layers = [layer.name for layer in self.lora.layers]
        tree = {"layers": layers, "growth": [*self.growth, final], "pulls": self.pulls, "merged": self.merged}
        return {"tree": tree, "gradient_ratio": self.ratios}

    def marks(self) -> list[str]:
        """Whether the penalty did nothing."""
        mean = sum(self.ratios) / max(1, len(self.ratios))
        inactive = bool(self.ratios) and mean < INACTIVE
        return [f"penalty inactive: its gradient is {mean:.1g} of the task's"] if inactive else []
