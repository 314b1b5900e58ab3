"""The prompt methods on the tiny language model: what is trained, what is chosen, and who gets it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.methods.coda_prompt import CodaPrompt
from clbench.methods.dualprompt import DualPrompt
from clbench.methods.hide_prompt import HiDePrompt
from clbench.methods.l2p import L2P
from clbench.methods.l2pp import L2PPlusPlus
from clbench.methods.s_prompt import SPrompt
from clbench.padding import NOTHING, PROMPT, join
from clbench.strategy import Plugin

CPU = torch.device("cpu")
BLOCKS: Any = {"general_blocks": (0,), "expert_blocks": (1,), "general_length": 1, "expert_length": 4}
L2P_TEXT: Any = {"pool": 6, "length": 2, "top": 3, "pull_weight": 0.5}
METHODS = {
    "l2p": (L2P(**L2P_TEXT), {"prompter.prompts", "prompter.keys"}),
    "l2pp": (L2PPlusPlus(pool=4, length=2, top=2, depth=2), {"prefixer.prompts", "prefixer.keys"}),
    "dualprompt": (
        DualPrompt(**BLOCKS),
        {"prefixer.general.live", "prefixer.expert.prompts.live", "prefixer.keys.live"},
    ),
    "coda-prompt": (
        CodaPrompt(components=4, length=2),
        {"prefixer.prompts", "prefixer.keys", "prefixer.attentions"},
    ),
    "s-prompt": (SPrompt(length=2), {"prefixer.prompts.live"}),
    "hide-prompt": (HiDePrompt(length=2), {"prefixer.prompts.live"}),
}
each_method = pytest.mark.parametrize("name", METHODS)


def everything(run: Any) -> Tensor:
    """All test questions, in the order of the tasks."""
    with run.vault.open():
        tests = [task.test.batch(torch.arange(len(task.test)), CPU)[0] for task in run.stream]
    return join(tests)


class Gradients(Plugin):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        named = strategy.model.named_parameters()
        self.names |= {name for name, weight in named if weight.grad is not None and weight.grad.any()}


@each_method
def test_it_runs_trains_its_own_alone_and_answers_each_sample_alone(name: str, begin_text: Any, teach: Any) -> None:
    method, trained = METHODS[name]
    run, probe = begin_text(method), Gradients()
    before = {key: weight.clone() for key, weight in run.model.body.state_dict().items()}
    run.strategy.plugins.append(probe)
    teach(run)
    assert probe.names == trained
    assert all(torch.equal(weight, before[key]) for key, weight in run.model.body.state_dict().items())
    audit = run.audit()
    assert (audit.batch_flips, audit.label_flips) == (0, 0)
    routed = name not in ("l2p", "l2pp", "coda-prompt")
    assert [accuracy > 0.8 for accuracy in run.state.router()] == [True] * 2 * routed
    assert run.state.scores[2][0] is not None


@each_method
def test_what_is_kept_survives_a_checkpoint(name: str, begin_text: Any, teach: Any, weights: Any) -> None:
    method = METHODS[name][0]
    whole, resumed = teach(begin_text(method), 0), begin_text(method)
    assert resumed.unpack(whole.pack()) == 1
    teach(whole, 1)
    teach(resumed, 1)
    mine, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert resumed.state.scores == whole.state.scores


def test_the_query_of_a_lesson_is_that_of_its_question(begin_text: Any) -> None:
    """No answer and no padding is in it; at test there is no answer."""
    run = begin_text(L2P(**L2P_TEXT))
    lessons, _ = run.stream.tasks[0].train.batch(torch.arange(8), CPU)
    asked = lessons[:, :, : int((lessons[0, 1] == PROMPT).sum()) + int((lessons[0, 1] == NOTHING).sum())]
    assert (asked[:, 1] == PROMPT).all()
    wide = F.pad(asked, (5, 0))
    for given in (lessons, wide):
        torch.testing.assert_close(run.model.query(given), run.model.query(asked), atol=1e-5, rtol=1e-4)


class Choices(Plugin):
    """What the pool chose, against a search by hand, and where the gradients went."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.pulls = 0, list[float]()

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pool, query = strategy.model.prompter, strategy.model.query(strategy.mb_x)
        self.pulls.append(pool.pull.item())
        for row, chosen in zip(query, pool.chosen.tolist(), strict=True):
            cosines = [F.cosine_similarity(row, key, dim=0).item() for key in pool.keys]
            assert sorted(range(6), key=lambda m: -cosines[m])[:3] == chosen

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        pool = strategy.model.prompter
        chosen = torch.zeros(6, dtype=torch.bool)
        chosen[pool.chosen.flatten()] = True
        for gradient in (pool.prompts.grad.flatten(1), pool.keys.grad):
            assert torch.equal(gradient.abs().sum(1) > 0, chosen)
        self.steps += 1


