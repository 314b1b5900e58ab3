from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clbench.methods.derpp import DERpp, logit_distance
from clbench.methods.seqlora import SeqLoRA
from clbench.strategy import Plugin


def test_only_logits_known_when_they_were_kept_are_compared() -> None:
    kept, logits = torch.tensor([[1.0, 2, 9], [0, 0, 0]]), torch.tensor([[2.0, 4, 0], [3, 0, 0]])
    known = torch.tensor([[True, True, False], [True, True, True]])
    assert logit_distance(logits, kept, known).item() == pytest.approx(((1 + 4) / 2 + 9 / 3) / 2)
    whole = logit_distance(logits, kept, torch.ones_like(known))
    torch.testing.assert_close(whole, F.mse_loss(logits, kept))


def test_without_a_change_of_weights_the_distance_is_zero(begin: Any, teach: Any) -> None:
    run = begin(DERpp(buffer_samples=40, learning_rate=1e-12))
    reservoir = teach(run, 0).plugins[0].reservoir
    with torch.no_grad():
        logits = run.model(reservoir.rows["inputs"])
    assert logit_distance(logits, reservoir.rows["logits"], reservoir.rows["known"]).item() < 1e-10
    assert reservoir.rows["known"].tolist() == [[True, True, False, False, False, False]] * 40


def test_kept_logits_are_never_renewed(begin: Any, teach: Any) -> None:
    run = teach(begin(DERpp(buffer_samples=1000)), 0)
    reservoir = run.plugins[0].reservoir
    assert len(reservoir) == 3 * 64
    before = {name: values[:192].clone() for name, values in reservoir.rows.items()}
    teach(run, 1)
    assert all(torch.equal(values, reservoir.rows[name][:192]) for name, values in before.items())
    assert reservoir.rows["known"][192:384].sum(1).tolist() == [4] * 192


class Losses(Plugin):
    """The loss of each step, and what it should be."""

    def __init__(self, rehearsal: Any) -> None:
        super().__init__()
        self.rehearsal, self.pairs, self.same = rehearsal, [], []

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        for_logits, for_labels = self.rehearsal.kept
        seen = strategy.seen_classes
        assert len(strategy.mb_x) == len(strategy.mb_y) == len(strategy.mb_output)
        own = F.cross_entropy(strategy.mb_output[:, seen], strategy.mb_y)
        if for_logits is None:
            self.pairs.append((strategy.loss, own))
            return
        first, second = strategy.model(for_logits["inputs"]), strategy.model(for_labels["inputs"])
        distance = logit_distance(first, for_logits["logits"], for_logits["known"])
        expected = own + 0.3 * distance + 0.7 * F.cross_entropy(second[:, seen], for_labels["targets"])
        self.pairs.append((strategy.loss, expected))
        self.same.append(torch.equal(for_logits["inputs"], for_labels["inputs"]))


def test_the_loss_is_that_of_the_paper(begin: Any, teach: Any) -> None:
    run = begin(DERpp(buffer_samples=24, replay_batch=6, logit_weight=0.3, label_weight=0.7))
    probe = Losses(run.plugins[0])
    run.strategy.plugins.append(probe)
    teach(run, 0, 1)
    assert len(probe.pairs) == 24
    for found, expected in probe.pairs:
        torch.testing.assert_close(found.squeeze(), expected, atol=1e-5, rtol=1e-4)
    assert len(probe.same) == 23  # all but the very first step
    assert not all(probe.same)  # two independent draws


def test_weights_of_zero_are_the_baseline_to_the_bit(begin: Any, teach: Any, weights: Any) -> None:
    mine = weights(teach(begin(DERpp(logit_weight=0, label_weight=0))))
    plain = weights(teach(begin(SeqLoRA(head_masking="seen"))))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_what_joins_a_batch_is_declared() -> None:
    assert DERpp(replay_batch=5).resources().replay_batch == 10
    assert DERpp(replay_batch=5, logit_weight=0).resources().replay_batch == 5


def test_forgets_less_than_without_a_buffer(begin: Any, teach: Any) -> None:
    kept = [
        sum(teach(begin(method), 0, 1, 2).state.scores[3][:2])
        for method in (DERpp(buffer_samples=24, replay_batch=8), SeqLoRA(head_masking="seen"))
    ]
    assert kept[0] > kept[1]
