"""Text tasks: questions with answers, as they stand in files and before any tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple


class Row(NamedTuple):
    """One question and its answer; the model reads `prompt + answer` joined without a space."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """The rows of one task.

    Every prompt is `prefix + body + cue`; the ends are kept when a prompt is too long. Either may be empty.
    """

    name: str
    kind: str
    """How answers are scored: a name of `clbench.scoring.answers.KINDS`."""
    prefix: str
    cue: str
    answer_tokens: int
    """How many tokens an answer may have when it is asked for."""
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """Sentences for the protocol card: duplicates, overlaps, rows left out."""


def sha256(rows: tuple[Row, ...]) -> str:
    """Hash of prompts and answers in order."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=True).encode()).hexdigest()
