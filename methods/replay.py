"""Replay: a LoRA trained on each batch together with a few kept samples of past tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from clbench.method import Method, Resources, Workbench
from clbench.methods._buffer import Buffer
from clbench.strategy import Plugin, Strategy
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
        self.seen = torch.zeros_like(self.current)
        self.seen[strategy.seen_classes] = True

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Join kept samples to the batch; they see the logits of all classes so far."""
        if not len(self.buffer):
            return
        inputs, targets, tasks = strategy.mbatch
        kept_inputs, kept_targets = self.buffer.draw(self.method.replay_batch, self.generator, strategy.device)
        strategy.mbatch = [
            torch.cat([inputs, kept_inputs]),
            torch.cat([targets, kept_targets]),
            torch.cat([tasks, tasks.new_full((len(kept_targets),), -1)]),
        ]
        rows = [self.current.expand(len(targets), -1), self.seen.expand(len(kept_targets), -1)]
        strategy.allowed = torch.cat(rows)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the task into the buffer."""
        self.buffer.add(strategy.examples, self.bench.generator("buffer", strategy.task_index))

    def kept_samples(self) -> int:
        """Samples in the buffer."""
        return len(self.buffer)

    def state(self) -> dict[str, Any]:
        """The buffer."""
        return self.buffer.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The buffer."""
        self.buffer.load_state(state)


class Replay(Method):
    """Experience replay (Chaudhry et al. 2019): the loss is one mean over the batch and the kept samples.

    The buffer is filled after each task, which for several passes over a task is the reservoir's
    single pass. `head_masking="current"` is the ER-ACE variant (Caccia et al. 2022): current samples
    compete among the current classes only, kept ones among all.
    """

    name = "replay"
    paper = "Chaudhry et al. 2019 (ER)"

    head_masking: HeadMasking = Field(default="seen", description="of the current samples; kept ones see all classes")
    buffer_samples: int = Field(default=200, ge=1, description="samples kept over the whole stream")
    replay_batch: int = Field(default=32, ge=1, description="kept samples joined to each batch")
    policy: Literal["class", "reservoir"] = Field(default="class", description="how the buffer chooses")

    def resources(self) -> Resources:
        """The buffer."""
        return Resources(buffer_samples=self.buffer_samples, replay_batch=self.replay_batch, stored_mib_per_task=256.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and the rehearsal."""
        bench.lora()
        return [_Rehearsal(self, bench)]
