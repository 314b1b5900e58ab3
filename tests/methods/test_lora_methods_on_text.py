"""The methods that train LoRAs, on a language model with a layer for each projection; and who declines text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Phi3Config

from clbench import runner, tiny
from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Bytes
from clbench.method import Method, Workbench
from clbench.methods.aper_adapter import APERAdapter
from clbench.methods.ease import EASE
from clbench.methods.inclora import IncLoRA
from clbench.methods.inflora import InfLoRA, second_moments
from clbench.methods.ncm import NCM
from clbench.methods.olora import OLoRA
from clbench.methods.pertask import PerTask
from clbench.methods.ranpac import RanPAC
from clbench.methods.sapt import SAPT
from clbench.methods.sd_lora import SDLoRA, inner_products
from clbench.methods.seqlora import SeqLoRA
from clbench.methods.slca import SLCA
from clbench.methods.tasl import TaSL
from clbench.padding import ANSWER, NOTHING, join
from clbench.recipe import Recipe

FAMILY = (SeqLoRA(), IncLoRA(), OLoRA(), InfLoRA(projections=("q", "v")), SDLoRA(), SAPT(), TaSL(), PerTask())
DECLINING = (NCM(), RanPAC(), SLCA(), EASE(), APERAdapter())


def lessons(run: runner.Run, task: int = 0, count: int = 6) -> Tensor:
    return run.stream.tasks[task].train.batch(torch.arange(count), torch.device("cpu"))[0]


def asked(run: runner.Run, inputs: Tensor, task: int = 0) -> Tensor:
    """Logits as at test, for samples of `task`."""
    run.strategy.mbatch = [inputs, torch.ones(len(inputs), dtype=torch.int64), torch.full((len(inputs),), task)]
    for plugin in run.plugins:
        plugin.before_eval_forward(run.strategy)
    with torch.no_grad():
        found: Tensor = run.model.eval()(inputs)
    return found


@pytest.mark.parametrize("method", FAMILY, ids=lambda method: method.name)
def test_in_half_precision_the_backbone_is_half_and_what_is_learned_is_not(
    method: Method, begin_text: Any, teach: Any
) -> None:
    run = teach(begin_text(method, precision="bfloat16", epochs=1))
    layers = [module for module in run.model.modules() if hasattr(module, "past_up")]
    assert len(layers) == 4
    for layer in layers:
        assert layer.base.weight.dtype == layer.weight.dtype == torch.bfloat16
        for factor in (layer.down, layer.up, layer.past_down, layer.past_up, layer.bank_down, layer.bank_up):
            assert factor.dtype == torch.float32
            assert factor.isfinite().all()
        assert layer.up.any()
    assert all(0 <= score <= 1 for score in run.state.scores[2])
    assert run.audit().batch_flips <= 2  # half precision may round near ties by the batch


@pytest.mark.parametrize("method", FAMILY, ids=lambda method: method.name)
def test_learns_with_one_optimiser_for_the_stream_in_pieces_and_with_dropout(
    method: Method, begin_text: Any, teach: Any
) -> None:
    run = teach(begin_text(method, carry_optimizer=True, micro_batch=24, lora_dropout=0.1, clip=1.0, epochs=4))
    assert len(run.state.costs) == 2
    assert run.state.scores[1][0] > 0.1  # an answer is one of 259 tokens


@pytest.mark.parametrize("method", [IncLoRA(), OLoRA(), InfLoRA(), SDLoRA()], ids=lambda method: method.name)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_do_not_jump_when_the_next_task_begins(
    method: Method, precision: str, begin_text: Any, teach: Any
) -> None:
    run = teach(begin_text(method, precision=precision), 0)
    inputs = lessons(run)
    with run.strategy.autocast():
        before = asked(run, inputs).float()
        run.strategy.task_index = 1
        run.strategy.examples = run.stream.tasks[1].train
        run.plugins[0].before_train_dataset_adaptation(run.strategy)
        assert not run.plugins[0].lora.layers[0].up.any()
        loose = {"atol": 1e-4, "rtol": 1e-4} if precision == "float32" else {"atol": 0.06, "rtol": 0.06}
        torch.testing.assert_close(asked(run, inputs).float(), before, **loose)


@pytest.mark.parametrize("side", ["A", "B"])
def test_overlaps_are_those_of_all_layers_one_by_one(side: Any, begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(OLoRA(side=side), tasks=3, epochs=1, lora_sites=("q", "k", "v", "o")))
    run.strategy.loss = torch.zeros(1)
    run.plugins[0].before_backward(run.strategy)
    expected = torch.zeros(())
    layers = run.plugins[0].lora.layers
    assert len(layers) == 8
    for layer in layers:
        for down, up in zip(layer.past_down, layer.past_up, strict=True):
            expected += (down @ layer.down.T if side == "A" else up.T @ layer.up).abs().sum()
    assert expected > 0
    torch.testing.assert_close(run.strategy.loss, 0.5 * expected[None])
    run.strategy.loss.backward()
    other = "up" if side == "A" else "down"
    assert all(getattr(layer, other).grad is None for layer in layers if layer.zero_grad() is None)


def test_only_tokens_of_questions_and_answers_count_as_inputs(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(InfLoRA(projections=("q", "v"))), 0)
    layers = run.plugins[0].lora.layers
    run.strategy.examples = Ragged(run.stream.tasks[0].train)
    expected = torch.zeros(32, 32, dtype=torch.float64)
    hook = layers[2].register_forward_pre_hook(lambda layer, given: heard.append(given[0].detach()))
    for index in range(len(run.strategy.examples)):
        heard: list[Tensor] = []
        inputs, _ = run.strategy.examples.batch(torch.tensor([index]), torch.device("cpu"))
        inputs = inputs[:, :, int((inputs[0, 1] == NOTHING).sum()) :]  # alone there is nothing to fill up
        with torch.no_grad():
            run.model.features(inputs)
        tokens = heard[0][0].double()
        expected += tokens.T @ tokens / len(run.strategy.examples)
    hook.remove()
    moments = second_moments(run.strategy, layers, 1)
    torch.testing.assert_close(moments[2], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moments[3], moments[2])  # q and v of a block are given the same


class Ragged:
    """Every other sample without its first letters, so that it is padded."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return 12

    def batch(self, indices: Tensor, device: torch.device, draws: Any = None) -> tuple[Tensor, Tensor]:
        inputs, targets = self.examples.batch(indices, device)
        inputs = inputs.clone()
        inputs[indices % 2 == 1, :, :4] = NOTHING
        return inputs, targets


