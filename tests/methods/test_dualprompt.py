from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from clbench import tiny
from clbench.errors import BadValue
from clbench.methods.dualprompt import DualPrompt
from clbench.strategy import Plugin
from clbench.stream import Union

SETTINGS = {**tiny.tiny.settings["dualprompt"], "epochs": 2}


def everything() -> Tensor:
    union = Union([task.test for task in tiny.stream()])
    return union.batch(torch.arange(len(union)), torch.device("cpu"))[0]


def spread_keys(run: Any) -> Tensor:
    """Keys that share the samples out among the tasks; the tiny backbone's features hardly differ."""
    with torch.no_grad():
        query = run.model.query(everything())
        centred = F.normalize(query) - F.normalize(query).mean(0)
        run.model.prefixer.keys.bank.copy_(centred[:: len(centred) // 3][:3])
        cosines = F.cosine_similarity(query[:, None], run.model.prefixer.keys.bank[None], dim=2)
    return cosines.argmax(1)


def ask(run: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    run.strategy.mbatch = [inputs, None, None]
    plugin = run.plugins[0]
    with torch.no_grad():
        plugin.before_eval_forward(run.strategy)
        logits = run.strategy.forward()
        plugin.after_eval_forward(run.strategy)
    return logits, run.strategy.inferred


class Gradients(Plugin):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        named = strategy.model.named_parameters()
        self.names |= {name for name, weight in named if weight.grad is not None and weight.grad.any()}


def test_the_task_trains_its_prefix_its_key_the_general_prefix_and_the_head(begin: Any, teach: Any) -> None:
    run, probe = begin(DualPrompt(**SETTINGS)), Gradients()
    run.strategy.plugins.append(probe)
    teach(run, 0)
    prefixer = run.model.prefixer
    kept = prefixer.expert.prompts.bank.clone(), prefixer.keys.bank.clone()
    teach(run, 1)
    parts = {"general.live", "expert.prompts.live", "keys.live"}
    assert probe.names == {"head.weight", "head.bias", *(f"prefixer.{part}" for part in parts)}
    assert torch.equal(prefixer.expert.prompts.bank[:1], kept[0])
    assert torch.equal(prefixer.keys.bank[:1], kept[1])
    assert len(prefixer.keys.bank) == 2


def test_a_prefix_goes_on_from_the_last_one_and_a_key_is_new(begin: Any, teach: Any) -> None:
    run = teach(begin(DualPrompt(**SETTINGS)), 0)
    prefixer = run.model.prefixer
    run.strategy.learning_rate = 1e-12
    teach(run, 1)
    prompts, keys = prefixer.expert.prompts.bank, prefixer.keys.bank
    torch.testing.assert_close(prompts[1], prompts[0], atol=1e-9, rtol=0)
    assert (keys[1] - keys[0]).abs().max() > 0.1


def test_the_loss_draws_the_key_to_the_queries(begin: Any) -> None:
    run = begin(DualPrompt(**{**SETTINGS, "pull_weight": 0.5}))
    run.strategy.mbatch = [everything()[:7], None, None]
    run.strategy.loss = torch.zeros(1)
    run.plugins[0].before_backward(run.strategy)
    query, key = run.model.query(everything()[:7]), run.model.prefixer.keys.live
    cosines = [(q @ key) / (q.norm() * key.norm()) for q in query]
    torch.testing.assert_close(run.strategy.loss[0], -0.5 * sum(cosines) / 7)


def test_the_nearest_key_of_a_learned_task_chooses_the_prefix(begin: Any, teach: Any) -> None:
    run = teach(begin(DualPrompt(**SETTINGS)))
    assert run.facts()["router_accuracy"][0] == 1
    expected = spread_keys(run)
    assert expected.unique().tolist() == [0, 1, 2]
    logits, inferred = ask(run, everything())
    assert torch.equal(inferred, expected)
    prompts = run.model.prefixer.expert.prompts
    for task in range(3):
        with torch.no_grad():
            prompts.live.copy_(prompts.bank[task])
            answers = run.model(everything())
        torch.testing.assert_close(logits[expected == task], answers[expected == task], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, answers, atol=1e-4)


@pytest.mark.parametrize("compat", [False, True])
def test_only_the_ports_deviation_depends_on_the_place_in_the_batch(compat: bool, begin: Any, teach: Any) -> None:
    run = teach(begin(DualPrompt(**SETTINGS, compat_reshape=compat)), 0)
    inputs = everything()[:32]
    logits, back = ask(run, inputs)[0], ask(run, inputs.flip(0))[0].flip(0)
    assert torch.allclose(logits, back, atol=1e-5) is not compat
    assert run.cell.method.compat() == (("reshape",) if compat else ())


@pytest.mark.parametrize("compat", [False, True])
def test_a_batch_votes_only_where_the_ports_do(compat: bool, begin: Any, teach: Any) -> None:
    run = teach(begin(DualPrompt(**SETTINGS, compat_batchwise=compat)))
    own = spread_keys(run)
    inferred = ask(run, everything())[1]
    assert torch.equal(inferred, torch.full_like(own, int(own.bincount().argmax())) if compat else own)


def test_blocks_that_do_not_fit_are_refused(begin: Any) -> None:
    with pytest.raises(ValidationError, match="block 3 must not be among both"):
        DualPrompt(general_blocks=(0, 3))
    with pytest.raises(BadValue, match="in block 2, and this backbone has blocks 0 to 1"):
        begin(DualPrompt())
