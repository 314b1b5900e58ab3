"""Untouched features: what the frozen backbone says of an input, for keys and routers."""

from __future__ import annotations

import torch
from torch import Tensor

from clbench.strategy import Strategy


@torch.no_grad()
def untouched(strategy: Strategy, inputs: Tensor) -> Tensor:
    """Float features `[batch, width]` of `inputs` without any prompt or prefix, in the recipe's precision."""
    with strategy.autocast():
        features: Tensor = strategy.model.query(inputs)
    return features.float()
