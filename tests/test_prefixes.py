"""Prompts and prefixes that are kept for each task, and how a classifier asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clbench import backbones
from clbench.adapters.prefix import TaskPrefixes, by_block, existing, halves
from clbench.adapters.prompts import TaskPrompts
from clbench.errors import BadValue
from clbench.model import Classifier, Prefixes


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier() -> Classifier:
    return backbones.build("tiny-vit", 4, 0).eval()


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=source(5), dtype=torch.uint8)


def unasked() -> Tensor:
    raise AssertionError("the query was asked for")


def banked(kept: int, **settings: Any) -> TaskPrefixes:
    prefixes = TaskPrefixes((0, 1), 3, 16, source(), **settings)
    for slot in range(kept):
        prefixes.prompts.restart(source(slot + 1))
        prefixes.keep()
    return prefixes


def test_a_kept_prompt_stays_and_each_sample_can_have_its_own() -> None:
    prompts = TaskPrompts((2, 3), source())
    assert prompts.live.abs().max() <= 1
    first = prompts.live.detach().clone()
    prompts.keep()
    prompts.restart(source(1))
    prompts.keep()
    second = prompts.live.detach().clone()
    assert not torch.equal(first, second)
    assert torch.equal(prompts(4), second.expand(4, 2, 3))
    prompts.choose(torch.tensor([1, 0, 0]))
    assert torch.equal(prompts(3), torch.stack([second, first, first]))
    prompts.choose(None)
    prompts(4).sum().backward()
    assert torch.equal(prompts.live.grad, torch.full((2, 3), 4.0))


def test_a_prompt_is_mixed_in_every_pass_until_it_is_drawn() -> None:
    prompts = TaskPrompts((4,), source())
    prompts.keep()
    prompts.restart(source(1))
    prompts.keep()
    prompts.restart(source(2))
    live, mean = prompts.live.detach().clone(), prompts.bank.mean(0)
    prompts.towards = (mean, 0.25)
    used = prompts(2)
    torch.testing.assert_close(used, (0.75 * live + 0.25 * mean).expand(2, 4))
    used.sum().backward()
    torch.testing.assert_close(prompts.live.grad, torch.full((4,), 2 * 0.75))
    prompts.draw_to_kept(0.25, [0, 1])
    torch.testing.assert_close(prompts(2), used)
    torch.testing.assert_close(prompts.live.detach(), used[0].detach())


def test_keys_and_values_differ_and_do_not_depend_on_the_place_in_the_batch() -> None:
    prefixes = banked(3)
    tokens = torch.zeros(6, 5, 16)
    for slots in (None, torch.full((6,), 2)):
        prefixes.choose(slots)
        found = prefixes(tokens, unasked).attention
        assert list(found) == [0, 1]
        for block, (key, value) in found.items():
            assert key.shape == value.shape == (6, 3, 16)
            assert not torch.equal(key[0], value[0])
            assert all(torch.equal(part, part[:1].expand_as(part)) for part in (key, value)), block
    prefixes.choose(torch.tensor([0, 2, 1, 1, 2, 0]))
    for block, (key, value) in prefixes(tokens, unasked).attention.items():
        bank = prefixes.prompts.bank[:, block]
        for place, slot in enumerate((0, 2, 1, 1, 2, 0)):
            assert torch.equal(key[place], bank[slot, 0])
            assert torch.equal(value[place], bank[slot, 1])


def test_reshaped_gives_the_first_half_keys_for_both_and_the_second_values() -> None:
    prefixes = banked(1, reshaped=True)
    for block, (key, value) in prefixes(torch.zeros(4, 5, 16), unasked).attention.items():
        keys, values = prefixes.prompts.live[block]
        for part in (key, value):
            assert torch.equal(part, torch.stack([keys, keys, values, values]))
    key, value = prefixes(torch.zeros(1, 5, 16), unasked).attention[0]  # alone, none is mixed up
    assert torch.equal(torch.cat([key, value]), prefixes.prompts.live[0])


def test_off_is_the_untouched_backbone() -> None:
    model, prefixes = classifier(), banked(1)
    before = model(images(3))
    model.prefixer = prefixes
    behind = model(images(3))
    assert not torch.allclose(behind, before, atol=1e-3)
    with prefixes.off():
        assert torch.equal(model(images(3)), before)
    assert torch.equal(model(images(3)), behind)


def test_the_query_is_the_untouched_backbones_and_takes_no_gradient() -> None:
    model = classifier()
    plain, asked = model.features(images(2)), []

    class Asking(torch.nn.Module):
        def forward(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
            asked.append(query())
            return halves((1,), torch.ones(2, 1, 4, 16))

    model.prefixer = Asking()
    behind = model.features(images(2))
    assert torch.equal(asked[0], plain)
    assert not asked[0].requires_grad
    assert behind.requires_grad
    assert not torch.allclose(behind, plain, atol=1e-3)


def test_pairs_and_halves_are_sorted_by_block() -> None:
    pairs = torch.randn(2, 2, 2, 3, 16, generator=source())
    found = by_block((4, 1), pairs).attention
    assert torch.equal(found[4][0], pairs[:, 0, 0])
    assert torch.equal(found[1][1], pairs[:, 1, 1])
    prompts = torch.randn(2, 2, 6, 16, generator=source())
    found = halves((0, 1), prompts).attention
    assert torch.equal(found[1][0], prompts[:, 1, :3])
    assert torch.equal(found[1][1], prompts[:, 1, 3:])


def test_a_block_that_is_not_there_is_refused() -> None:
    assert existing(classifier(), (1, 0)) == (1, 0)
    with pytest.raises(BadValue, match="in block 2, and this backbone has blocks 0 to 1"):
        existing(classifier(), (0, 2))
