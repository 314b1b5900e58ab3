"""What every method's test needs: a run on the tiny suite, taught as many tasks as the test asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clbench import plan, runner, tiny
from clbench.method import Method
from clbench.stream import Stream


def _begin(method: Method, tasks: int = 3, seed: int = 0, stream: Stream | None = None, **recipe: Any) -> runner.Run:
    stream = stream or tiny.stream(tasks=tasks)
    row = plan.Row(method, "", "", tiny.tiny.recipe.model_copy(update=recipe))
    cell = plan.cells(tiny.tiny, stream, [row], [seed], 0, "cpu")[0]
    return runner.Run(cell, stream, torch.device("cpu"), runner.Silent())


def _begin_text(
    method: Method, tasks: int = 2, seed: int = 0, stream: Stream | None = None, **recipe: Any
) -> runner.Run:
    stream = stream or tiny.text_stream(tasks=tasks)
    row = plan.Row(method, "", "", tiny.tiny_text.recipe.model_copy(update={"epochs": 2, **recipe}))
    cell = plan.cells(tiny.tiny_text, stream, [row], [seed], 0, "cpu")[0]
    return runner.Run(cell, stream, torch.device("cpu"), runner.Silent())


def _teach(run: runner.Run, *lessons: int) -> runner.Run:
    everything = run.lessons()
    for number in lessons or range(len(everything)):
        run.learn(*everything[number])
    return run


def _weights(run: runner.Run) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in run.model.named_parameters()}


@pytest.fixture
def begin() -> Callable[..., runner.Run]:
    """begin(method, tasks=3, seed=0, stream=None, **recipe): a run that has learned nothing yet."""
    return _begin


@pytest.fixture
def begin_text() -> Callable[..., runner.Run]:
    """begin_text(method, tasks=2, seed=0, stream=None, **recipe): the same on the tiny language model, two epochs."""
    return _begin_text


@pytest.fixture
def teach() -> Callable[..., runner.Run]:
    """teach(run, *lessons): the run after these lessons, or after all."""
    return _teach


@pytest.fixture
def weights() -> Callable[[runner.Run], dict[str, Tensor]]:
    """weights(run): copies of all parameters by name."""
    return _weights
