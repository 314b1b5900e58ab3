from __future__ import annotations

import random

import numpy as np
import torch

from clbench.seeding import derive, generator, seed_everything


def test_seeds_are_those_of_every_other_process() -> None:
    assert derive(0, "head", 3) == 6617858454930489592


def test_every_word_and_its_place_count() -> None:
    seeds = {derive(*words) for words in [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", "b"), (0, "b", "a")]}
    assert len(seeds) == 7


def test_a_generator_neither_draws_from_nor_disturbs_the_global_one() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = torch.rand(4, generator=generator(0, "x"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(torch.rand(4, generator=generator(0, "x")), first)
    assert not torch.equal(torch.rand(4, generator=generator(0, "y")), first)


def test_seeding_everything_reaches_all_three() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(0, "task", 1)
    first = draws()
    seed_everything(0, "task", 1)
    assert draws() == first
    seed_everything(0, "task", 2)
    assert all(a != b for a, b in zip(draws(), first, strict=True))
