"""Prompts: trainable tokens that join the input's, chosen for each sample alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PromptPool(nn.Module):
    """A pool of prompts with keys; a sample gets those whose keys are nearest to its query (L2P, Eq. 3).

    prompts: `[pool, length, width]`, keys: `[pool, width]`, both uniform in (-1, 1) as in the common
    PyTorch port. Selection looks at one sample at a time: batch-wise voting would tell the task
    whenever a batch holds samples of one task only. `batchwise` votes all the same, as that port does:
    each sample for its nearest keys, and the batch gets those with the most votes, the first of equals.
    """

    def __init__(
        self, pool: int, length: int, top: int, width: int, generator: torch.Generator, batchwise: bool = False
    ) -> None:
        super().__init__()
        self.top, self.batchwise = top, batchwise
        self.prompts = nn.Parameter(torch.rand(pool, length, width, generator=generator) * 2 - 1)
        self.keys = nn.Parameter(torch.rand(pool, width, generator=generator) * 2 - 1)
        self.pull: Tensor | None = None
        """Mean over the last batch of the summed similarities to the chosen keys."""
        self.chosen: Tensor | None = None
        """Indices `[batch, top]` of the last batch."""

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        """Prompts `[batch, top * length, width]` for queries `[batch, width]`."""
        with torch.autocast(query.device.type, enabled=False):  # near keys must be told apart
            similarity = F.normalize(query.to(self.keys.dtype), dim=-1) @ F.normalize(self.keys, dim=-1).T
        nearest, self.chosen = similarity.topk(self.top, dim=1)
        if self.batchwise:
            votes = torch.zeros_like(similarity).scatter_(1, self.chosen, 1.0).sum(0)
            self.chosen = votes.argsort(descending=True, stable=True)[: self.top].expand(len(query), -1)
            nearest = similarity.gather(1, self.chosen)
        self.pull = nearest.sum(dim=1).mean()
        return self.prompts[self.chosen].flatten(1, 2).to(tokens.dtype)


class TaskPrompts(nn.Module):
    """A trainable prompt of any shape, and a bank of kept ones of which a pass can use one for each sample.

    live: `shape`, uniform in (-1, 1); bank: `[slots, *shape]`.
    """

    bank: Tensor

    def __init__(self, shape: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.live = nn.Parameter(torch.empty(*shape))
        self.register_buffer("bank", torch.zeros(0, *shape))
        self.slots: Tensor | None = None
        self.towards: tuple[Tensor, float] | None = None
        """A prompt `shape` and the share by which the live one is mixed with it in each pass."""
        self.restart(generator)

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Draw a fresh live prompt."""
        self.live.copy_(torch.rand(self.live.shape, generator=generator) * 2 - 1)

    @torch.no_grad()
    def keep(self) -> None:
        """Put a copy of the live prompt at the end of the bank."""
        self.bank = torch.cat([self.bank, self.live[None]])

    @torch.no_grad()
    def draw_to_kept(self, share: float, slots: Sequence[int]) -> None:
        """Move the live prompt by `share` towards the mean of the kept ones in `slots`; no pass mixes it further."""
        self.live.lerp_(self.bank[list(slots)].mean(0), share)
        self.towards = None

    def choose(self, slots: Tensor | None) -> None:
        """From now on use the kept prompt in `slots` `[batch]` for each sample; None: the live one for all."""
        self.slots = slots

    def forward(self, batch: int) -> Tensor:
        """The prompts of a batch, `[batch, *shape]`."""
        if self.slots is not None:
            return self.bank[self.slots]
        live = self.live if self.towards is None else torch.lerp(self.live, *self.towards)
        return live.expand(batch, *live.shape)
