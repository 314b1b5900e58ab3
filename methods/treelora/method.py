"""TreeLoRA, plain form: one LoRA through all tasks, drawn towards the past task most like the current one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.adapters.lora import LoRA
from clbench.method import Method, Resources, Workbench
from clbench.method import Search as Range
from clbench.methods.treelora.bandit import Bandit, Search
from clbench.methods.treelora.penalty import alignment_penalty, l1_penalty, l1_scale, ramp
from clbench.methods.treelora.tree import Similarity, Split, build
from clbench.seeding import derive
from clbench.strategy import Plugin, Strategy


class _Guidance(Plugin):
    """Search and penalty. Tensors of the past are `[tasks, layers, numbers]`, of the present `[layers, numbers]`."""

    def __init__(self, method: TreeLoRA, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.downs = lora.downs()
        self.past = torch.empty(0, len(self.downs), self.downs[0].numel(), device=bench.device)
        """Displacements of the past tasks, what the penalty draws to."""
        self.signatures = self.past
        """What tree and bandit compare: the displacements, or mean gradients."""
        self.bandit: Bandit | None = None
        self.growth: list[dict[str, Any]] = []
        self.shares: list[list[list[float]]] = []

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Remember where A starts; plant the tree of the past tasks and begin a new search on it."""
        self.start = self._live().detach().clone()
        self.displacement = torch.zeros_like(self.start)
        self.gradient = torch.zeros_like(self.start)
        self.steps = 0
        self.bandit = None
        if not len(self.past):
            return
        method = self.method
        tree = build(self.signatures, method.similarity, method.split)
        self.growth.append(tree.to_json())
        seed = derive(self.bench.seed, "treelora search", strategy.task_index)
        self.bandit = Bandit(tree, self.signatures, exploration=method.exploration, search=method.search, seed=seed)
        self.scale = l1_scale(self.past)

    def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Forget the pulls at each epoch where the released code's choice is asked for."""
        self.epoch_start = self.steps
        if self.method.reset == "epoch" and self.bandit is not None:
            self.bandit.reset()

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """One pull a layer, then the penalty towards what was pulled."""
        moved = self._live() - self.start
        self.steps += 1
        self.displacement.lerp_(moved.detach(), 1 / self.steps)
        if self.bandit is None:
            return
        method = self.method
        pull = self.bandit.pull(self.displacement if method.signature == "adapter" else self.gradient)
        weight = method.penalty_weight
        if method.penalty == "none" or not weight:
            return
        if method.ramp:
            weight *= ramp(self.steps - 1 - self.epoch_start, len(strategy.dataloader))
        towards = pull.signatures
        if method.signature == "gradient":
            towards = self.past[pull.arms, torch.arange(len(self.downs), device=self.past.device)]
        if method.penalty == "l1":
            strategy.loss += weight * l1_penalty(moved, towards, self.scale)
        else:
            strategy.loss += weight * alignment_penalty(moved, towards, strategy.loss.squeeze())

    def after_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The running mean of A's gradient, where it is the signature."""
        if self.method.signature == "gradient":
            now = torch.stack([down.grad.flatten() for down in self.downs if down.grad is not None])
            self.gradient.lerp_(now, 1 / self.steps)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the task's signature."""
        if self.bandit is not None:
            self.shares.append(self.bandit.pull_shares().tolist())
            self.bandit = None
        mine = self.displacement if self.method.signature == "adapter" else self.gradient
        self.signatures = torch.cat([self.signatures, mine[None]])
        same = self.method.signature == "adapter"
        self.past = self.signatures if same else torch.cat([self.past, self.displacement[None]])

    def _live(self) -> Tensor:
        return torch.stack([down.flatten() for down in self.downs])

    def state(self) -> dict[str, Any]:
        """What is kept of the past tasks."""
        kept = {"signatures": self.signatures, "growth": self.growth, "shares": self.shares}
        return kept if self.method.signature == "adapter" else {**kept, "past": self.past}

    def load_state(self, state: dict[str, Any]) -> None:
        """What was kept of the past tasks."""
        self.signatures = state["signatures"].to(self.bench.device)
        self.past = state["past"].to(self.bench.device) if "past" in state else self.signatures
        self.growth, self.shares = state["growth"], state["shares"]

    def notes(self) -> dict[str, Any]:
        """The tree before each task, and the share of pulls `[layers][past tasks]` in each."""
        return {"tree_growth": self.growth, "pull_shares": self.shares}


class TreeLoRA(Method):
    """Qian et al., ICML 2025, arXiv 2506.10355, section 3, in its plain form (also the LLM form).

    A task's signature is the mean over its steps of how far the LoRA's A has moved since the task's
    start; a tree splits the past tasks by their signatures, a level a layer; at each step a bandit
    pulls one past task a layer, and the penalty draws A's displacement towards the pulled ones.

    Departures: the signature is the displacement everywhere (the released code keeps raw weights,
    which would favour the latest task of a carried adapter); a node's own mean takes part in its
    bound (`bandit`); the penalty is scaled so that its weight is in units of the loss (`penalty`);
    exploration is 0.1, because residuals lie in [0, 1] here and the paper's 2 plays nearly at
    random on them for hundreds of steps. A signature of gradients is the mean gradient of the whole
    loss, the penalty's pull included: without it a second backward pass would be needed. With
    `penalty_weight=0` the weights equal seqlora's to the bit.
    """

    name = "treelora"
    paper = "Qian et al. 2025"

    signature: Literal["adapter", "gradient"] = Field(default="adapter", description="what tree and bandit compare")
    similarity: Similarity = Field(default="l1", description="of a task to its group: paper or released code")
    split: Split = Field(default="radius", description="a node's rule: the paper's, or the principal direction")
    search: Search = Field(default="lcb", description="how a past task is chosen in each layer")
    exploration: Annotated[float, Range(0.02, 2)] = Field(default=0.1, ge=0, description="c of the confidence bound")
    penalty: Literal["l1", "alignment", "none"] = Field(default="l1", description="equation 3, or the released code's")
    penalty_weight: Annotated[float, Range(0.01, 5)] = Field(default=0.1, ge=0, description="λ, in units of the loss")
    ramp: bool = Field(default=False, description="raise λ linearly within each epoch, as the released code does")
    reset: Literal["task", "epoch"] = Field(default="task", description="when the pulls are forgotten")
    depth: int | None = Field(default=None, ge=1, description="adapt only the first so many blocks; all when not given")

    def resources(self) -> Resources:
        """One signature a task (two with gradients)."""
        return Resources(stored_mib_per_task=32.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its guidance."""
        return [_Guidance(self, bench, bench.lora(self.depth))]
