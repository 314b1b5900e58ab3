"""Answers: which logits say an answer, and what share of it each of its tokens has."""

from __future__ import annotations

import torch
from torch import Tensor

from clbench.padding import IGNORED


def answered(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The logits at the targets, and the share that each of a sample's targets has in its answer.

    A class is an answer of one: logits `[batch, classes]` as they are, shares of one `[batch]`. Of text, whose
    targets are `[batch, answer]`, the logits `[batch, answer, classes]` of the answers' tokens; their shares
    `[batch, answer]` add up to one, and are zero before an answer begins.
    """
    if targets.ndim == 1:
        return logits, torch.ones_like(logits[:, 0])
    known = targets != IGNORED
    return logits[:, -targets.shape[1] :], known / known.sum(1, keepdim=True).clamp(min=1)


def true_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the logits of each answer's own tokens, or of the class, `[batch]`."""
    at, shares = answered(logits, targets)
    own = at.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (shares > 0)
    return own if own.ndim == 1 else own.sum(1)
