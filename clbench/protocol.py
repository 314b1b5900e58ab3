"""Protocol: everything that must be equal before two numbers may be compared, and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from clbench.terms import HeadMasking, Schedule

METHOD_TERMS: tuple[str, ...] = (
    "epochs",
    "task_epochs",
    "batch_size",
    "optimisation",
    "head_masking",
    "schedule",
    "task_id_at_test",
    "buffer_samples",
    "replay_batch",
    "class_statistics",
    "stored_gradients",
    "compat",
)
"""The fields a method may change; the others belong to the suite."""

ADDED = ("compat", "task_epochs", "optimisation", "eval_samples", "marks", "stored_gradients")
"""Fields that older cards lack: while empty they are left out of the hash, so that it stays what it was."""


UNHASHED = ("data",)
"""Fields that say in words what the hash of the stream covers."""


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `value` as canonical JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


class Protocol(BaseModel):
    """The protocol card of one cell. Numbers of different hashes never share a column unmarked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    stream: str
    stream_sha256: str
    """Over pixels or text, labels, splits and class order of every task."""
    order_seed: int
    tasks: int
    backbone: str
    weights_sha256: str
    transform: str
    normalisation: str
    score: str
    scored_on: Literal["test", "validation"] = "test"

    epochs: int
    batch_size: int
    head_masking: HeadMasking = "current"
    schedule: Schedule = "sequential"
    task_id_at_test: bool = False
    buffer_samples: int = 0
    """Training samples a method keeps after their task has passed."""
    replay_batch: int = 0
    """Kept samples added to each training batch."""
    class_statistics: bool = False
    """Means or covariances of classes are kept."""
    stored_gradients: int = 0
    """Gradients kept of each past task."""
    compat: tuple[str, ...] = ()
    """Known deviations of other code that are repeated here on purpose."""
    task_epochs: tuple[int, ...] = ()
    """Passes over each task where they are not equal; `epochs` is then their mean, rounded."""
    optimisation: str = ""
    """Optimiser, schedule and clipping where a method has them otherwise than the suite."""
    eval_samples: int | None = None
    """Test examples of a task that rounds before the last ask; None: all of them."""
    data: tuple[str, ...] = ()
    """What is known about the data: duplicates, overlaps of train and test, rows left out."""
    marks: tuple[str, ...] = ()
    """What must stand beside every number of the suite: random weights, sampled answers."""

    @property
    def suite_hash(self) -> str:
        """Hash of the fields no method may change; rows of one table share it."""
        return digest({k: v for k, v in self._hashed().items() if k not in METHOD_TERMS})

    @property
    def hash(self) -> str:
        """Hash of the whole card."""
        return digest(self._hashed())

    def _hashed(self) -> dict[str, Any]:
        return {k: v for k, v in self.model_dump(mode="json", exclude=set(UNHASHED)).items() if v or k not in ADDED}

    def departures(self, reference: Protocol) -> dict[str, tuple[Any, Any]]:
        """The fields in which this card differs from `reference`: name -> (here, there)."""
        mine, theirs = self.model_dump(), reference.model_dump()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
