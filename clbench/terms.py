"""Words that method, recipe and protocol share."""

from __future__ import annotations

from typing import Literal

HeadMasking = Literal["current", "seen"]
"""Which logits the training loss sees: the current task's classes, or all classes seen so far."""

Schedule = Literal["sequential", "joint", "first", "none"]
"""`joint`: the union of all tasks once; `first`: the first task, the later ones are looked at once; `none`: no
optimisation, each task is looked at once."""
