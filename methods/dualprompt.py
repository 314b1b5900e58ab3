"""DualPrompt: prefixes shared by all tasks, and prefixes of each task, found again by a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.prefix import TaskPrefixes, by_block, existing
from clbench.adapters.prompts import TaskPrompts
from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._untouched import untouched
from clbench.model import Prefixes
from clbench.strategy import Plugin, Strategy


class Complementary(nn.Module):
    """The general prefix, and the current task's or the chosen expert prefix of each sample; with the tasks' keys."""

    def __init__(self, blocks: Sequence[int], general: TaskPrompts, expert: TaskPrefixes, keys: TaskPrompts) -> None:
        super().__init__()
        self.blocks, self.general, self.expert, self.keys = tuple(blocks), general, expert, keys

    def forward(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        """Both kinds, each in its blocks."""
        general = by_block(self.blocks, self.general(len(tokens)))
        return Prefixes(attention={**general.attention, **self.expert(tokens, query).attention})


class _Keys(Plugin):
    def __init__(self, method: DualPrompt, bench: Workbench, expert: TaskPrefixes, keys: TaskPrompts) -> None:
        super().__init__()
        self.method, self.bench, self.expert, self.keys = method, bench, expert, keys

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """A new task has a key of its own; its prefix goes on from the last task's."""
        if strategy.task_index > 0:
            self.keys.restart(self.bench.generator("key", strategy.task_index))

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draw the task's key towards the queries."""
        similarity = F.cosine_similarity(untouched(strategy, strategy.mb_x), self.keys.live[None], dim=1)
        strategy.loss -= self.method.pull_weight * similarity.mean()

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the task's prefix and key."""
        self.expert.keep()
        self.keys.keep()

    @torch.no_grad()
    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Choose the prefix whose key is nearest to a sample's query."""
        query = F.normalize(untouched(strategy, strategy.mb_x), dim=1)
        nearest = (query @ F.normalize(self.keys.bank, dim=1).T).argmax(1)
        if self.method.compat_batchwise:
            nearest = nearest.mode().values.expand(len(nearest))
        strategy.inferred = nearest
        self.expert.choose(nearest)

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Back to the live prefix."""
        self.expert.choose(None)


class DualPrompt(Method):
    """Wang et al., ECCV 2022: L - λ cos(q(x), k_t), with a general prefix g and an expert prefix e_t, k_t a task.

    Attention of `general_blocks` sees [g_K; K] and [g_V; V], that of `expert_blocks` [e_K; K] and [e_V; V]
    (Eq. 4); e_t goes on from e_{t-1}, its key k_t is drawn anew. At test the key most like the query, the
    untouched backbone's features, chooses the prefix. The head is trained too.

    Text: q is the mean of the untouched backbone's last hidden states over the question's tokens; a key or value
    is as wide as those of the backbone's key heads together, and has no position; the head stays frozen.
    TreeLoRA's port, five tokens before the question, chosen by the task's true name, is not followed.

    Departures: only keys of tasks that have been learned are compared, so the pool needs no size and no
    number of tasks beforehand; common ports also compare those never trained. Those ports hand keys and
    values to the wrong halves of a batch (`compat_reshape`), or let a batch vote for one prefix at test,
    which tells the task where a batch holds one task only (`compat_batchwise`).
    """

    name = "dualprompt"
    paper = "Wang et al. 2022 (DualPrompt)"

    general_blocks: tuple[int, ...] = Field(default=(0, 1), description="blocks with the general prefix")
    expert_blocks: tuple[int, ...] = Field(
        default=(2, 3, 4), min_length=1, description="blocks with the expert prefixes"
    )
    general_length: int = Field(default=5, ge=1, description="keys, and values, of the general prefix in a block")
    expert_length: int = Field(default=20, ge=1, description="keys, and values, of an expert prefix in a block")
    pull_weight: Annotated[float, Search(0.01, 10)] = Field(default=1.0, ge=0, description="λ")
    compat_reshape: bool = Field(default=False, description="mix up keys and values over the batch, as ports do")
    compat_batchwise: bool = Field(default=False, description="at test a batch votes for one prefix, as ports do")

    @model_validator(mode="after")
    def _apart(self) -> DualPrompt:
        both = sorted({*self.general_blocks} & {*self.expert_blocks})
        if both:
            raise ValueError(f"block {both[0]} must not be among both general_blocks and expert_blocks")
        return self

    def resources(self) -> Resources:
        """A prefix and a key a task."""
        return Resources(stored_mib_per_task=32.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Put both kinds of prefixes into the attention."""
        model = bench.model
        experts, generals = (existing(model, blocks) for blocks in (self.expert_blocks, self.general_blocks))
        width, draws = model.prefix_width, bench.generator("expert")
        expert = TaskPrefixes(experts, self.expert_length, width, draws, self.compat_reshape)
        general = TaskPrompts((len(generals), 2, self.general_length, width), bench.generator("general"))
        keys = TaskPrompts((model.width,), bench.generator("key", 0))
        model.prefixer = Complementary(generals, general, expert, keys).to(bench.device)
        return [_Keys(self, bench, expert, keys)]
