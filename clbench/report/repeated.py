"""Repeated: what became of a run that was made again, as text and JSON."""

from __future__ import annotations

from collections.abc import Mapping

from clbench.errors import UnknownName
from clbench.repetition import Repetition, Sameness
from clbench.report import explained
from clbench.report.grid import as_json, clean

FORMATS = explained.FORMATS
_SAID: Mapping[Sameness, str] = {
    "identical": "Bit-identical",
    "scores": "The same scores",
    "statistics": "Statistically the same",
    "different": "Different",
}


def render(found: Repetition, format: str) -> str:
    """A repetition in one of FORMATS; UnknownName for another."""
    if format not in FORMATS:
        raise UnknownName("format of a repetition", format, FORMATS)
    return text(found) if format == "text" else to_json(found)


def text(found: Repetition) -> str:
    """What differs in how the two were made, then their scores where those differ, then the verdict."""
    blocks = explained.changed(found.explanation)
    if found.sameness in ("statistics", "different"):
        blocks.append(explained.tasks(found.explanation))
    blocks.append([f"{_SAID[found.sameness]}: {clean(found.reason)}."])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def to_json(found: Repetition) -> str:
    """The same as an object."""
    facts = {"sameness": found.sameness, "reason": found.reason, **explained.compared(found.explanation)}
    return as_json(facts)
