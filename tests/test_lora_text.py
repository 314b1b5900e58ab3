"""LoRA on language models of several shapes, in half precision, and with dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Phi3Config

from clbench.adapters.lora import LoRA, LoRALinear, attach
from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Bytes
from clbench.method import Workbench
from clbench.model import Site
from clbench.padding import ANSWER, IGNORED, PROMPT
from clbench.recipe import Recipe

TOKENS = {"vocab_size": 259, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
SHAPES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **TOKENS,
    ),
    "gpt2": lambda: GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **TOKENS
    ),
    "phi3": lambda: Phi3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **TOKENS,
    ),
}


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def language_model(shape: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(AutoModelForCausalLM.from_config(SHAPES[shape]()), Bytes())
    model.span = 3
    return model.to(dtype).eval()


def batch() -> tuple[Tensor, Tensor]:
    """Two samples of 9 and 6 tokens, of which 3 and 2 are the answer's."""
    inputs, targets = torch.zeros(2, 2, 9, dtype=torch.int64), torch.full((2, 3), IGNORED)
    for row, (tokens, answer) in enumerate(((9, 3), (6, 2))):
        inputs[row, 0, 9 - tokens :] = torch.randint(256, (tokens,), generator=source(row))
        inputs[row, 1, 9 - tokens :] = PROMPT
        inputs[row, 1, 9 - answer :] = ANSWER
        targets[row, 3 - answer :] = inputs[row, 0, 9 - answer :]
    return inputs, targets


def moved(lora: LoRA, seed: int = 0) -> LoRA:
    """The LoRA with live pairs that do something."""
    with torch.no_grad():
        for place, layer in enumerate(lora.layers):
            layer.up.copy_(0.1 * torch.randn(layer.up.shape, generator=source(100 * seed + place)))
    return lora


def loss_of(model: LanguageModel) -> Tensor:
    inputs, targets = batch()
    return model.losses(model(inputs), targets, torch.ones(259, dtype=torch.bool)).mean()


