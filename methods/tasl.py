"""TaSL: after each task, merge the new LoRA with the past one unit by unit, as each mattered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.adapters.lora import LoRA, LoRALinear
from clbench.method import Method, Resources, Search, Workbench
from clbench.strategy import Plugin, Strategy

Units = Literal["matrix", "rank1"]


def unit_indices(layers: Sequence[LoRALinear], units: Units) -> Tensor:
    """The unit of each number of all layers' `down` and `up` in turn, int64 `[numbers]`, on the CPU.

    "matrix": each part's A and each part's B. "rank1": row r of A with column r of B; of unit u, A's
    numbers have index 2u and B's 2u + 1.
    """
    found, first = [], 0
    for layer in layers:
        parts = torch.arange(len(layer.bounds))
        ranks = torch.arange(layer.rank) if units == "rank1" else torch.zeros(layer.rank, dtype=torch.int64)
        each = layer.rank if units == "rank1" else 1
        pairs = first + 2 * (parts[:, None] * each + ranks)  # [parts, rank]
        found.append(pairs.flatten()[:, None].expand(layer.down.shape).flatten())
        found.append(1 + pairs.repeat_interleave(torch.tensor(layer.sizes), dim=0).flatten())
        first += 2 * each * len(parts)
    return torch.cat(found)


def to_unit_range(scores: Tensor) -> Tensor:
    """Min-max to [0, 1]; zeros where all are equal."""
    low, high = scores.aminmax()
    return (scores - low) / (high - low).clamp(min=torch.finfo(scores.dtype).tiny)


def unit_scores(values: Tensor, groups: Tensor, units: Units) -> Tensor:
    """Scores in [0, 1] of the units from importances `[numbers]`, by the mean over each matrix.

    A rank-1 unit's is the mean of the outer product of its row's and its column's importances, which is the
    product of the means. float64 on the CPU, where sums have one order.
    """
    sums = torch.bincount(groups, weights=values.double().cpu())
    means = sums / torch.bincount(groups)
    return to_unit_range(means if units == "matrix" else means[::2] * means[1::2])


def case_shares(past: Tensor, current: Tensor, method: TaSL) -> Tensor:
    """How much of each unit is the new task's: the four cases of what is important to whom, `[units]`."""
    before, now = (scores >= scores.quantile(1 - method.important_share) for scores in (past, current))
    shares = torch.full_like(current, method.neither_share)
    shares[before], shares[now], shares[before & now] = 0.0, 1.0, method.both_share
    return shares


class _Consolidation(Plugin):
    def __init__(self, method: TaSL, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.method, self.factors = method, list(lora.parameters())
        self.groups = unit_indices(lora.layers, method.units)
        self.history: Tensor | None = None
        """Running scores of the past, float64 `[units]`."""

    def _flat(self) -> Tensor:
        return torch.cat([factor.detach().flatten() for factor in self.factors])

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Remember where the task starts: the past's consolidated weights."""
        self.start = self._flat()
        self.level, self.spread = torch.zeros_like(self.start), torch.zeros_like(self.start)

    @torch.no_grad()
    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Running mean of the sensitivity, and of how far it strays from it."""
        gradients = [torch.zeros_like(factor) if factor.grad is None else factor.grad for factor in self.factors]
        change = self._flat() * torch.cat([gradient.flatten() for gradient in gradients])
        if self.method.units == "rank1":
            change = change - change.square() / 2
        sensitivity = change.abs()
        self.level.lerp_(sensitivity, 1 - self.method.level_decay)
        self.spread.lerp_((sensitivity - self.level).abs(), 1 - self.method.spread_decay)

    @torch.no_grad()
    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Merge, and take the task's scores into the past's."""
        method = self.method
        scores = unit_scores(self.level * self.spread, self.groups, method.units)
        if self.history is None:
            self.history = scores
            return
        if method.units == "matrix":
            shares = case_shares(self.history, scores, method)[self.groups]
        else:
            weights = (torch.stack([self.history, scores]) / method.temperature).softmax(0)
            shares = weights[1][self.groups // 2]
        merged = torch.lerp(self.start, self._flat(), shares.to(self.start))
        for factor, piece in zip(self.factors, merged.split([f.numel() for f in self.factors]), strict=True):
            factor.copy_(piece.view_as(factor))
        self.history = to_unit_range(method.history_share * scores + (1 - method.history_share) * self.history)

    def state(self) -> dict[str, Any]:
        """The running scores."""
        return {"history": self.history}

    def load_state(self, state: dict[str, Any]) -> None:
        """The running scores."""
        self.history = state["history"]


class TaSL(Method):
    """Feng et al., ACL 2024: one LoRA learns on, and is merged with what it was, unit by unit.

    A number's importance in a task is Ī·U with the sensitivity I = |θ ∂L/∂θ|, its running mean Ī and the
    running mean U of |I - Ī|. A unit, each A and each B of a projection, scores the mean over its numbers, scaled to
    [0, 1] over all units; the best `important_share` are important. What is important to one side only is
    taken from it; what is to both is mixed 0.3 new + 0.7 past; what is to neither, in equal shares. The past's
    scores are a running mean, 0.3 new + 0.7 past, scaled again. The merged LoRA is tested and trained on.

    `units="rank1"` is TasLoRA (Feng et al. 2025): a unit is a row of A with its column of B, I is of
    second order |θg - (θg)²/2|, and the shares are softmax([past, new scores] / `temperature`).

    The head is not merged: with the loss over the current classes its old rows stay. The gradient is the
    whole batch's, read before the step.
    """

    name = "tasl"
    paper = "Feng et al. 2024"

    units: Units = Field(default="matrix", description="matrix: TaSL; rank1: TasLoRA")
    important_share: Annotated[float, Search(0.05, 0.5, log=False)] = Field(
        default=0.2, gt=0, le=1, description="best units that count as important (matrix)"
    )
    both_share: float = Field(default=0.3, ge=0, le=1, description="of the new where both need it (matrix)")
    neither_share: float = Field(default=0.5, ge=0, le=1, description="of the new where neither needs it (matrix)")
    temperature: Annotated[float, Search(0.05, 1.0)] = Field(default=0.25, gt=0, description="τ (rank1)")
    history_share: float = Field(default=0.3, ge=0, le=1, description="of the new in the running scores")
    level_decay: float = Field(default=0.85, ge=0, lt=1, description="β1, of the mean sensitivity")
    spread_decay: float = Field(default=0.85, ge=0, lt=1, description="β2, of its spread")

    def resources(self) -> Resources:
        """One score a unit, whatever the number of tasks."""
        return Resources(stored_mib_per_task=1.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its consolidation."""
        return [_Consolidation(self, bench, bench.lora())]
