"""HiDe-LoRA and TreeLoRA on the tiny language model: a LoRA a task, the router, and the tree's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Phi3Config

from clbench import backbones
from clbench.adapters.lora import LoRALinear
from clbench.backbones.causal import ShapeSource
from clbench.method import Method
from clbench.methods.hidelora import HiDeLoRA, row_contrast
from clbench.methods.seqlora import SeqLoRA
from clbench.methods.treelora.guidance import Guidance
from clbench.methods.treelora.method import TreeLoRA
from clbench.padding import join

CPU = torch.device("cpu")
FORMS = ["hide", "none"]


def adapters(run: Any) -> list[LoRALinear]:
    return [module for module in run.model.modules() if isinstance(module, LoRALinear)]


def guidance(run: Any) -> Guidance:
    return next(plugin for plugin in run.plugins if isinstance(plugin, Guidance))


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)


def questions(run: Any) -> Tensor:
    with run.vault.open():
        return join([task.test.batch(torch.arange(32), CPU)[0] for task in run.stream])


def test_the_recipes_projections_carry_a_lora_where_there_is_no_head(begin_text: Any) -> None:
    names = ["block 0 q", "block 0 v", "block 1 q", "block 1 v"]
    assert [layer.name for layer in adapters(begin_text(HiDeLoRA()))] == names
    assert [layer.name for layer in adapters(begin_text(HiDeLoRA(depth=None)))] == names
    assert [layer.name for layer in adapters(begin_text(HiDeLoRA(depth=1)))] == names[:2]
    assert [layer.name for layer in adapters(begin_text(TreeLoRA(depth=1)))] == names[:2]


def test_without_its_terms_a_task_is_learned_as_by_seqlora_to_the_bit(
    begin_text: Any, teach: Any, weights: Any
) -> None:
    ours = teach(begin_text(HiDeLoRA(momentum=0, clip=None)))
    theirs = teach(begin_text(SeqLoRA()))
    assert same(weights(ours), weights(theirs))  # each task goes on from the last one


def test_a_learned_pair_is_drawn_to_the_mean_of_the_past_ones(begin_text: Any, teach: Any) -> None:
    run, ends = begin_text(HiDeLoRA(momentum=0.3), tasks=3, epochs=1), []
    run.strategy.on_epoch = lambda *told: ends.append([layer.up.detach().clone() for layer in adapters(run)])
    teach(run)
    for place, layer in enumerate(adapters(run)):
        first, second, third = layer.bank_up
        assert torch.equal(first, ends[0][place])
        torch.testing.assert_close(second, 0.7 * ends[1][place] + 0.3 * first)
        torch.testing.assert_close(third, 0.7 * ends[2][place] + 0.3 * (first + second) / 2)
        assert (second - first).abs().max() > 1e-3


def test_each_question_is_answered_by_the_lora_of_its_inferred_task(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(HiDeLoRA(), epochs=10))
    assert run.state.router() == (1.0, 1.0)
    assert min(run.state.scores[2]) > 0.9
    inputs, layers = questions(run), adapters(run)
    with run.vault.open():
        found = [run.strategy.answer(task.test, torch.zeros(32, dtype=torch.int64)).words for task in run.stream]
    inferred = run.outcomes()["inferred_2"].reshape(2, 32)
    for task in range(2):
        with torch.no_grad():
            for layer in layers:
                layer.down.copy_(layer.bank_down[task])
                layer.up.copy_(layer.bank_up[task])
        said = run.model.words(run.model.reply(inputs, torch.full((64,), 2))[0])
        for place in range(2):
            mine = (inferred[place] == task).nonzero()[0]
            assert [found[place][row] for row in mine] == [said[32 * place + row] for row in mine]
    assert found[0] != found[1]


def test_the_router_never_sees_an_adapted_feature(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(HiDeLoRA(), epochs=1))
    plugin, inputs = run.plugins[0], questions(run)
    for layer in adapters(run):
        layer.bank_up = layer.bank_up + 100
        layer.up.data += 100
    run.strategy.mbatch = [inputs, None, None]
    plugin.before_eval_forward(run.strategy)
    assert run.strategy.inferred.tolist() == [0] * 32 + [1] * 32
    plugin.after_eval_forward(run.strategy)
    fresh = backbones.build("nano-lm", 0, 0)
    features = torch.cat([fresh.query(questions(run)[:32]), fresh.query(questions(run)[32:])])
    assert plugin.router.tasks(features).tolist() == run.strategy.inferred.tolist()
    assert not torch.allclose(run.model.query(inputs), features, atol=1e-2)


@pytest.mark.parametrize("method", [HiDeLoRA(), TreeLoRA(), TreeLoRA(decomposition="none")], ids=lambda m: m.name)
def test_what_is_kept_survives_a_checkpoint(method: Method, begin_text: Any, teach: Any, weights: Any) -> None:
    whole, resumed = teach(begin_text(method, tasks=3), 0, 1), begin_text(method, tasks=3)
    assert resumed.unpack(whole.pack()) == 2
    teach(whole, 2)
    teach(resumed, 2)
    assert same(weights(resumed), weights(whole))
    assert resumed.state.scores == whole.state.scores
    audit = whole.audit()
    assert (audit.batch_flips, audit.label_flips) == (0, 0)


# what TreeLoRA's code calls HiDe-LoRA


def test_rows_are_held_apart_by_cross_entropy_against_the_identity() -> None:
    down = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))  # two projections of rank 3
    expected = 0.0
    for part in (down[:3], down[3:]):
        chances = (part @ part.T / 0.8).exp()
        expected -= sum(float((chances[row, row] / chances[row].sum()).log()) for row in range(3)) / 3
    assert row_contrast(down, 3).item() == pytest.approx(expected, rel=1e-5)
    orthogonal = 20 * torch.eye(5)[:3]
    assert row_contrast(orthogonal, 3).item() == pytest.approx(0, abs=1e-6)


def test_treeloras_hidelora_is_one_lora_with_that_term(begin_text: Any, teach: Any, monkeypatch: Any) -> None:
    method = HiDeLoRA(compat_treelora=True)
    run = begin_text(method, lora_rank=3)
    assert run.cell.protocol.compat == ("treelora",)
    assert not run.cell.protocol.class_statistics
    run.strategy.loss = torch.zeros(1)
    run.plugins[0].before_backward(run.strategy)
    terms = [F.cross_entropy(layer.down @ layer.down.T / 0.8, torch.arange(3)) for layer in adapters(run)]
    torch.testing.assert_close(run.strategy.loss[0], 0.5 * sum(terms))
    with_term, without = teach(run), begin_text(method, lora_rank=3)
    monkeypatch.setattr("clbench.methods.hidelora.COMPAT_WEIGHT", 0.0)
    teach(without)
    plain = teach(begin_text(SeqLoRA(), lora_rank=3))
    for mine, theirs, other in zip(adapters(without), adapters(plain), adapters(with_term), strict=True):
        assert torch.equal(mine.down, theirs.down)
        assert not torch.equal(other.down, theirs.down)
    assert run.state.router() == ()


# TreeLoRA


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{"penalty_weight": 0.0}, {"penalty": "none", "penalty_weight": 5.0}])
def test_without_a_penalty_it_is_the_baseline_to_the_bit(
    form: Any, settings: Any, begin_text: Any, teach: Any, weights: Any
) -> None:
    recipe = {"lora_dropout": 0.1, "micro_batch": 8}  # the search draws nothing that dropout draws
    run = teach(begin_text(TreeLoRA(decomposition=form, **settings), tasks=3, **recipe))
    other = teach(begin_text(HiDeLoRA() if form == "hide" else SeqLoRA(), tasks=3, **recipe))
    assert same(weights(run), weights(other))
    assert run.state.scores == other.state.scores
    assert run.state.router() == other.state.router()
    assert len(guidance(run).pulls) == 2  # it has searched all the same


@pytest.mark.parametrize("form", FORMS)
def test_the_penalty_draws_the_displacement_to_the_past_one(form: Any, begin_text: Any, teach: Any) -> None:
    distances = []
    for weight in (0.0, 5.0):
        run = teach(begin_text(TreeLoRA(decomposition=form, penalty_weight=weight), epochs=4))
        first, second = guidance(run).past
        distances.append((second - first).abs().sum().item())
    assert distances[1] < 0.9 * distances[0]


@pytest.mark.parametrize(("depth", "names"), [(None, ["0 q", "0 v", "1 q", "1 v"]), (1, ["0 q", "0 v"])])
def test_each_projection_is_a_layer_of_the_tree(depth: Any, names: list[str], begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(TreeLoRA(decomposition="none", depth=depth)))
    assert guidance(run).notes()["tree"]["layers"] == [f"block {name}" for name in names]
    assert guidance(run).past.shape == (2, len(names), 4 * 32)  # tasks, layers, rank x input width


def test_a_live_query_is_the_gradient_of_the_answers_loss_at_the_kept_lora(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(TreeLoRA(decomposition="none", signature="gradient", query="live"), tasks=3), 0, 1)
    plugin, strategy = guidance(run), run.strategy
    inputs, targets = run.stream.tasks[1].train.batch(torch.arange(8), CPU)
    strategy.mbatch = [inputs, targets, torch.ones(8, dtype=torch.int64)]
    arms = torch.tensor([1, 0, 0, 1])
    found = plugin._gradient_at(strategy, arms)
    for layer, arm in zip(plugin.lora.layers, arms.tolist(), strict=True):
        layer.down.data, layer.up.data = layer.bank_down[arm].clone(), layer.bank_up[arm].clone()
    strategy.optimizer.zero_grad()
    run.model.losses(run.model(inputs), targets, strategy.allowed).mean().backward()
    expected = torch.stack([down.grad.flatten() for down in plugin.downs if down.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
    assert expected.abs().max() > 1e-4
    teach(run, 2)


def fused() -> Phi3Config:
    """Q, K and V in one layer, O in one of its own: two layers a block, of different sizes."""
    special = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Phi3Config(vocab_size=259, max_position_embeddings=64, initializer_range=0.1, **sizes, **special)


def test_layers_of_fewer_numbers_are_padded(begin_text: Any, teach: Any, weights: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("clbench.backbones.causal.NANO_LM", ShapeSource("nano-lm", fused))
    sites = {"lora_sites": ("q", "v", "o")}
    runs = [begin_text(TreeLoRA(decomposition="none", penalty_weight=weight), **sites) for weight in (0.0, 5.0)]
    for run in runs:
        teach(run)
    plugin = guidance(runs[1])
    assert [down.numel() for down in plugin.downs] == [256, 128, 256, 128]
    assert plugin.past.shape == (2, 4, 256)
    assert not plugin.past[:, 1::2, 128:].any()
    assert plugin.past[:, 1::2, :128].any()
    assert same(weights(runs[0]), weights(teach(begin_text(SeqLoRA(), **sites))))
    distances = [(guidance(run).past[1] - guidance(run).past[0]).abs().sum().item() for run in runs]
    assert distances[1] < 0.9 * distances[0]
