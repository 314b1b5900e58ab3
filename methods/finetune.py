"""FineTune: all weights trained through all tasks, with nothing against forgetting."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from clbench.method import Method, Resources, Workbench
from clbench.strategy import Plugin


class FineTune(Method):
    """Full sequential fine-tuning. The step size is a tenth of an adapter's (Adam 5e-5 to 1e-4 for ViTs).

    What is trained is held in float32, whatever the precision of the forward pass: in bfloat16 most steps would
    be lost to rounding.
    """

    name = "finetune"
    paper = ""

    learning_rate: float | None = Field(default=1e-4, gt=0, description="step size of all weights")

    def resources(self) -> Resources:
        """The whole network is kept, but it does not grow."""
        return Resources(stored_mib_per_task=0.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Unfreeze the backbone."""
        bench.model.body.requires_grad_(True).float()
        return []
