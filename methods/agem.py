"""A-GEM: a LoRA whose every step must not raise the loss on a batch of past tasks' samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench.method import Method, Resources, Workbench
from clbench.methods._buffer import Buffer, too_small
from clbench.methods._gradients import at_once, evaluating, flat
from clbench.methods._memory import seen_mask
from clbench.methods._projection import Projected, Projection
from clbench.model import Classifier
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream


def correction(direction: Tensor, reference: Tensor) -> Tensor:
    """-(⟨g, r⟩ / |r|²) r where ⟨g, r⟩ < 0, else exactly zero; both `[numbers]`. Never waits."""
    against = torch.dot(direction, reference).clamp(max=0)
    return -(against / reference.square().sum().clamp(min=torch.finfo(reference.dtype).tiny)) * reference


class _Constraint(Projection):
    def __init__(self, method: AGEM, bench: Workbench) -> None:
        super().__init__(method.projected)
        self.method, self.bench = method, bench
        self.buffer = Buffer(method.buffer_samples, method.policy)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draws depend on seed and task alone; kept samples see the logits of all classes so far."""
        self.draws = self.bench.generator("draws", strategy.task_index)
        self.seen = seen_mask(strategy)

    def prepare(self, strategy: Strategy) -> bool:
        """Take the gradient of the loss on a batch of the union of all that is kept."""
        if not len(self.buffer):
            return False
        inputs, targets = self.buffer.draw(self.method.reference_batch, self.draws, strategy.device)
        with evaluating(strategy.model):
            size = at_once(strategy.recipe, inputs, len(inputs))
            pieces = zip(inputs.split(size), targets.split(size), strict=True)
            self.reference = functools.reduce(torch.add, (self._gradient(strategy, *p, len(inputs)) for p in pieces))
        return True

    def _gradient(self, strategy: Strategy, inputs: Tensor, targets: Tensor, whole: int) -> Tensor:
        """Of the loss on some of a batch of `whole`, by their share of it."""
        model: Classifier = strategy.model
        with strategy.autocast(cached=False):
            logits = model(inputs)
        loss = model.losses(logits.float(), targets, self.seen).mean() * (len(inputs) / whole)
        return flat(torch.autograd.grad(loss, model.trainable()))

    def correction(self, direction: Tensor) -> Tensor:
        """Along the reference gradient."""
        return correction(direction, self.reference)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the task into the buffer."""
        self.buffer.add(strategy.examples, self.bench.generator("buffer", strategy.task_index))

    def kept_samples(self) -> int:
        """Samples in the buffer."""
        return len(self.buffer)

    def notes(self) -> dict[str, Any]:
        """Which rows of text the buffer holds."""
        return self.buffer.notes()

    def state(self) -> dict[str, Any]:
        """The buffer."""
        return self.buffer.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The buffer."""
        self.buffer.load_state(state)


class AGEM(Method):
    """Chaudhry et al., ICLR 2019: g̃ = g - (⟨g, r⟩ / |r|²) r where ⟨g, r⟩ < 0.

    r is the gradient of the loss on one random batch of all that is kept, in evaluation mode, so that no
    dropout's noise is compared with. One more pass a step, whatever the number of tasks.

    Departures. The applied update is projected, not the gradient, because Adam would bend a projected
    gradient back; `projected="gradient"` is the paper's, meant for SGD. The buffer is filled after each
    task. One head for all tasks, whose seen classes the kept samples compete in. Of text every task has the
    same share of the buffer, and a sample's loss is the mean over its answer's tokens.
    """

    name = "agem"
    paper = "Chaudhry et al. 2019 (A-GEM)"

    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    reference_batch: int = Field(default=64, ge=1, description="kept samples a step looks at")
    policy: Literal["class", "reservoir"] = Field(default="class", description="how the buffer chooses")
    projected: Projected = Field(default="update", description="the optimiser's update, or the gradient before it")

    def resources(self) -> Resources:
        """The buffer; a batch of it is looked at in each step."""
        looked_at = min(self.buffer_samples, self.reference_batch)
        return Resources(buffer_samples=self.buffer_samples, replay_batch=looked_at, stored_mib_per_task=256.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Fewer kept samples than classes, of text than tasks."""
        return too_small(self.buffer_samples, self.policy, stream)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the constraint."""
        bench.lora()
        return [_Constraint(self, bench)]
