"""The workbench: what a method is given."""

from __future__ import annotations

import pytest
import torch

from clbench import backbones
from clbench.errors import BadValue
from clbench.method import Workbench
from clbench.recipe import Recipe

RECIPE = Recipe(lora_rank=2, lora_alpha=2, lora_sites=("q",))
WIDTH = 16


def bench(seed: int = 0) -> Workbench:
    model = backbones.build("tiny-vit", 6, 0)
    return Workbench(model, RECIPE, torch.device("cpu"), 3, seed)


def test_lora_takes_the_recipes_projections_unless_told_others() -> None:
    plain, told = bench().lora(), bench().lora(projections=("k", "v"))
    assert [tuple(up.shape) for up in (layer.up for layer in plain.layers)] == [(WIDTH, 2)] * 2
    assert [layer.bounds for layer in plain.layers] == [((0, WIDTH),)] * 2
    assert [layer.bounds for layer in told.layers] == [((WIDTH, 2 * WIDTH), (2 * WIDTH, 3 * WIDTH))] * 2


def test_lora_may_be_in_the_first_blocks_only() -> None:
    assert len(bench().lora(blocks=1, projections=("q",))) == 1


def test_equal_arguments_give_equal_weights() -> None:
    first, second, other = (bench(seed).lora(projections=("q", "v")) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.downs(), second.downs(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.downs(), other.downs(), strict=True))


@pytest.mark.parametrize(("projections", "named"), [(("q", "w"), "'w'"), ((), "''")])
def test_a_projection_that_the_backbone_lacks_is_refused(projections: tuple[str, ...], named: str) -> None:
    with pytest.raises(BadValue, match=f"no projection called {named}"):
        bench().lora(projections=projections)