def test_a_llama_learns_as_with_peft() -> None:
    import peft

    model, theirs = language_model("llama"), language_model("llama")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    theirs.body = peft.inject_adapter_in_model(config, theirs.body)
    sites = model.sites(("q", "v"))
    lora = moved(attach(model, ("q", "v"), 4, 8, source()))
    model.double()
    theirs.double()
    assert len(lora) == 4
    pairs = []
    for layer, site in zip(lora.layers, sites, strict=True):
        other: Any = theirs.get_submodule(site.path)
        pairs.append((layer, other.lora_A["default"].weight, other.lora_B["default"].weight))
        other.lora_A["default"].weight.data.copy_(layer.down.data)
        other.lora_B["default"].weight.data.copy_(layer.up.data)
    inputs, _ = batch()
    torch.testing.assert_close(model(inputs), theirs(inputs), atol=1e-9, rtol=1e-9)
    loss_of(model).backward()
    loss_of(theirs).backward()
    for layer, down, up in pairs:
        assert down.grad.abs().max() > 1e-6
        torch.testing.assert_close(layer.down.grad, down.grad, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(layer.up.grad, up.grad, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("retired", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_model_whose_projections_have_the_updates_in_them(shape: str, retired: bool) -> None:
    projections = ("q", "v", "o") if shape == "phi3" else ("q", "v")
    model, plain = language_model(shape), language_model(shape)
    inputs, _ = batch()
    before = plain(inputs)
    lora = moved(attach(model, projections, 2, 6, source()))
    model.double()
    for site, layer in zip(plain.sites(projections), lora.layers, strict=True):
        weight, row = plain.get_submodule(site.path).get_parameter("weight").data, 0
        for part, (first, last) in enumerate(site.parts.values()):
            up = layer.up.data[row : row + last - first]
            weight[first:last] += 3.0 * up @ layer.down.data[2 * part : 2 * part + 2]
            row += last - first
    if retired:
        lora.retire(source(1))
    torch.testing.assert_close(model(inputs), plain(inputs), atol=1e-9, rtol=1e-9)
    assert not torch.allclose(plain(inputs), before, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_retired_pairs_too_small_for_half_precision_are_not_lost(dtype: torch.dtype) -> None:
    base, x = nn.Linear(64, 64).to(dtype), torch.randn(8, 64, generator=source()).to(dtype)
    layer = LoRALinear(base, Site("q", 0, {"q": (0, 32), "v": (32, 64)}), 4, 4, source())
    frozen = base.weight.clone()
    for task in range(3):
        with torch.no_grad():
            layer.up.fill_(1e-4)  # a weight's neighbours in bfloat16 are up to 1e-3 from it
        layer.retire(source(task))
    downs = layer.past_down.sum(0).unflatten(0, (2, 4)).sum(1)
    expected = 1e-4 * (x.float() @ downs.T).repeat_interleave(32, dim=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), torch.no_grad():
        layer.base.bias.zero_()
        layer.base.weight.zero_()  # what is left is what the retired pairs add
        layer.refold()
        found = layer(x)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=1e-6)
    assert layer.weight.dtype == frozen.dtype
    assert layer.down.dtype == layer.up.dtype == layer.past_up.dtype == torch.float32


def test_half_precision_keeps_what_it_was_given_and_every_use_of_it() -> None:
    """Live, kept, mixed and off, each with retired pairs beside a bfloat16 layer, against the same in float32."""
    half, full = nn.Linear(16, 24).bfloat16(), nn.Linear(16, 24)
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    site, x = Site("q", 0, {"q": (0, 8), "v": (16, 24)}), torch.randn(3, 5, 16, generator=source())
    loras = []
    for base in (half, full):
        lora = LoRA([LoRALinear(base, site, 2, 2, source())])
        for task in range(3):
            moved(lora, task)
            lora.keep()
            lora.retire(source(task))
        loras.append(moved(lora, 9))
    before = half.weight.clone()
    slots, weights = torch.tensor([2, 0, 1]), torch.rand(3, 4, 1, generator=source(5))
    for use in (
        lambda lora: lora.choose(None),
        lambda lora: lora.choose(slots),
        lambda lora: lora.mix([weights]),
    ):
        answers = []
        for lora, given in zip(loras, (x.bfloat16(), x.bfloat16().float()), strict=True):
            use(lora)
            with torch.autocast("cpu", torch.bfloat16, enabled=given.dtype == torch.bfloat16):
                on = lora.layers[0](given)
                with lora.off():
                    off = lora.layers[0](given)
            answers.append((on, off))
        for ours, exact in zip(*answers, strict=True):
            assert ours.dtype == torch.bfloat16
            torch.testing.assert_close(ours.float(), exact, atol=0.02, rtol=0.02)
    assert torch.equal(half.weight, before)


def test_without_dropout_no_random_number_is_drawn_and_nothing_changes() -> None:
    model, other = language_model("llama", torch.float32), language_model("llama", torch.float32)
    moved(attach(model, ("q", "v"), 2, 6, source()))
    moved(attach(other, ("q", "v"), 2, 6, source(), dropout=0.5))
    inputs, _ = batch()
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        learning = model.train()(inputs)
        assert torch.equal(other.eval()(inputs), learning)  # nothing is dropped in evaluation mode
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.allclose(other.train()(inputs), learning, atol=1e-4)
        assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mixed", [False, True])
def test_dropout_is_of_what_enters_the_live_pair_alone(mixed: bool) -> None:
    layer = LoRALinear(nn.Linear(4, 6), Site("q", 0, {"q": (0, 6)}), 4, 4, source(), dropout=0.25)
    lora, x = LoRA([layer]), torch.ones(4000, 4)
    with torch.no_grad():
        layer.down.copy_(torch.eye(4))
        layer.up.fill_(0.0)
        layer.up[:4] = torch.eye(4)
        lora.keep()
        layer.bank_up.mul_(10)
        layer.up[4:] = 1.0
    if mixed:
        lora.mix([torch.ones(1, 2, 1)])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        added = layer(x) - layer.base(x)
    live = added[:, :4] - (10 if mixed else 0)
    dropped = live.abs() < 1e-4
    torch.testing.assert_close(live[~dropped], torch.full_like(live[~dropped], 1 / 0.75), atol=1e-3, rtol=1e-3)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(added[:, 4], live.sum(1), atol=1e-3, rtol=1e-3)  # one draw for all rows of the update


def test_the_recipe_s_dropout_reaches_every_lora() -> None:
    model = language_model("llama", torch.float32)
    bench = Workbench(model, Recipe(lora_dropout=0.1), torch.device("cpu"), 1, 0)
    assert {layer.dropout for layer in bench.lora().layers} == {0.1}
