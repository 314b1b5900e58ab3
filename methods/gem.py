"""GEM: a LoRA whose every step must not raise the loss on any past task's kept samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import quadprog
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._gradients import autocast, evaluating, row_gradients
from clbench.methods._memory import TaskMemory, masked_cross_entropy, seen_mask
from clbench.methods._projection import Projected, Projection
from clbench.strategy import Plugin, Strategy

_TINY = 1e-18
"""Below this a gradient has no direction; its square is still a float32."""


def multipliers(products: NDArray[Any], slopes: NDArray[Any], margin: float, ridge: float) -> NDArray[Any]:
    """The dual: v of min ½ v'(MM' + ridge)v + (Mg)'v with v ≥ margin.

    `products` MM' `[tasks, tasks]`, `slopes` Mg `[tasks]`, both float64. quadprog minimises ½ x'Gx - a'x
    with C'x ≥ b, so a is -Mg and C the identity.
    """
    tasks = len(slopes)
    identity = torch.eye(tasks, dtype=torch.float64).numpy()
    lowest = torch.full((tasks,), margin, dtype=torch.float64).numpy()
    solved: NDArray[Any] = quadprog.solve_qp(products + ridge * identity, -slopes, identity, lowest)[0]
    return solved


def correction(direction: Tensor, references: Tensor, margin: float, ridge: float) -> Tensor | None:
    """M'v, what is added to `direction` `[numbers]` so that it agrees with all `references` `[tasks, numbers]`.

    None where it agrees already. Direction and references are taken at unit length: v's bounds then mean
    the same whatever the gradients' size. Waits once for the device, to solve the dual on the CPU.
    """
    size = torch.linalg.vector_norm(direction)
    rows, unit = F.normalize(references, dim=1, eps=_TINY), direction / size.clamp(min=_TINY)
    known = (rows @ torch.cat([rows, unit[None]]).T).cpu().double().numpy()
    products, slopes = known[:, :-1], known[:, -1]
    if not (slopes < 0).any():
        return None
    found = torch.from_numpy(multipliers(products, slopes, margin, ridge)).to(rows)
    added: Tensor = size * (found @ rows)
    return added


class _Constraints(Projection):
    def __init__(self, method: GEM, bench: Workbench) -> None:
        super().__init__(method.projected)
        self.method, self.bench = method, bench
        self.memory = TaskMemory(method.buffer_samples)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Put the memory on the device; its samples see the logits of all classes so far."""
        self.draws = self.bench.generator("draws", strategy.task_index)
        self.seen = seen_mask(strategy)
        self.kept = self.memory.stacked(strategy.device) if len(self.memory) else None

    def prepare(self, strategy: Strategy) -> bool:
        """Take the gradient of each past task's loss, all tasks at once."""
        if self.kept is None:
            return False
        inputs, targets, present = self._drawn(*self.kept)
        with evaluating(strategy.model), autocast(strategy):
            self.references = row_gradients(strategy.model, self._loss, inputs, targets, present)
        return True

    def _drawn(self, inputs: Tensor, targets: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All that is kept, or this step's share of it for each task `[tasks, share, …]`."""
        tasks, most = present.shape
        share = most if self.method.reference_batch is None else max(1, self.method.reference_batch // tasks)
        if share >= most:
            return inputs, targets, present
        chance = torch.rand(tasks, most, generator=self.draws).to(present.device, non_blocking=True)
        picks = chance.masked_fill(~present, -1).topk(share, dim=1).indices
        rows = torch.arange(tasks, device=picks.device)[:, None]
        return inputs[rows, picks], targets[rows, picks], present[rows, picks]

    def _loss(self, logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        losses = masked_cross_entropy(logits, targets, self.seen, reduction="none")
        return (losses * present).sum() / present.sum()

    def correction(self, direction: Tensor) -> Tensor | None:
        """M'v."""
        return correction(direction, self.references, self.method.margin, self.method.ridge)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep some of the task."""
        self.memory.add(strategy.examples, self.bench.generator("memory", strategy.task_index))

    def kept_samples(self) -> int:
        """Samples in the memory."""
        return len(self.memory)

    def state(self) -> dict[str, Any]:
        """The memory."""
        return self.memory.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The memory."""
        self.memory.load_state(state)


class GEM(Method):
    """Lopez-Paz & Ranzato, NeurIPS 2017: g̃ = argmin ½|g̃ - g|² with ⟨g̃, g_k⟩ ≥ 0 for every past task k.

    g_k is the gradient of the loss on what is kept of task k, at the weights of the step. It is solved in
    the dual: g̃ = g + M'v, v ≥ `margin`, and only where g disagrees with some g_k.

    Departures. The applied update is projected, not the gradient, because Adam would bend a projected
    gradient back; `projected="gradient"` is the paper's, meant for SGD. g and all g_k are taken at unit
    length, because the ridge of the released code (1e-3 on MM') is larger than MM' of a LoRA and so
    switches the projection off; ⟨g̃, g_k⟩ ≥ -`ridge`·v_k is what holds, in those units. `margin` is 0.05,
    as Qian et al. (2025) have it for ViTs: the paper's 0.5 is for gradients of their own length, of which
    those of learned tasks are short. The memory is a total, shared out evenly over the tasks so far
    (released code: 256 samples a task), drawn at random (released code: the last ones). One head for all
    tasks, whose seen classes the kept samples compete in.
    """

    name = "gem"
    paper = "Lopez-Paz & Ranzato 2017"

    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    reference_batch: int | None = Field(
        default=None, ge=1, description="kept samples a step looks at, shared by the past tasks; all when not given"
    )
    margin: Annotated[float, Search(0.0, 1.0, log=False)] = Field(
        default=0.05, ge=0, description="least v, in unit gradients: 'memory strength'"
    )
    ridge: float = Field(default=1e-3, ge=1e-5, description="added to MM' of unit gradients, so that v is unique")
    projected: Projected = Field(default="update", description="the optimiser's update, or the gradient before it")

    def resources(self) -> Resources:
        """The memory; its samples are looked at in each step."""
        looked_at = min(self.buffer_samples, self.reference_batch or self.buffer_samples)
        return Resources(buffer_samples=self.buffer_samples, replay_batch=looked_at, stored_mib_per_task=256.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the constraints."""
        bench.lora()
        return [_Constraints(self, bench)]
