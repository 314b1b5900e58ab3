"""Pace: how fast training goes, in images or tokens a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clbench.stream import Examples

Unit = Literal["images", "tokens"]


@dataclass(frozen=True)
class Pace:
    """What went through in a stretch of training, by the clock on the wall.

    >>> Pace(500, "images", 2.0).per_second
    250.0
    """

    amount: int
    """Of the task's own examples; replayed ones do not count."""
    unit: Unit
    seconds: float
    """With everything that the method does besides its steps."""

    @property
    def per_second(self) -> float:
        """0 where no time has passed."""
        return self.amount / self.seconds if self.seconds > 0 else 0.0


class Laps:
    """The paces of passes over `examples`, one after the other from now on."""

    def __init__(self, examples: Examples, now: Callable[[], float] = time.perf_counter) -> None:
        self.amount, self.unit = _amount(examples)
        self.now, self.began = now, now()

    def lap(self) -> Pace:
        """Of the pass that ends now and began where the last one ended."""
        began, self.began = self.began, self.now()
        return Pace(self.amount, self.unit, self.began - began)


def _amount(examples: Examples) -> tuple[int, Unit]:
    """How much one pass is: tokens where the examples, or all their parts, tell theirs."""
    parts = getattr(examples, "parts", (examples,))
    tokens = [part.tokens for part in parts if hasattr(part, "tokens")]
    return (sum(tokens), "tokens") if len(tokens) == len(parts) else (len(examples), "images")
