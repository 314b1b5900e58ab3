"""Seeds: every random number comes from one seed and the words that say what it is for."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *words: str | int) -> int:
    """A seed for one purpose, independent of how many numbers any other purpose has drawn.

    >>> derive(0, "head", 3) == derive(0, "head", 3), derive(0, "head", 3) == derive(0, "head", 4)
    (True, False)
    """
    text = "/".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *words: str | int) -> torch.Generator:
    """A CPU generator of its own for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *words))


def seed_everything(seed: int, *words: str | int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators; only the runner calls this."""
    import random

    import numpy as np
    import torch

    value = derive(seed, *words)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
