"""Prompts: trainable tokens that join the input's, chosen for each sample alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PromptPool(nn.Module):
    """A pool of prompts with keys; a sample gets those whose keys are nearest to its query (L2P, Eq. 3).

    prompts: `[pool, length, width]`, keys: `[pool, width]`, both uniform in (-1, 1) as in the common
    PyTorch port. Selection looks at one sample at a time: batch-wise voting would tell the task
    whenever a batch holds samples of one task only.
    """

    def __init__(self, pool: int, length: int, top: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.top = top
        self.prompts = nn.Parameter(torch.rand(pool, length, width, generator=generator) * 2 - 1)
        self.keys = nn.Parameter(torch.rand(pool, width, generator=generator) * 2 - 1)
        self.pull: Tensor | None = None
        """Mean over the last batch of the summed similarities to the chosen keys."""
        self.chosen: Tensor | None = None
        """Indices `[batch, top]` of the last batch."""

    def forward(self, tokens: Tensor, query: Tensor) -> Tensor:
        """Prompts `[batch, top * length, width]` for queries `[batch, width]`."""
        similarity = F.normalize(query, dim=-1) @ F.normalize(self.keys, dim=-1).T
        nearest, self.chosen = similarity.topk(self.top, dim=1)
        self.pull = nearest.sum(dim=1).mean()
        return self.prompts[self.chosen].flatten(1, 2).to(tokens.dtype)
