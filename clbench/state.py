"""State: what has been measured of a run so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from clbench.exam import Round
from clbench.marking import SCORE
from clbench.record import TaskCosts


@dataclass
class State:
    """What has been measured so far; goes into the checkpoint."""

    scores: list[list[float | None]]
    started: str
    """UTC, ISO 8601; a resumed run keeps its first start."""
    costs: list[TaskCosts] = field(default_factory=list)
    facts: dict[str, Tensor] = field(default_factory=dict)
    """NAME_i -> what `exam.Round.facts` holds under NAME after i tasks, for the tasks seen by then."""
    other_scores: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """Further scores of the same answers, each laid out like `scores`."""
    router_accuracy: dict[str, float] = field(default_factory=dict)
    """round_i -> the share of the tasks inferred rightly after i tasks; only where some were inferred."""
    contended: bool = False
    shortages: list[dict[str, Any]] = field(default_factory=list)
    """What `clbench.shortage` noted each time that memory ran out, after the last of which it went on with less."""

    @classmethod
    def new(cls, tasks: int) -> State:
        """Nothing measured yet."""
        return cls(_unmeasured(tasks), datetime.now(UTC).isoformat(timespec="seconds"))

    def note(self, number: int, answered: Round) -> None:
        """Keep what the scoring pass of round `number` gave."""
        self.facts.update({f"{name}_{number}": values for name, values in answered.facts.items()})
        for name, found in answered.scores.items():
            matrix = self.scores
            if name != SCORE:
                matrix = self.other_scores.setdefault(name, _unmeasured(len(self.scores) - 1))
            matrix[number][: len(found)] = found
        if answered.router_accuracy is not None:
            self.router_accuracy[f"round_{number}"] = answered.router_accuracy

    def router(self) -> tuple[float | None, ...]:
        """The router accuracy of each round from the first on; () where no task was ever inferred."""
        if not self.router_accuracy:
            return ()
        return tuple(self.router_accuracy.get(f"round_{i}") for i in range(1, len(self.scores)))


def _unmeasured(tasks: int) -> list[list[float | None]]:
    """The scores of a run that has not begun, laid out as in a record."""
    return [[None] * tasks for _ in range(tasks + 1)]
