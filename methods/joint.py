"""Joint: one LoRA trained on the union of all tasks at once, the upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clbench.method import Method, Workbench
from clbench.strategy import Plugin
from clbench.terms import HeadMasking, Schedule


class Joint(Method):
    """SeqLoRA's network and passes on the shuffled union; no forgetting is defined."""

    name = "joint"
    paper = ""
    schedule: ClassVar[Schedule] = "joint"

    head_masking: HeadMasking = Field(default="seen", description="all classes are there from the start")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """No behaviour: the schedule is all there is."""
        bench.lora()
        return []
