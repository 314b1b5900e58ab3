"""Record: the facts of one run of one method on one suite with one seed."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SCHEMA = 4
"""Version of this file's layout. A store holding a newer one is reported, not guessed at."""

IMPORTED = "imported:"
"""Begins the fingerprint of a run that another system made; that system's name follows."""
UNKNOWN: Final = "unknown"
"""What stands where an imported run's files do not tell."""


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """The value as it will be read back; JSON has no sets, no NaN and no infinity."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be plain JSON without NaN or infinity ({error})") from error
    return plain


def _name(name: str) -> str:
    if not is_plain(name):
        raise ValueError(f"'{name}' cannot be the name of a folder")
    return name


Facts = Annotated[dict[str, Any], AfterValidator(_plain)]
"""A JSON object."""

Name = Annotated[str, AfterValidator(_name)]
"""Of a folder in a store."""


def is_plain(name: str) -> bool:
    """Whether a word can name one file or folder of a store, and nothing outside it.

    >>> [is_plain(name) for name in ("glyphs", "ours@system", "..", "a/b", "C:", "")]
    [True, True, False, False, False, False]
    """
    return name not in ("", ".", "..") and not any(c in "/\\:" or not c.isprintable() for c in name)


class TaskCosts(BaseModel):
    """What learning and scoring one task cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train_seconds: float
    """Device seconds of everything the method does to learn the task, without its first step."""
    warmup_seconds: float
    """Seconds of that first step, which pays for compilation and allocation."""
    train_samples: int
    """Samples of the task's own training data in the timed steps; replayed ones do not count."""
    steps: int
    """Timed optimiser steps."""
    epochs: int
    eval_seconds: float
    eval_samples: int
    recalled_seconds: float = 0.0
    """Of train_seconds and eval_seconds what was not spent: it is what recalled features took when they were computed,
    less what it took to recall them."""
    peak_memory_mib: float
    """On a GPU the allocator's peak; on a CPU how far the process grew above its state before the cell."""
    trainable_parameters: int
    stored_bytes: int
    """Everything kept for later tasks and for answering, beyond the untouched backbone."""
    flops_per_step: float | None = None
    """Floating-point operations of the first step, forward and backward, as PyTorch counts them."""
    phase_seconds: dict[str, float] = Field(default_factory=dict)
    """Device seconds of named parts of train_seconds, such as search and penalty; on a GPU estimated from every
    eighth step."""


class Origin(BaseModel):
    """Where and by what a record was made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    clbench: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    """python, torch, avalanche-lib, timm, transformers, peft."""
    device: str
    """The device's own name, for example 'NVIDIA H200' or the processor's model."""
    device_kind: Literal["cpu", "cuda", "unknown"]
    precision: Literal["float32", "bfloat16", "unknown"]
    threads: int
    """0: unknown."""
    started: str
    """UTC, ISO 8601; of imported runs as their system wrote it."""
    command: str
    """What was typed, whatever else it asked for; of a worker process what started that."""
    again: str = ""
    """The command that makes this one run again; '' of runs before schema 4, and where no command does."""
    cpu: str = ""
    """The processor's model and how many of its cores this process may use; '' before schema 4."""
    driver: str = ""
    """Versions of the device's driver and libraries; '' on a CPU."""
    determinism: dict[str, bool | str] = Field(default_factory=dict)
    """The switches of PyTorch on which it depends whether equal runs give equal bits, see `clbench.determinism`."""
    processes: int = 1
    """How many taught it together, each with a device like this and a share of every batch."""


