"""Method and Workbench: the contract of an answer to continual learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from clbench.adapters.lora import LoRA, attach
from clbench.recipe import Recipe
from clbench.seeding import generator
from clbench.terms import HeadMasking, Schedule

if TYPE_CHECKING:
    import torch
    from avalanche.core import BasePlugin

    from clbench.model import Classifier
    from clbench.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a method keeps or needs beyond the task's own data; exceeding it fails the run.

    Samples, gradients and class statistics are those that its plugins tell of; the laws look for samples that
    nobody told of, too.
    """

    buffer_samples: int = 0
    """Training samples kept after their task, over the whole stream."""
    replay_batch: int = 0
    """Kept samples added to each training batch. Declared only: methods pass them through the model in ways of
    their own, with the batch or apart from it, so that the harness cannot count them."""
    class_statistics: bool = False
    """Whether means, covariances or the like of the features of past classes, or of past tasks, are kept."""
    stored_gradients: int = 0
    """Gradients kept of each past task, as vectors over what is trained. Averages that a method keeps in their
    stead are weights like any others: they count among the stored bytes."""
    task_id_at_test: bool = False
    """Whether the true task is asked for at test; without it, shuffled task labels must change no answer."""
    stored_mib_per_task: float = 1.0
    """How much the stored bytes may grow from one task to the next."""


@dataclass(frozen=True)
class Search:
    """The range in which `clbench tune` looks for a field, as metadata: `Annotated[float, Search(…)]`."""

    low: float
    high: float
    log: bool = True


@dataclass(frozen=True)
class Workbench:
    """What a method is given to build its answer from. There is no test data on it."""

    model: Classifier
    recipe: Recipe
    device: torch.device
    tasks_expected: int
    seed: int

    def lora(self, blocks: int | None = None, projections: Sequence[str] | None = None) -> LoRA:
        """Freeze the backbone and attach the recipe's LoRA to its first `blocks` blocks (all: None).

        `projections` take the place of the recipe's `lora_sites`. Every method that calls this with the same
        arguments, recipe and seed starts from the same weights. Raises BadValue for a projection that the
        backbone lacks.
        """
        recipe = self.recipe
        sites = recipe.lora_sites if projections is None else projections
        draws, dropout = generator(self.seed, "lora"), recipe.lora_dropout
        return attach(self.model, sites, recipe.lora_rank, recipe.lora_alpha, draws, blocks, dropout)

    def generator(self, *words: str | int) -> torch.Generator:
        """A random generator of the method's own, so that it never disturbs another's numbers."""
        return generator(self.seed, "method", *words)


class Method(BaseModel, ABC):
    """An answer to continual learning: its fields are the hyper-parameters, its plugins the behaviour.

    Fields are validated, become `--set NAME.field=value` on the command line and are stored in the
    record. A subclass names itself and its paper and returns Avalanche plugins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    schedule: ClassVar[Schedule] = "sequential"
    """`joint`: the union once; `first`: the first task, the plugins see each later one once; `none`: no optimisation,
    the plugins see each task once."""

    learning_rate: float | None = Field(default=None, gt=0, description="step size; the recipe's when not given")
    epochs: int | None = Field(default=None, ge=1, description="passes over a task; the recipe's when not given")
    head_masking: HeadMasking = Field(default="current", description="logits in the training loss: current or seen")

    @abstractmethod
    def plugins(self, bench: Workbench) -> Sequence[BasePlugin[Any]]:
        """Attach what is trained to `bench.model` and return the behaviour."""

    def compat(self) -> tuple[str, ...]:
        """The deviations of other code that are switched on: fields called `compat_…`; they mark the protocol."""
        fields = [name for name in type(self).model_fields if name.startswith("compat_")]
        return tuple(name.removeprefix("compat_") for name in fields if getattr(self, name))

    def resources(self) -> Resources:
        """What is kept or needed beyond the task's own data."""
        return Resources()

    def unsupported(self, stream: Stream) -> str | None:
        """Why this method cannot be used on `stream`; None when it can."""
        return None