def test_l2p_chooses_the_nearest_keys_and_draws_them_to_the_query(begin_text: Any, teach: Any) -> None:
    run, probe = begin_text(L2P(**L2P_TEXT)), Choices()
    run.strategy.plugins.append(probe)
    teach(run, 0)
    assert probe.steps == 8
    assert probe.pulls[-1] > probe.pulls[0] + 0.1
    usage = run.plugins[0].notes()["prompt_usage"]
    assert sum(usage) == pytest.approx(1, abs=1e-3)


def test_l2p_lets_a_batch_vote_only_where_ports_do(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(L2P(**L2P_TEXT, compat_batchwise=True), epochs=1))
    assert run.cell.protocol.compat == ("batchwise",)
    pool, inputs = run.model.prompter, everything(run)
    with torch.no_grad():
        pool.keys.copy_(F.normalize(run.model.query(inputs) - run.model.query(inputs).mean(0))[:: len(inputs) // 6][:6])
        pool.batchwise = False
        run.model(inputs)
        own = pool.chosen
        pool.batchwise = True
        run.model(inputs)
    votes = own.flatten().bincount(minlength=6)
    expected = sorted(range(6), key=lambda m: (-int(votes[m]), m))[:3]
    assert len(own.unique(dim=0)) > 1
    assert pool.chosen.tolist() == [expected] * len(inputs)


def test_dualprompt_learns_and_finds_its_prefix_by_the_key(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(DualPrompt(**BLOCKS, learning_rate=0.3, epochs=20)))
    assert run.state.scores[1][0] > 0.4  # guessing: one of 259 tokens, or, of the two letters, half
    assert run.state.router()[1] > 0.8
    keys, inputs = run.model.prefixer.keys.bank, everything(run)
    expected = F.cosine_similarity(run.model.query(inputs)[:, None], keys[None], dim=2).argmax(1)
    assert run.outcomes()["inferred_2"].tolist() == expected.tolist()
    prompts, said = run.model.prefixer.expert.prompts, []
    for task in range(2):
        with torch.no_grad():
            prompts.live.copy_(prompts.bank[task])
        said.append(run.model.words(run.model.reply(inputs, torch.full((len(inputs),), 2))[0]))
    assert said[0] != said[1]
    with run.vault.open():
        answers = [run.strategy.answer(task.test, torch.zeros(32, dtype=torch.int64)).words for task in run.stream]
    found = [word for words in answers for word in words or []]
    assert found == [said[task][place] for place, task in enumerate(expected.tolist())]


def test_coda_leaves_past_components_alone(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(CodaPrompt(components=4, length=2)), 0)
    first = {kind: run.model.prefixer.get_parameter(kind).detach().clone() for kind in ("prompts", "keys")}
    teach(run, 1)
    for kind, before in first.items():
        assert torch.equal(run.model.prefixer.get_buffer(f"past_{kind}"), before)
        assert not torch.equal(run.model.prefixer.get_parameter(kind).detach(), before)


def test_a_task_of_s_prompts_begins_anew_and_the_head_is_the_models(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(SPrompt(length=2)), 0)
    bank = run.model.prefixer.prompts.bank
    run.strategy.learning_rate = 1e-12
    teach(run, 1)
    kept = run.model.prefixer.prompts.bank
    assert torch.equal(kept[0], bank[0])
    assert (kept[1] - kept[0]).abs().max() > 0.1
    assert not hasattr(run.model, "head")


def test_hide_prompt_goes_on_from_the_last_prefix_and_keeps_some_of_the_past(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(HiDePrompt(length=2, momentum=0.25)), 0)
    prompts, ends = run.model.prefixer.prompts, []
    run.strategy.on_epoch = lambda *told: ends.append(prompts.live.detach().clone())
    teach(run, 1)
    assert not torch.allclose(ends[-1], prompts.bank[0], atol=1e-3)
    torch.testing.assert_close(prompts.bank[1], 0.75 * ends[-1] + 0.25 * prompts.bank[0])
