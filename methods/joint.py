"""Joint: one LoRA, or all weights, trained on the union of all tasks at once, the upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from clbench.method import Method, Workbench
from clbench.methods._all_weights import slowed, train_all
from clbench.strategy import Plugin
from clbench.terms import HeadMasking, Schedule


class Joint(Method):
    """SeqLoRA's network and passes on the shuffled union; no forgetting is defined.

    `tuning="full"` trains all weights instead, held in float32, at a step size of 1e-4 where none is given.
    """

    name = "joint"
    paper = ""
    schedule: ClassVar[Schedule] = "joint"

    head_masking: HeadMasking = Field(default="seen", description="all classes are there from the start")
    tuning: Literal["lora", "full"] = Field(default="lora", description="what of the backbone learns")

    @model_validator(mode="before")
    @classmethod
    def _slower_as_a_whole(cls, given: Any) -> Any:
        return slowed(given, "tuning")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """No behaviour: the schedule is all there is."""
        if self.tuning == "full":
            train_all(bench.model)
        else:
            bench.lora()
        return []
