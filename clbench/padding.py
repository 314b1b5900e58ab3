"""Padding: how batches of different widths become one, and lose the columns that none of their rows needs.

Text comes in batches whose rows end together: questions `[batch, 2, width]`, token ids above roles
(NOTHING, PROMPT, ANSWER), and targets `[batch, answer]`, ignored where IGNORED. Images have one size, and
pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NOTHING, PROMPT, ANSWER = 0, 1, 2
"""What a position of a text is."""
IGNORED = -100
"""A target that no loss sees."""


def is_text(inputs: Tensor) -> bool:
    """Whether `inputs` are token ids above roles, and not images or features."""
    return inputs.dtype == torch.int64 and inputs.ndim == 3


def join(parts: Sequence[Tensor]) -> Tensor:
    """The parts' rows, one after another; narrower text is padded on its left.

    >>> join([torch.tensor([[5]]), torch.tensor([[6, 7]])])
    tensor([[-100,    5],
            [   6,    7]])
    """
    parts = list(parts)
    first = parts[0]
    if first.dtype != torch.int64 or first.ndim < 2:
        return torch.cat(parts)
    fill = NOTHING if first.ndim == 3 else IGNORED
    width = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (width - part.shape[-1], 0), value=fill) for part in parts])


def stack(parts: Sequence[Tensor]) -> Tensor:
    """`[parts, rows, …]`: like `join`, for parts of equally many rows."""
    stacked: Tensor = join(parts).unflatten(0, (len(parts), -1))
    return stacked


def trimmed(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that were joined with wider ones, without the columns that are empty in all of them; for the CPU.

    >>> trimmed(torch.tensor([[[0, 5], [0, 1]]]), torch.tensor([[-100, 5]]))[1]
    tensor([[5]])
    """
    if not is_text(inputs) or not len(inputs):
        return inputs, targets
    used, asked = (inputs[:, 1] != NOTHING).any(0), (targets != IGNORED).any(0)
    return inputs[:, :, int(used.int().argmax()) :], targets[:, int(asked.int().argmax()) :]
