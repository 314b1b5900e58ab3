"""InfLoRA: LoRAs whose fixed input side lies outside the inputs of past tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.lora import LoRA
from clbench.loader import Loader
from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._decomposition import align
from clbench.methods._prototypes import open_answers
from clbench.methods._statistics import ClassStatistics
from clbench.padding import NOTHING, is_text
from clbench.seeding import derive
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream


@dataclass(frozen=True)
class Memory:
    """The input directions of past tasks at one layer (DualGPM): a basis of them, or of what is left.

    `basis` `[width, k]` has orthonormal columns. While the past takes at most half of the width it is
    stored itself ("remove"); from then on the free rest ("retain"), so k never exceeds width / 2.
    """

    basis: Tensor
    holds_past: bool = True

    def past(self) -> Tensor:
        """M: orthonormal basis `[width, m]` of the past's directions, float64."""
        return self._side(self.holds_past)

    def free(self) -> Tensor:
        """Orthonormal basis `[width, width - m]` of all others, float64."""
        return self._side(not self.holds_past)

    def _side(self, stored: bool) -> Tensor:
        basis = self.basis.double()
        return basis if stored else torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]

    def strongest(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Principal directions of `moment` `[width, width]` within the free space, strongest first.

        Returns them `[width, width - m]` and their energies `[width - m]`.
        """
        free = self.free()
        energies, vectors = torch.linalg.eigh(free.T @ moment @ free)
        return free @ vectors.flip(1), energies.flip(0).clamp(min=0)

    def grown(self, moment: Tensor, energy: float) -> Memory:
        """Takes in the strongest free directions until the past holds the share `energy` of the trace of `moment`."""
        directions, energies = self.strongest(moment)
        total, width = moment.trace(), len(moment)
        held = total - energies.sum() + torch.cat([energies.new_zeros(1), energies.cumsum(0)])
        taken = min(int((held < energy * total).sum()), len(energies))
        past_size = width - len(energies) + taken
        if past_size <= width / 2:
            return Memory(torch.cat([self.past(), directions[:, :taken]], dim=1).float())
        return Memory(directions[:, taken:].float(), holds_past=False)


@torch.no_grad()
def second_moments(strategy: Strategy, layers: Sequence[nn.Module], power: int) -> list[Tensor]:
    """Σ x x' over the task's training data, to the given power: of all tokens x that each layer is given.

    Of text those of questions and answers, and not what fills up the batch. float64 `[width, width]` a layer, for
    the model as it stands, in evaluation mode.
    """
    sums = [torch.zeros((), dtype=torch.float64, device=strategy.device) for _ in layers]
    counted: Tensor | None = None

    def listen(place: int) -> Any:
        def hear(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            tokens = given[0].flatten(0, -2).float()
            if counted is not None:
                tokens = tokens * counted
            sums[place] = sums[place] + (tokens.T @ tokens).double()

        return hear

    hooks = [layer.register_forward_pre_hook(listen(place)) for place, layer in enumerate(layers)]
    model, was_training = strategy.model, strategy.model.training
    model.eval()
    examples = strategy.examples
    unused = torch.zeros(len(examples), dtype=torch.int64)
    for inputs, *_ in Loader(examples, unused, strategy.recipe.eval_batch_size, strategy.device, None):
        counted = (inputs[:, 1] != NOTHING).flatten()[:, None] if is_text(inputs) else None
        with strategy.autocast():
            model.features(inputs)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return [torch.linalg.matrix_power(total / len(examples), power) for total in sums]


class _Interference(Plugin):
    def __init__(self, method: InfLoRA, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.method, self.bench, self.lora = method, bench, lora
        for layer in lora.layers:
            layer.down.requires_grad_(False)
        self.memories = [Memory(layer.down.new_zeros(layer.base.in_features, 0).detach()) for layer in lora.layers]

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Merge the last task's pairs and lay the new input sides into the free space."""
        if strategy.task_index > 0:
            self.lora.retire(self.bench.generator("fresh pair", strategy.task_index))
        for layer, memory, moment in zip(self.lora.layers, self.memories, self._moments(strategy), strict=True):
            rows = memory.strongest(moment)[0][:, : layer.rank].T / math.sqrt(3)
            with torch.no_grad():
                layer.down.zero_()
                layer.down.unflatten(0, (-1, layer.rank))[:, : len(rows)] = rows.to(layer.down.dtype)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the task's input directions, as they are now, into the memory."""
        method, done = self.method, strategy.task_index / self.bench.tasks_expected
        energy = method.energy_first + (method.energy_last - method.energy_first) * done
        moments = self._moments(strategy)
        self.memories = [memory.grown(moment, energy) for memory, moment in zip(self.memories, moments, strict=True)]

    def _moments(self, strategy: Strategy) -> list[Tensor]:
        return second_moments(strategy, self.lora.layers, 2 if self.method.compat_squared_moment else 1)

    def state(self) -> dict[str, Any]:
        """The memories; the factors are the model's."""
        return {"memories": [{"basis": memory.basis, "holds_past": memory.holds_past} for memory in self.memories]}

    def load_state(self, state: dict[str, Any]) -> None:
        """The memories."""
        device = self.bench.device
        self.memories = [Memory(kept["basis"].to(device), kept["holds_past"]) for kept in state["memories"]]

    def notes(self) -> dict[str, Any]:
        """The share of each layer's input space that the past has taken: at 1 nothing can be learned any more."""
        sides = [(memory.basis.shape, memory.holds_past) for memory in self.memories]
        return {"memory_share": [round((k if past else width - k) / width, 4) for (width, k), past in sides]}


class _Alignment(Plugin):
    """InfLoRA-CA: aligns the classifier after each task but the first, and takes that back before the next."""

    def __init__(self, method: InfLoRA, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.statistics = ClassStatistics(bench.model.width, bench.device, "covariance")
        self.trained = [part.detach().clone() for part in self._head()]
        """The classifier as training left it."""

    def _head(self) -> list[nn.Parameter]:
        return list(self.bench.model.get_submodule("head").parameters())

    @torch.no_grad()
    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Go on from the classifier as it was before its alignment."""
        for part, trained in zip(self._head(), self.trained, strict=True):
            part.copy_(trained)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the classifier and the task's statistics; align all known classes from the second task on."""
        self.trained = [part.detach().clone() for part in self._head()]
        task, method = strategy.task_index, self.method
        self.statistics.add(*self._features(strategy), derive(self.bench.seed, "statistics", task))
        if not task:
            return
        classes = self.statistics.classes
        weight, bias = (nn.Parameter(part.detach()[classes]) for part in self._head())
        align(
            lambda features: F.linear(features, weight, bias), [weight, bias], self.statistics,
            epochs=method.alignment_epochs, per_class=method.alignment_samples, rate=method.alignment_learning_rate,
            draws=self.bench.generator("alignment", task),
        )  # fmt: skip
        with torch.no_grad():
            for part, rows in zip(self._head(), (weight, bias), strict=True):
                part[classes] = rows

    @torch.no_grad()
    def _features(self, strategy: Strategy) -> tuple[Tensor, Tensor]:
        strategy.model.eval()
        found = []
        for inputs, targets, *_ in strategy.dataloader:
            with strategy.autocast():
                found.append((strategy.model.features(inputs).float(), targets))
        return torch.cat([features for features, _ in found]), torch.cat([targets for _, targets in found])

    def state(self) -> dict[str, Any]:
        """Statistics, and the classifier before alignment."""
        return {"statistics": self.statistics.state(), "trained": self.trained}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.statistics.load_state(state["statistics"])
        self.trained = [part.to(self.bench.device) for part in state["trained"]]


class InfLoRA(Method):
    """Liang and Li, CVPR 2024: ΔW_t = s B_t A_t with A_t fixed, A_t A_t' = I/3 and A_t M = 0; only B_t is trained.

    M spans what the layer was given in past tasks, so nothing that is learned changes the answer there.
    Before a task A_t takes the strongest directions of its inputs outside M (SVD of (I - MM')H, Eq. 9);
    afterwards M grows until it holds the share ε_t of their energy (DualGPM).

    ε_t = `energy_first` + (`energy_last` - `energy_first`) t / T with t counted from 0, as released: what
    is stored after the first task then does not depend on the number of tasks T either.

    Departures: energies and directions are those of the inputs H, as in the paper; the released code takes
    them from their second moment HH', whose energies are the squares, and so keeps fewer directions
    (`compat_squared_moment`), after the first task one fewer still than ε asks for, which the switch does not
    repeat; its moments are of augmented images, ours of plain ones. Directions are sought within a basis of the
    free space, which is the same, but A_t M = 0 holds also where the free space has fewer than `rank` dimensions:
    missing rows are zero. Rank and alpha are the recipe's (s = 1 where they are equal). The released code trains with
    the model in evaluation mode, ours in training mode: with `lora_dropout` 0 that is the same. Past pairs are merged
    into the effective weights and kept as factors; a backbone of less than 32 bits, whose weights could not hold
    them, has them applied beside it, in one product whose rank grows with the tasks.

    `alignment_epochs` above 0 is InfLoRA-CA: from the second task on the rows of all classes are trained, by SGD, on
    features drawn from N(μ_c, Σ_c + 1e-4 I), the moments of class c when its task was learned; the next task goes on
    from the rows as they were before, as in SLCA. Its logits are plain and its means unshrunk [ours].

    Of text the inputs of a task are those of its questions and answers, each token counting the same. The paper is
    about images and adapts k and v; a language model's q, k and v are given the same inputs, so any of them may be
    chosen.
    """

    name = "inflora"
    paper = "Liang and Li 2024"

    projections: tuple[str, ...] = Field(default=("k", "v"), description="projections that get a LoRA: q, k, v")
    energy_first: Annotated[float, Search(0.8, 0.99, log=False)] = Field(
        default=0.95, gt=0, le=1, description="share of a task's input energy that is protected, at the first task"
    )
    energy_last: float = Field(default=1.0, gt=0, le=1, description="the same, towards the last task")
    compat_squared_moment: bool = Field(default=False, description="take the energies squared, as the released code")
    alignment_epochs: int = Field(default=0, ge=0, description="passes of an alignment of the classifier; 0: none")
    alignment_learning_rate: float = Field(default=0.01, gt=0, description="step size of the alignment (SGD)")
    alignment_samples: int = Field(default=256, ge=1, description="features drawn a class and epoch to align")

    @model_validator(mode="after")
    def _rises(self) -> InfLoRA:
        if self.energy_last < self.energy_first:
            raise ValueError(f"energy_last ({self.energy_last}) must not be below energy_first ({self.energy_first})")
        return self

    def resources(self) -> Resources:
        """One pair of factors a task, bases of at most half the width in each layer, and what is aligned by."""
        aligned = self.alignment_epochs > 0
        mib = 2304.0 + 512.0 * aligned  # 64 bases of 4096 x 2048 are 2048
        return Resources(class_statistics=aligned, stored_mib_per_task=mib)

    def unsupported(self, stream: Stream) -> str | None:
        """Aligned: open answers, or a class in two tasks."""
        if not self.alignment_epochs:
            return None
        taught = [c for task in stream for c in task.classes]
        if len(set(taught)) < len(taught):
            return "its alignment keeps one statistic a class, and a class comes in two tasks"
        return open_answers(stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA with fixed input sides and the memory, and the alignment where there is one."""
        interference = _Interference(self, bench, bench.lora(projections=self.projections))
        return [interference, _Alignment(self, bench)] if self.alignment_epochs else [interference]
