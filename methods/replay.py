"""Replay: a LoRA trained on kept samples of past tasks, with each batch or after each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clbench import padding
from clbench.method import Method, Resources, Workbench
from clbench.methods._buffer import Buffer, Policy, distinct, too_small
from clbench.methods._memory import join, part, seen_mask, share
from clbench.strategy import Plugin, Strategy
from clbench.stream import Examples, Stream
from clbench.terms import HeadMasking


class _Rehearsal(Plugin):
    def __init__(self, method: Replay, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.buffer = Buffer(method.buffer_samples, method.policy)
        self.generator = bench.generator("draws", 0)

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draws depend on seed and task alone, so that a resumed run draws the same."""
        self.generator = self.bench.generator("draws", strategy.task_index)
        self.current = strategy.allowed
        self.seen = seen_mask(strategy)

    def before_training_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """A batch may be taken in several passes."""
        self.whole = len(strategy.mb_y)

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Join kept samples to the batch; they see the logits of all classes so far."""
        count = share(self.method.joined, strategy, self.whole) if len(self.buffer) else 0
        self.apart: Tensor | None = None
        if not count:
            return
        kept_inputs, kept_targets = self.buffer.draw(count, self.generator, strategy.device)
        if self.method.buffer_weight is not None:
            self.apart = kept_targets
            join(strategy, kept_inputs)
            return
        inputs, targets, tasks = strategy.mbatch
        strategy.mbatch = [
            padding.join([inputs, kept_inputs]),
            padding.join([targets, kept_targets]),
            torch.cat([tasks, tasks.new_full((len(kept_targets),), -1)]),
        ]
        if targets.ndim == 1:  # answers of text are open: every token is allowed
            rows = [self.current.expand(len(targets), -1), self.seen.expand(len(kept_targets), -1)]
            strategy.allowed = torch.cat(rows)

    def after_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the logits of the kept samples off the batch's where they have a mean of their own."""
        if self.apart is not None:
            (self.logits,) = part(strategy, len(self.apart))

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add λ times that mean."""
        if self.apart is not None and self.method.buffer_weight is not None:
            kept = strategy.model.losses(self.logits, self.apart, self.seen).mean()
            strategy.loss += self.method.buffer_weight * kept

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


def first_rows(examples: Examples, share: float) -> Tensor:
    """Indices of the first `share` of the examples, one at least; text that repeats an earlier row is left out."""
    rows = distinct(examples)
    return rows[rows < max(1, int(share * len(examples)))]


class _Afterwards(Plugin):
    """One more pass, over the first rows of all past tasks, when a task has been learned."""

    def __init__(self, method: Replay, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.inputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.rows: list[Tensor] = []

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Rehearse the past; only then keep some of the task."""
        if self.rows:
            self._rehearse(strategy)
        rows = first_rows(strategy.examples, self.method.share)
        inputs, targets = strategy.examples.batch(rows, torch.device("cpu"))
        self.inputs, self.targets = [*self.inputs, inputs], [*self.targets, targets]
        self.rows = [*self.rows, rows]

    def _rehearse(self, strategy: Strategy) -> None:
        """By the task's optimiser, at its highest step size: a schedule has come to its end."""
        recipe, strategy.recipe = strategy.recipe, strategy.recipe.model_copy(update={"schedule": "constant"})
        for group in strategy.optimizer.param_groups:
            group["lr"] = strategy.learning_rate
        batches: Any = self._batches(strategy)
        strategy.dataloader = batches
        strategy.train_epochs += 1
        strategy.training_epoch()
        strategy.recipe = recipe

    def _batches(self, strategy: Strategy) -> list[list[Tensor]]:
        """All that is kept, in an order that depends on seed and task alone; the tasks are mixed."""
        inputs, targets = padding.join(self.inputs), padding.join(self.targets)
        order = torch.randperm(len(targets), generator=self.bench.generator("afterwards", strategy.task_index))
        picks = order.split(strategy.train_mb_size)
        return [[*padding.trimmed(inputs[rows], targets[rows]), torch.full((len(rows),), -1)] for rows in picks]

    def kept_samples(self) -> int:
        """Samples of all tasks so far."""
        return sum(map(len, self.rows))

    def notes(self) -> dict[str, Any]:
        """Which rows of each task are kept, by the task's number from 1 and the row's from 0."""
        return {"kept_rows": {str(task): rows.tolist() for task, rows in enumerate(self.rows, 1)}}

    def state(self) -> dict[str, Any]:
        """What is kept."""
        return {"inputs": self.inputs, "targets": self.targets, "rows": self.rows}

    def load_state(self, state: dict[str, Any]) -> None:
        """What is kept."""
        self.inputs, self.targets, self.rows = state["inputs"], state["targets"], state["rows"]


class Replay(Method):
    """Experience replay (Chaudhry et al. 2019): the loss is one mean over the batch and the kept samples.

    With a `buffer_weight` λ it is CE(batch) + λ CE(kept samples), each a mean of its own. The buffer is filled after
    each task, which for several passes over a task is the reservoir's single pass. `policy` "class" keeps as many
    samples of every class, "task" of every task; text has no classes, and both are the same.

    `head_masking="current"` has the masking of ER-ACE (Caccia et al. 2022): current samples compete among the current
    classes only, kept ones among all. It is not that method: no sample of the task at hand is in the buffer, so its
    classes are never held against the old ones; see er-ace.

    `flavour="after"` is that of TRACE (Wang et al. 2023), for text: a task is learned alone, then comes one more
    pass, over the first `share` (not a random one) of the training rows of every past task, shuffled.

    A departure from the usual form: images are kept plain and come back plain, without a new augmentation.

    Departures from TRACE. The 1030 rows of LIMA that it mixes in are left out: they belong to no task, and no
    other method is given them. A row that stands among them twice is kept once: NumGLUE's are drawn again and
    again from few. A LoRA is trained, as by the other methods, not all weights.
    """

    name = "replay"
    paper = "Chaudhry et al. 2019 (ER)"

    head_masking: HeadMasking = Field(default="seen", description="of the current samples; kept ones see all classes")
    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    replay_batch: int = Field(default=32, ge=0, description="kept samples joined to each batch; 0: none")
    buffer_weight: float | None = Field(
        default=None, ge=0, description="λ of the kept samples' own mean; null: one mean over them and the batch"
    )
    policy: Policy = Field(default="class", description="how the buffer chooses")
    flavour: Literal["mixed", "after"] = Field(default="mixed", description="with each batch, or after each task")
    share: float = Field(default=0.1, gt=0, le=1, description="of a task's rows that flavour 'after' keeps")

    @property
    def joined(self) -> int:
        """How many kept samples join each batch; what comes after a task joins none."""
        return self.replay_batch if self.flavour == "mixed" and self.buffer_weight != 0 else 0

    def resources(self) -> Resources:
        """The buffer."""
        return Resources(buffer_samples=self.buffer_samples, replay_batch=self.joined, stored_mib_per_task=256.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Flavour `after` on images, and where `buffer_samples` does not hold what is kept."""
        if self.flavour == "mixed":
            return too_small(self.buffer_samples, self.policy, stream)
        if not stream.is_text:
            return "flavour 'after' keeps the first rows of a task, and images come sorted by class; use 'mixed'"
        kept = sum(max(1, int(self.share * len(task.train))) for task in stream)
        if kept <= self.buffer_samples:
            return None
        return f"flavour 'after' keeps up to {kept} rows of this stream; set buffer_samples={kept}, or a lower share"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the rehearsal."""
        bench.lora()
        return [_Rehearsal(self, bench) if self.flavour == "mixed" else _Afterwards(self, bench)]