def test_what_is_learned_lies_outside_the_inputs_of_the_past(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(InfLoRA(projections=("q", "v"), energy_first=0.6, energy_last=0.6)), 0)
    plugin = run.plugins[0]
    pasts = [memory.past().float() for memory in plugin.memories]
    teach(run, 1)
    for layer, past in zip(plugin.lora.layers, pasts, strict=True):
        assert 1 <= past.shape[1] < 32
        torch.testing.assert_close(3 * layer.down @ layer.down.T, torch.eye(4), atol=1e-5, rtol=0)
        assert (layer.up @ layer.down).abs().max() > 1e-3
        assert (layer.down @ past).abs().max() < 1e-5
    for first, second in zip(plugin.lora.layers[::2], plugin.lora.layers[1::2], strict=True):
        torch.testing.assert_close(first.down, second.down)


def test_weights_depend_on_the_question_alone(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(SAPT(), tasks=3, epochs=1))
    inputs, plugin = lessons(run, 1), run.plugins[0]

    def weights(given: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = plugin.attention(plugin._frozen(run.strategy, given)).exp()
        return found

    own = weights(inputs)
    assert own.shape == (6, 3)
    torch.testing.assert_close(own.sum(1), torch.ones(6))
    other = inputs.clone()
    other[:, 0][other[:, 1] == ANSWER] = 7
    torch.testing.assert_close(weights(other), own)
    answered = int((inputs[0, 1] == ANSWER).sum())
    torch.testing.assert_close(weights(inputs[:, :, :-answered]), own, atol=1e-5, rtol=1e-5)
    wider = torch.zeros(1, 2, inputs.shape[2] + 5, dtype=torch.int64)
    torch.testing.assert_close(weights(join([inputs, wider]))[:6], own, atol=1e-5, rtol=1e-5)


def test_the_first_task_is_that_of_one_lora(begin_text: Any, teach: Any) -> None:
    plain = teach(begin_text(SeqLoRA()), 0)
    for method in (SAPT(), PerTask(), OLoRA(), IncLoRA(), TaSL()):
        run = teach(begin_text(method), 0)
        for name, weight in plain.model.named_parameters():
            if name.endswith((".up", ".down")):
                other = run.model.get_parameter(name)
                torch.testing.assert_close(other, weight, atol=1e-4, rtol=1e-3, msg=f"{method.name} {name}")


def test_reflection_keeps_the_weights_of_questions(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(SAPT(arm="exemplar", exemplars=8), epochs=1))
    plugin = run.plugins[0]
    assert plugin.owner.bincount().tolist() == [4, 4]
    assert plugin.features.shape == (8, 32)


def test_each_sample_is_written_by_the_lora_of_its_task_and_nothing_is_forgotten(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(PerTask(), tasks=3))
    rows = run.state.scores
    assert [row[0] for row in rows[1:]] == [rows[1][0]] * 3
    assert rows[2][1] == rows[3][1]
    inputs, layers = lessons(run), run.plugins[0].lora.layers
    for task in range(3):
        found = asked(run, inputs, task)
        run.plugins[0].lora.choose(None)
        for layer in layers:
            layer.down.data, layer.up.data = layer.bank_down[task], layer.bank_up[task]
        torch.testing.assert_close(found, run.model(inputs).detach(), atol=1e-5, rtol=1e-5)


def test_directions_keep_their_shares_where_layers_have_different_parts() -> None:
    """Phi-3 has q and v in one layer and o in another."""
    config = Phi3Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=259,
        pad_token_id=256, bos_token_id=257, eos_token_id=258,
    )  # fmt: skip
    model = LanguageModel(AutoModelForCausalLM.from_config(config), Bytes())
    recipe = Recipe(lora_rank=2, lora_alpha=2, lora_sites=("q", "v", "o"))
    method = SDLoRA(distil=1e-4)
    plugin: Any = method.plugins(Workbench(model, recipe, torch.device("cpu"), 3, 0))[0]
    assert plugin.parts == [2, 1, 2, 1]
    x = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(0))
    for task in range(3):
        for place, layer in enumerate(plugin.lora.layers):
            layer.up.data.normal_(generator=torch.Generator().manual_seed(10 * task + place))
        plugin.before_forward(SimpleNamespace())
        before = [layer(x).detach() for layer in plugin.lora.layers]
        plugin.before_train_dataset_adaptation(SimpleNamespace(task_index=task + 1))
        plugin.before_forward(SimpleNamespace())
        for layer, whole in zip(plugin.lora.layers, before, strict=True):
            torch.testing.assert_close(layer(x), whole, atol=1e-4, rtol=1e-4)
        used = torch.cat([own[-2, :parts] for own, parts in zip(plugin.shares, plugin.parts, strict=True)])
        torch.testing.assert_close(used.square().mean(), torch.ones(()))
    assert plugin.shares.shape == (4, 4, 2)
    assert inner_products(plugin.lora, plugin.shares[:, :-1]).shape == (3, 3)


def test_all_to_the_new_is_one_lora_to_the_bit(begin_text: Any, teach: Any) -> None:
    run, plain = teach(begin_text(TaSL(important_share=1.0, both_share=1.0))), teach(begin_text(SeqLoRA()))
    theirs = dict(plain.model.named_parameters())
    for name, weight in run.model.named_parameters():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize("method", DECLINING, ids=lambda method: method.name)
def test_methods_that_need_classes_decline_open_answers(method: Method) -> None:
    assert "no classes" in str(method.unsupported(tiny.text_stream()))
    assert method.unsupported(tiny.stream()) is None
