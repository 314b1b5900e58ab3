"""Untaught: keeps the classifier's rows where they are that a step has nothing to say to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from clbench.model import Classifier, ImageClassifier
from clbench.recipe import Recipe


@contextlib.contextmanager
def rows_stay(model: Classifier, recipe: Recipe) -> Iterator[None]:
    """Around an optimiser's step: a row of the head whose gradient is exactly 0 keeps its numbers.

    Classes that the loss does not see have such rows. Weight decay would shrink them all the same, and the
    momentum of an optimiser that is carried over from their own task would move them on; without either nothing
    is done here. Nothing waits for the device.
    """
    if not (isinstance(model, ImageClassifier) and (recipe.weight_decay or recipe.carry_optimizer)):
        yield
        return
    by_class = [part for part in model.head.parameters() if part.shape[:1] == (model.classes,)]
    held = [(part, part.grad, part.detach().clone()) for part in by_class if part.grad is not None]
    yield
    with torch.no_grad():
        for part, gradient, before in held:
            silent = (gradient == 0).flatten(1).all(1) if part.ndim > 1 else gradient == 0
            part.copy_(torch.where(silent.view(-1, *[1] * (part.ndim - 1)), before, part))
