"""L2P: prompts from a shared pool, chosen for each sample by its frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from clbench.adapters.prompts import PromptPool
from clbench.method import Method, Resources, Search, Workbench
from clbench.strategy import Plugin, Strategy


class _Pull(Plugin):
    def __init__(self, pool: PromptPool, weight: float) -> None:
        super().__init__()
        self.pool, self.weight = pool, weight
        self.used = torch.zeros(len(pool.keys), dtype=torch.int64, device=pool.keys.device)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draw the chosen keys towards the queries and count how often each prompt is used."""
        assert self.pool.pull is not None
        assert self.pool.chosen is not None
        strategy.loss -= self.weight * self.pool.pull
        chosen = self.pool.chosen.flatten()
        self.used.index_add_(0, chosen, torch.ones_like(chosen))  # bincount would wait for the device

    def state(self) -> dict[str, Any]:
        """How often each prompt was used."""
        return {"used": self.used}

    def load_state(self, state: dict[str, Any]) -> None:
        """How often each prompt was used."""
        self.used = state["used"].to(self.used.device)

    def notes(self) -> dict[str, Any]:
        """Share of uses of each prompt."""
        total = max(1, int(self.used.sum()))
        return {"prompt_usage": [round(count / total, 4) for count in self.used.tolist()]}


class L2P(Method):
    """Wang et al., CVPR 2022: L - λ mean_b Σ_m cos(q, k_m) over the `top` nearest keys; the head is trained too.

    Text: q is the mean of the untouched backbone's last hidden states over the question's tokens, the prompts
    stand before its first token, and the head stays frozen. TRACE's port, whose query holds padding and, while
    it learns, the answer, and whose keys are never trained, is not followed.

    Departures: prompts are chosen for each sample alone, in training and at test. The common code
    lets a batch vote, also at test, which leaks the task where a batch holds one task only
    (`compat_batchwise`). The paper's frequency penalty is in no released code and not here; usage is recorded
    instead.
    """

    name = "l2p"
    paper = "Wang et al. 2022"

    pool: int = Field(default=10, ge=1, description="prompts in the pool")
    length: int = Field(default=5, ge=1, description="tokens of a prompt")
    top: int = Field(default=5, ge=1, description="prompts chosen for a sample; 3 for text")
    pull_weight: Annotated[float, Search(0.01, 1.0)] = Field(default=0.1, ge=0, description="λ; 0.5 for text")
    compat_batchwise: bool = Field(default=False, description="a batch votes for its prompts, as ports do")

    @model_validator(mode="after")
    def _fits(self) -> L2P:
        if self.top > self.pool:
            raise ValueError(f"top ({self.top}) must not be above pool ({self.pool})")
        return self

    def resources(self) -> Resources:
        """The pool does not grow."""
        return Resources(stored_mib_per_task=0.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Freeze the backbone and put the pool before it."""
        model = bench.model
        sizes, draws = (self.pool, self.length, self.top, model.width), bench.generator("pool")
        pool = PromptPool(*sizes, draws, self.compat_batchwise)
        model.prompter = pool.to(bench.device)
        return [_Pull(pool, self.pull_weight)]
