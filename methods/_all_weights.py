"""All weights of a backbone as what learns, for methods that otherwise train a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clbench.model import Classifier

LEARNING_RATE = 1e-4
"""That of full fine-tuning: about a tenth of an adapter's (Adam)."""


def train_all(model: Classifier) -> None:
    """Unfreeze the backbone, in float32: in bfloat16 most steps would be lost to rounding."""
    model.body.requires_grad_(True).float()


def slowed(given: Any, switch: str) -> Any:
    """A method's `given` fields with full fine-tuning's step size where `switch` is "full" and they name none."""
    if isinstance(given, Mapping) and given.get(switch) == "full":
        return {"learning_rate": LEARNING_RATE, **given}
    return given
