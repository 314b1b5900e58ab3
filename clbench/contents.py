"""Entry: one line of a contents page, which names an object without importing it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Where an object is, and what a list says of it."""

    target: str
    """`module:attribute`."""
    line: str
    paper: str = ""

    @property
    def module(self) -> str:
        """The module's import name."""
        return self.target.partition(":")[0]

    def load(self) -> Any:
        """Import the module and return the object."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)
