"""Job: what a worker must know to plan the same cells as whoever started it, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from clbench import __version__


@dataclass(frozen=True, kw_only=True)
class Job:
    """Names and numbers only, so that it can be sent as text.

    >>> job = Job(request={"suite": "mine", "seeds": (0, 1)}, store="results", device="cpu", threads=1)
    >>> Job.loaded(job.dumped()) == job
    True
    """

    request: Mapping[str, Any]
    """The fields of `clbench.compare.Request`."""
    store: str
    device: str
    """Its kind: cpu or cuda."""
    threads: int
    deterministic: bool = False
    told: tuple[str, ...] = ()
    """What the person typed after the program's name."""
    clbench: str = __version__

    def dumped(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loaded(cls, text: str) -> Job:
        """From JSON, whose lists are tuples here."""
        facts = {name: _frozen(value) for name, value in json.loads(text).items()}
        return cls(**{**facts, "request": {name: _frozen(value) for name, value in facts["request"].items()}})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
