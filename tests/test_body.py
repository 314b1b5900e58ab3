"""Body: whether a backbone is what it was, to the last number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clbench import catalog, plan, runner, tiny
from clbench.featurecache import FeatureCache
from clbench.plan import Cell
from clbench.recall import PIECE, Body

CPU = torch.device("cpu")
STREAM = tiny.stream()


def cell_of(method: str) -> Cell:
    return plan.cells(tiny.tiny, STREAM, catalog.rows(tiny.tiny, [method], {}), [0], 0, "cpu")[0]


def touched_bodies() -> dict[str, Any]:
    def listens(model: Any) -> None:
        model.body.blocks[0].register_forward_hook(lambda *args: None)

    def replaced(model: Any) -> None:
        model.body.blocks[0].mlp.fc1.weight = nn.Parameter(model.body.blocks[0].mlp.fc1.weight.detach().clone())

    return {
        "a hook": listens,
        "another parameter": replaced,
        "another layer": lambda model: setattr(model.body, "norm", nn.Identity()),
        "a layer more": lambda model: model.body.blocks.append(copy.deepcopy(model.body.blocks[0])),
        "a layer less": lambda model: model.body.blocks.__delitem__(1),
        "another forward": lambda model: setattr(model.body.blocks[0], "forward", lambda x: x),
        "learning": lambda model: model.train(),
    }


@pytest.mark.parametrize("name", touched_bodies())
def test_a_touched_backbone_is_seen(name: str) -> None:
    run = runner.Run(cell_of("ncm"), STREAM, CPU, runner.Silent())
    run.model.eval()
    body = Body(run.model)
    assert body.is_untouched()
    touched_bodies()[name](run.model)
    assert not body.is_untouched()


def test_weights_that_a_fused_optimiser_moved_are_seen() -> None:
    run = runner.Run(cell_of("ncm"), STREAM, CPU, runner.Silent())
    body, parameter = Body(run.model), run.model.body.get_parameter("cls_token").requires_grad_()
    assert body.has_its_weights()
    parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([parameter], lr=0.1, fused=True).step()
    assert not body.has_its_weights()


@pytest.mark.parametrize(
    "moved",
    [
        lambda rows: rows.flip(0),
        lambda rows: rows.flip(1),
        lambda rows: rows.roll(1, 1),
        lambda rows: torch.cat([rows[1:2], rows[:1], rows[2:]]),
    ],
)
def test_numbers_that_change_places_are_seen(moved: Callable[[torch.Tensor], torch.Tensor]) -> None:
    run = runner.Run(cell_of("ncm"), STREAM, CPU, runner.Silent())
    body, weights = Body(run.model), run.model.body.get_parameter("blocks.0.attn.qkv.weight")
    assert body.has_its_weights()
    before = weights.detach().clone()
    with torch.no_grad():
        weights.copy_(moved(before.clone()))
        assert not body.has_its_weights()
        weights.copy_(before)
    assert body.has_its_weights()


def test_a_number_far_back_in_a_large_tensor_is_seen() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Module()
            self.body.register_buffer("numbers", torch.zeros(2 * PIECE + 3, dtype=torch.bfloat16))

    model: Any = Large()
    body = Body(model)
    assert body.has_its_weights()
    for place in (0, PIECE, 2 * PIECE + 2):
        model.body.numbers[place] = 1e-30
        assert not body.has_its_weights()
        model.body.numbers[place] = 0
    assert body.has_its_weights()


def test_adapters_that_are_off_are_as_good_as_none() -> None:
    run = runner.Run(cell_of("hidelora"), STREAM, CPU, runner.Silent(), FeatureCache(Path(), 0))
    run.model.eval()
    assert run.frozen is not None
    adapters = run.plugins[0].adapters  # type: ignore[attr-defined]
    assert not run.frozen.body.is_untouched()
    with adapters.off():
        assert run.frozen.body.is_untouched()
        adapters.retire(torch.Generator())
        assert not run.frozen.body.is_untouched()
