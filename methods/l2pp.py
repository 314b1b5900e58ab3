"""L2P++: prefixes from a shared pool, chosen for each sample by its frozen features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.prefix import halves
from clbench.method import Method, Resources, Search, Workbench
from clbench.model import Prefixes
from clbench.strategy import Plugin, Strategy


class PrefixPool(nn.Module):
    """A pool of prompts with keys for each of some first blocks; a sample gets those nearest to its query.

    prompts: `[blocks, pool, length, prefix width]`, keys: `[blocks, pool, width]`, uniform in (0, 1) as in
    the released code of CODA-Prompt.
    """

    def __init__(self, prompts: Sequence[int], width: int, top: int, generator: torch.Generator) -> None:
        super().__init__()
        self.top = top
        self.prompts = nn.Parameter(torch.rand(*prompts, generator=generator))
        self.keys = nn.Parameter(torch.rand(*prompts[:2], width, generator=generator))
        self.pull: Tensor | None = None
        """Mean over the last batch of the summed 1 - cos to the chosen keys."""
        self.chosen: Tensor | None = None
        """Indices `[batch, blocks, top]` of the last batch."""

    def forward(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        """The chosen prompts' first halves before the keys of attention, their second halves before the values."""
        features = query().to(self.keys.dtype)
        with torch.autocast(features.device.type, enabled=False):  # near keys must be told apart
            similarity = torch.einsum("bd,lmd->blm", F.normalize(features, dim=-1), F.normalize(self.keys, dim=-1))
        nearest, self.chosen = similarity.topk(self.top, dim=2)
        self.pull = (1 - nearest).sum(dim=(1, 2)).mean()
        blocks = torch.arange(len(self.prompts), device=features.device)[:, None]
        chosen = self.prompts[blocks, self.chosen].unflatten(3, (2, -1))  # [batch, blocks, top, 2, length / 2, width]
        return halves(range(len(self.prompts)), chosen.transpose(2, 3).flatten(2, 4))


class _Pull(Plugin):
    def __init__(self, pool: PrefixPool, weight: float) -> None:
        super().__init__()
        self.pool, self.weight = pool, weight
        self.used = torch.zeros(pool.keys.shape[:2], dtype=torch.int64, device=pool.keys.device)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draw the chosen keys towards the queries and count how often each prompt is used."""
        assert self.pool.pull is not None
        assert self.pool.chosen is not None
        strategy.loss += self.weight * self.pool.pull
        chosen = self.pool.chosen.transpose(0, 1).flatten(1)
        self.used.scatter_add_(1, chosen, torch.ones_like(chosen))

    def state(self) -> dict[str, Any]:
        """How often each prompt was used."""
        return {"used": self.used}

    def load_state(self, state: dict[str, Any]) -> None:
        """How often each prompt was used."""
        self.used = state["used"].to(self.used.device)

    def notes(self) -> dict[str, Any]:
        """Share of uses of each prompt, a list a block."""
        shares = self.used / self.used.sum(1, keepdim=True).clamp(min=1)
        return {"prompt_usage": [[round(share, 4) for share in block] for block in shares.tolist()]}


class L2PPlusPlus(Method):
    """L2P (Wang et al., CVPR 2022) in the prefix form of Smith et al., CVPR 2023: L + λ Σ_m (1 - cos(q, k_m)).

    In each of the first `depth` blocks (1, or 5 for their "deep" form) a sample gets the `top` prompts whose
    keys are nearest to its query, the untouched backbone's features; half of a prompt goes before the keys
    of attention, half before the values. The head reads the class token and is trained too. Text: the query is
    the mean of the last hidden states over the question's tokens, and the head stays frozen [ours; no paper has it].

    Departures: the pull is a mean over the batch (their code: a sum), so that λ does not hang on the batch
    size; only this term reaches the keys, so with Adam the factor changes nothing. Each sample pulls the
    keys chosen for it alone; their code pulls every sample's query and every key chosen in the batch.
    """

    name = "l2pp"
    paper = "Smith et al. 2023 (L2P++)"

    depth: int = Field(default=1, ge=1, description="put prefixes into the first so many blocks")
    pool: int = Field(default=30, ge=1, description="prompts in a block's pool")
    length: int = Field(default=20, ge=2, multiple_of=2, description="of a prompt: half for keys, half for values")
    top: int = Field(default=5, ge=1, description="prompts chosen for a sample")
    pull_weight: Annotated[float, Search(0.01, 10)] = Field(default=1.0, ge=0, description="λ")

    @model_validator(mode="after")
    def _fits(self) -> L2PPlusPlus:
        if self.top > self.pool:
            raise ValueError(f"top ({self.top}) must not be above pool ({self.pool})")
        return self

    def resources(self) -> Resources:
        """The pool does not grow."""
        return Resources(stored_mib_per_task=0.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Put the pool's choice into the attention."""
        model = bench.model
        prompts = (min(self.depth, model.depth), self.pool, self.length, model.prefix_width)
        pool = PrefixPool(prompts, model.width, self.top, bench.generator("pool")).to(bench.device)
        model.prefixer = pool
        return [_Pull(pool, self.pull_weight)]
