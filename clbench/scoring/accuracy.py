"""Accuracy: the share of answers that name the right class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def accuracy(predictions: NDArray[np.int32], labels: NDArray[np.int32]) -> float:
    """Share of equal entries, in [0, 1]; the arrays have one entry an example.

    >>> accuracy(np.array([1, 2, 3, 3]), np.array([1, 2, 0, 3]))
    0.75
    """
    if not len(labels):
        raise ValueError("accuracy of no examples is undefined")
    return float((predictions == labels).mean())
