from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from clbench.methods.er_ace import ERACE
from clbench.methods.seqlora import SeqLoRA
from clbench.strategy import Plugin

SETTINGS = {"buffer_samples": 24, "replay_batch": 8}


class Losses(Plugin):
    """The loss of each step, and what it should be."""

    def __init__(self, rehearsal: Any) -> None:
        super().__init__()
        self.rehearsal, self.pairs, self.new_rows = rehearsal, [], []

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        new, seen = strategy.task_classes, strategy.seen_classes
        assert len(strategy.mb_x) == len(strategy.mb_y) == len(strategy.mb_output) == 16
        own = F.cross_entropy(strategy.mb_output[:, new], strategy.mb_y - new[0])
        rest = F.cross_entropy(self.rehearsal.logits[:, seen], self.rehearsal.kept["targets"])
        self.pairs.append((strategy.loss, own + rest))
        gradient = torch.autograd.grad(own, strategy.model.head.weight, retain_graph=True)[0]
        self.new_rows.append(gradient.abs().sum(1).nonzero().flatten().tolist())


def test_new_samples_see_new_classes_and_kept_ones_all(begin: Any, teach: Any) -> None:
    run = teach(begin(ERACE(**SETTINGS)), 0)
    probe = Losses(run.plugins[0])
    run.strategy.plugins.append(probe)
    teach(run, 1)
    assert len(probe.pairs) == 12
    for found, expected in probe.pairs:
        torch.testing.assert_close(found.squeeze(), expected, atol=1e-5, rtol=1e-4)
    assert probe.new_rows == [[2, 3]] * 12  # a new sample never pushes an old class down


def test_kept_samples_are_also_of_the_task_at_hand(begin: Any, teach: Any) -> None:
    reservoir = teach(begin(ERACE(**SETTINGS)), 0, 1).plugins[0].reservoir
    assert len(reservoir) == 24
    assert set(reservoir.rows["targets"].tolist()) == {0, 1, 2, 3}


def test_a_batch_taken_in_several_passes_is_offered_whole(begin: Any, teach: Any) -> None:
    whole, parts = (teach(begin(ERACE(**SETTINGS), micro_batch=size), 0).plugins[0].reservoir for size in (None, 8))
    assert torch.equal(whole.rows["targets"], parts.rows["targets"])


def test_the_first_task_is_learned_as_without_a_buffer(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(ERACE(**SETTINGS)), 0)), weights(teach(begin(SeqLoRA()), 0))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_forgets_less_than_without_a_buffer(begin: Any, teach: Any) -> None:
    kept = [
        sum(teach(begin(method), 0, 1, 2).state.scores[3][:2])
        for method in (ERACE(**SETTINGS), SeqLoRA(head_masking="seen"))
    ]
    assert kept[0] > kept[1]
