"""Means: by what the cells of a comparison are run, as a person says it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from clbench.errors import BadValue, UnknownName

EXECUTORS = ("inline", "process", "ray", "slurm")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """The seconds that a time says. Raises BadValue.

    >>> seconds("90"), seconds("1.5h"), seconds("2 min"), seconds("2h30m")
    (90.0, 5400.0, 120.0, 9000.0)
    """
    parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.strip())
    whole = re.fullmatch(r"(?:[0-9]{1,9}(?:\.[0-9]+)?\s*[a-z]*\s*)+", text.strip())
    total = sum(float(number) * _UNITS.get(unit, 0.0) for number, unit in parts)
    plain = len(parts) > 1 and any(unit == "" for _, unit in parts)
    if whole is None or plain or not total or any(unit not in _UNITS for _, unit in parts):
        raise BadValue(f"'{text}' is no time; write seconds, or a number with s, min, h or d, as in 90, 30min or 2h.")
    return total


@dataclass(frozen=True, kw_only=True)
class Means:
    """By what cells are run. Raises UnknownName or BadValue for what does not go together."""

    executor: str = "inline"
    workers: int | None = None
    """How many at once; None: of processes one for each GPU that is seen, elsewhere as many as there is room for."""
    threads: int | None = None
    """Of each worker; None: what PyTorch chooses here, shared out where several are on this machine."""
    gpus_per_cell: float | None = None
    timeout_seconds: float | None = None
    """For a cell."""
    processes: int = 1
    """How many teach one cell together, each with a share of every batch."""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UnknownName("executor", self.executor, EXECUTORS)
        if self.executor == "inline" and self.workers is not None:
            raise BadValue("--workers needs --executor process, ray or slurm: inline is one cell after another.")
        if self.executor == "inline" and self.timeout_seconds is not None:
            raise BadValue(
                "--timeout needs --executor process, ray or slurm: inline, nobody is left to end a cell that hangs."
            )
        if self.executor != "inline" and self.processes > 1:
            raise BadValue("--data-parallel needs --executor inline: its processes teach one cell after another.")
        if self.gpus_per_cell is not None and not self.elsewhere:
            raise BadValue("--gpus-per-cell needs --executor ray or slurm; on this machine a cell has one GPU.")
        if self.executor == "slurm" and self.gpus_per_cell is not None and self.gpus_per_cell % 1:
            raise BadValue(f"--gpus-per-cell is {self.gpus_per_cell:g}; Slurm gives whole GPUs.")

    @property
    def elsewhere(self) -> bool:
        """Whether cells may run on other machines, whose GPUs are not seen from here."""
        return self.executor in ("ray", "slurm")
