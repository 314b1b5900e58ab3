"""GEM: a LoRA whose every step must not raise the loss on any past task's kept samples."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import quadprog
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._buffer import too_few
from clbench.methods._gradients import at_once, evaluating, row_gradients
from clbench.methods._memory import TaskMemory, seen_mask
from clbench.methods._projection import Projected, Projection
from clbench.model import Classifier
from clbench.padding import trimmed
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream

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


def _cut(tensors: Sequence[Tensor], size: int, dimension: int) -> Iterator[tuple[Tensor, ...]]:
    """All tensors in pieces of `size` along a dimension."""
    return zip(*(tensor.split(size, dimension) for tensor in tensors), strict=True)


class _Constraints(Projection):
    def __init__(self, method: GEM, bench: Workbench) -> None:
        super().__init__(method.projected)
        self.method, self.bench = method, bench
        self.memory = TaskMemory(method.buffer_samples)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the memory out; its samples see the logits of all classes so far."""
        self.draws = self.bench.generator("draws", strategy.task_index)
        self.seen = seen_mask(strategy)
        self.kept = self.memory.stacked() if len(self.memory) else None
        self.moved: tuple[Tensor, ...] | None = None

    def prepare(self, strategy: Strategy) -> bool:
        """Take the gradient of each past task's loss."""
        if self.kept is None:
            return False
        with evaluating(strategy.model), strategy.autocast(cached=False):
            self.references = self._references(strategy, *self._looked_at(strategy.device))
        return True

    def _looked_at(self, device: torch.device) -> tuple[Tensor, ...]:
        """All that is kept, moved to the device once, or this step's share of it for each task `[tasks, share, …]`."""
        assert self.kept is not None
        tasks, most = self.kept[2].shape
        share = most if self.method.reference_batch is None else max(1, self.method.reference_batch // tasks)
        if share < most:
            return tuple(tensor.to(device, non_blocking=True) for tensor in self._drawn(share))
        if self.moved is None:
            self.moved = tuple(tensor.to(device) for tensor in self.kept)
        return self.moved

    def _drawn(self, share: int) -> tuple[Tensor, Tensor, Tensor]:
        """`share` samples of each task, those that are present first."""
        assert self.kept is not None
        inputs, targets, present = self.kept
        chance = torch.rand(present.shape, generator=self.draws)
        picks = chance.masked_fill(~present, -1).topk(share, dim=1).indices
        rows = torch.arange(len(present))[:, None]
        x, y = trimmed(inputs[rows, picks].flatten(0, 1), targets[rows, picks].flatten(0, 1))
        return x.unflatten(0, picks.shape), y.unflatten(0, picks.shape), present[rows, picks]

    def _references(self, strategy: Strategy, inputs: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Gradients `[tasks, numbers]`, as many samples at once as the memory is for; images all."""
        model: Classifier = strategy.model
        size = at_once(strategy.recipe, inputs[0], present.numel())
        counts = present.sum(1, keepdim=True).expand(present.shape)

        def loss(logits: Tensor, targets: Tensor, present: Tensor, counts: Tensor) -> Tensor:
            losses = model.losses(logits, targets, self.seen)
            return (losses * present).sum() / counts[0]

        found = []
        for rows in _cut((inputs, targets, present, counts), max(1, size // present.shape[1]), 0):
            pieces = [row_gradients(model, loss, *piece) for piece in _cut(rows, size, 1)]
            found.append(functools.reduce(torch.add, pieces))
        return torch.cat(found)

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

    Of text a sample's loss is the mean over its answer's tokens, and rows that repeat are kept once. A step
    that looks at all that is kept costs that many sequences more: for large models give `reference_batch`,
    such as 4 a task.
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

    def unsupported(self, stream: Stream) -> str | None:
        """Fewer kept samples than tasks."""
        return too_few("buffer_samples", self.buffer_samples, len(stream), "tasks")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the constraints."""
        bench.lora()
        return [_Constraints(self, bench)]