class Audit(BaseModel):
    """Whether answers depend on what they must not depend on; sampled after the last task."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    samples: int
    batch_flips: int
    """Answers that changed when a sample was scored alone instead of in a batch."""
    label_flips: int
    """Answers that changed when the task labels were shuffled."""


class Record(BaseModel):
    """One cell of a comparison: facts only, opinions are derived from them.

    >>> record = Record.example()
    >>> Record.model_validate_json(record.model_dump_json()) == record
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = SCHEMA
    key: Name
    suite: Name
    method: Name
    variant: str = ""
    """The settings in which the cell differs from the method's defaults: 'head_masking=seen'; '' for none."""
    params: Facts
    recipe: Facts
    seed: int
    order_seed: int = 0
    fingerprint: str
    """Hash of the method's source; a record whose method has changed since is stale."""
    protocol: Facts
    """The cell's protocol card (`clbench.protocol.Protocol` as a dict)."""
    suite_protocol: Facts
    """The suite's own card; where the two differ the table shows a mark."""
    protocol_hash: str
    suite_hash: str

    status: Literal["done", "failed", "unsupported"]
    reason: str | None = None
    """Why a cell failed or was declined; None when done."""

    tasks: tuple[str, ...]
    test_sizes: tuple[int, ...]
    """() where an imported run does not tell."""
    score_name: str = "accuracy"
    scores: tuple[tuple[float | None, ...], ...] = ()
    """`scores[i][j]` in [0, 1]: task j after learning i tasks; row 0 is before learning. None: not measured."""
    other_scores: dict[str, tuple[tuple[float | None, ...], ...]] = Field(default_factory=dict)
    """Further marks of the same answers by name, each laid out like `scores`; 'invalid' is the share without the form
    of an answer."""
    stated: dict[Literal["average", "pooled"], tuple[float, ...]] = Field(default_factory=dict)
    """Of imported runs what their system wrote of all tasks seen after each one, in [0, 1]: the mean over tasks, the
    mean over samples."""
    floors: tuple[float, ...] = ()
    """For each task what the most frequent training answer scores, of long texts none if that scores more; () where
    that is not asked."""
    other_floors: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """The same by further marks, by their names in `other_scores`."""
    costs: tuple[TaskCosts, ...] = ()
    """One entry a learned task; a joint run has one in all."""
    router_accuracy: tuple[float | None, ...] = ()
    """Entry i - 1: the share in [0, 1] of the test examples of all tasks seen by round i whose task the method inferred
    rightly. None: no task was inferred, or nothing was scored in that round; () where the method never infers."""
    audit: Audit | None = None
    weights_sha256: str | None = None
    """Over everything the method learned and keeps, after the last task."""
    contended: bool = False
    """Another cell ran on the device at the same time: seconds are not used for overheads."""
    marks: tuple[str, ...] = ()
    """Sentences of the method that must stand beside this run in every table."""
    notes: Facts = Field(default_factory=dict)
    """Facts that only this method has, for example the share of pulls per arm."""
    origin: Origin

    @property
    def system(self) -> str:
        """The other system that made an imported run; '' for runs of clbench."""
        return self.fingerprint.removeprefix(IMPORTED) if self.fingerprint.startswith(IMPORTED) else ""

    @model_validator(mode="after")
    def _fits(self) -> Record:
        tasks = len(self.tasks)
        if len(self.test_sizes) != tasks and (self.test_sizes or not self.system):
            raise ValueError(f"{tasks} tasks and {len(self.test_sizes)} test sizes")
        if self.scores and [len(row) for row in self.scores] != [tasks] * (tasks + 1):
            raise ValueError(f"scores of {tasks} tasks are {tasks + 1} rows of {tasks}")
        for name, matrix in self.other_scores.items():
            if [len(row) for row in matrix] != [tasks] * (tasks + 1):
                raise ValueError(f"other_scores.{name} of {tasks} tasks are {tasks + 1} rows of {tasks}")
        for floors in (self.floors, *self.other_floors.values()):
            if len(floors) not in (0, tasks):
                raise ValueError(f"{tasks} tasks and {len(floors)} floors")
        if len(self.router_accuracy) not in (0, tasks):
            raise ValueError(f"{tasks} tasks and {len(self.router_accuracy)} rounds of router accuracy")
        if (self.status == "done") != (self.reason is None) or (self.status == "done" and not self.scores):
            raise ValueError("a finished run has scores and no reason, any other has a reason")
        return self

    @classmethod
    def example(cls, **changes: Any) -> Record:
        """A small finished record, for documentation and tests; `changes` replace fields."""
        cost = TaskCosts(
            train_seconds=1.0,
            warmup_seconds=0.1,
            train_samples=1000,
            steps=30,
            epochs=5,
            eval_seconds=0.2,
            eval_samples=100,
            peak_memory_mib=50.0,
            trainable_parameters=1000,
            stored_bytes=4000,
        )
        card = {"suite": "digits", "epochs": 5, "head_masking": "current"}
        fields: dict[str, Any] = {
            "key": "0123456789ab",
            "suite": "digits",
            "method": "plain",
            "params": {"head_masking": "current"},
            "recipe": {"epochs": 5},
            "seed": 0,
            "fingerprint": "f00d",
            "protocol": card,
            "suite_protocol": card,
            "protocol_hash": "aaaa",
            "suite_hash": "bbbb",
            "status": "done",
            "tasks": ("a", "b"),
            "test_sizes": (10, 30),
            "scores": ((None, None), (1.0, None), (0.5, 0.9)),
            "costs": (cost, cost),
            "origin": Origin(
                clbench="0",
                commit=None,
                dirty=None,
                versions={},
                device="cpu",
                device_kind="cpu",
                precision="float32",
                threads=1,
                started="2026-01-01T00:00:00+00:00",
                command="",
            ),
        }
        return cls(**{**fields, **changes})
