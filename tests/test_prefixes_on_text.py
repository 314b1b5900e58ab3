"""Prefixes of keys and values in the attention of language models, beside transformers' and peft's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, LlamaConfig, PreTrainedConfig
from transformers.models.llama.modeling_llama import rotate_half

from clbench.adapters.prefix import TaskPrefixes, by_block
from clbench.adapters.prompts import PromptPool
from clbench.backbones.anatomy import quiet
from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Bytes
from clbench.model import Prefixes
from clbench.padding import NOTHING, PROMPT

LENGTH, DEPTH = 3, 2
SHAPES: dict[str, PreTrainedConfig] = {
    "llama, two key heads for four": LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    ),
    "gpt-2": GPT2Config(
        vocab_size=259, n_embd=32, n_layer=DEPTH, n_head=4, n_positions=64, initializer_range=0.2, resid_pdrop=0.3
    ),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def body(shape: str) -> Any:
    torch.manual_seed(0)
    with quiet():
        return AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES[shape])).eval()


def language_model(shape: str) -> LanguageModel:
    return LanguageModel(body(shape), Bytes()).eval()


def questions(*lengths: int) -> Tensor:
    """`[batch, 2, width]`, ending together."""
    found = torch.zeros(len(lengths), 2, max(lengths), dtype=torch.int64)
    for row, length in zip(found, lengths, strict=True):
        row[0, -length:] = torch.randint(1, 250, (length,), generator=source(length))
        row[1, -length:] = PROMPT
    return found


def banked(model: LanguageModel, blocks: tuple[int, ...] = (0, 1), kept: int = 3) -> TaskPrefixes:
    prefixes = TaskPrefixes(blocks, LENGTH, model.prefix_width, source())
    for slot in range(kept):
        prefixes.prompts.restart(source(slot + 1))
        prefixes.keep()
    return prefixes


def logits(model: LanguageModel, inputs: Tensor) -> Tensor:
    """Of the token after the question."""
    embedded, visible = model._embedded(inputs)
    found: Tensor = model._run(embedded, visible, logits_to_keep=1).logits[:, -1]
    return found


@each_shape
def test_it_is_attention_behind_a_cache_that_holds_the_prefixes(shape: str) -> None:
    """Positions count from the question: with a rotation, and with learned positions."""
    model, inputs = language_model(shape), questions(7, 7, 7)
    prefixes = banked(model)
    prefixes.choose(torch.tensor([2, 0, 1]))
    model.prefixer, plain, cache = prefixes, body(shape), DynamicCache()
    size = model._head_size()
    for block in range(DEPTH):
        pairs = prefixes.prompts.bank[[2, 0, 1], block]  # [batch, 2, length, width]
        keys, values = pairs.unflatten(3, (-1, size)).transpose(2, 3).unbind(1)
        assert keys.shape == (3, 2 if shape.startswith("llama") else 4, LENGTH, 8)
        cache.update(keys.contiguous(), values.contiguous(), block)
    places = torch.arange(7).expand(3, -1)
    seen = torch.ones(3, LENGTH + 7, dtype=torch.int64)
    with torch.no_grad():
        expected = plain(inputs[:, 0], past_key_values=cache, position_ids=places, attention_mask=seen).logits[:, -1]
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-4)
        assert (logits(model, inputs) - plain(inputs[:, 0]).logits[:, -1]).abs().max() > 0.05


def turned_back(model: LanguageModel, keys: Tensor) -> Tensor:
    """`keys` `[…, width]` as they look from `LENGTH` places nearer: peft counts positions from its prefix on."""
    cos, sin = model.body.model.rotary_emb(keys, torch.tensor([[LENGTH]]))
    heads = keys.unflatten(-1, (-1, model._head_size()))
    return (heads * cos - rotate_half(heads) * sin).flatten(-2)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_it_is_pefts_prefix_tuning() -> None:
    shape = "llama, two key heads for four"
    config = peft.PrefixTuningConfig(num_virtual_tokens=LENGTH, task_type="CAUSAL_LM")
    theirs: Any = peft.get_peft_model(body(shape), config).eval()
    weight = theirs.prompt_encoder["default"].embedding.weight  # [length, blocks * 2 * width]
    torch.nn.init.normal_(weight, generator=source())
    model, inputs = language_model(shape), questions(6, 6)
    pairs = (
        weight.detach().clone().unflatten(1, (DEPTH, 2, model.prefix_width)).movedim(0, 2)
    )  # [blocks, 2, length, width]
    pairs[:, 0] = turned_back(model, pairs[:, 0])
    model.prefixer = lambda tokens, query: by_block((0, 1), pairs.expand(len(tokens), *pairs.shape))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, inputs), theirs(inputs[:, 0]).logits[:, -1], atol=1e-5, rtol=1e-4)


@each_shape
def test_a_prefix_is_seen_in_its_block_alone(shape: str) -> None:
    model, inputs, seen = language_model(shape), questions(5, 8), []
    for _, block in model.blocks:
        block.register_forward_hook(lambda module, given, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        logits(model, inputs)
        model.prefixer = banked(model, blocks=(1,))
        logits(model, inputs)
    assert torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[1], seen[3], atol=1e-2)


@each_shape
def test_a_sample_has_its_own_prefix_whatever_stands_beside_it(shape: str) -> None:
    model, inputs, slots = language_model(shape), questions(4, 9, 6, 9), torch.tensor([1, 2, 0, 1])
    model.prefixer = prefixes = banked(model)
    limits = torch.tensor([5, 5, 5, 5])
    prefixes.choose(slots)
    with torch.no_grad():
        together = logits(model, inputs)
        said, _ = model.reply(inputs, limits)
        for row in range(4):
            prefixes.choose(slots[row : row + 1])
            alone = inputs[row : row + 1, :, int((inputs[row, 1] == NOTHING).sum()) :]
            torch.testing.assert_close(logits(model, alone)[0], together[row], atol=1e-5, rtol=1e-4)
            assert model.reply(alone, limits[:1])[0].tolist() == said[row : row + 1].tolist()


@each_shape
def test_an_answer_with_a_cache_is_the_one_without(shape: str) -> None:
    model, inputs = language_model(shape), questions(4, 7)
    model.prefixer = prefixes = banked(model)
    prefixes.choose(torch.tensor([2, 0]))
    with torch.no_grad():
        said, _ = model.reply(inputs, torch.tensor([4, 4]))
        for place in range(4):
            token = logits(model, inputs).argmax(1)
            assert token.tolist() == said[:, place].tolist()
            inputs = torch.cat([inputs, torch.stack([token, torch.full_like(token, PROMPT)], 1)[..., None]], dim=2)


def gradients(shape: str, ask_between: bool, checkpointed: bool) -> tuple[Tensor, Tensor]:
    model, inputs = language_model(shape), questions(5, 8)
    model.prefixer = prefixes = banked(model, kept=0)
    if checkpointed:
        model.body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.body.train()
        for module in model.body.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    loss = logits(model, inputs).logsumexp(1).sum()
    if ask_between:
        model.query(questions(3))
    loss.backward()
    return loss.detach(), prefixes.prompts.live.grad


@each_shape
@pytest.mark.parametrize(("ask_between", "checkpointed"), [(True, False), (False, True), (True, True)])
def test_a_query_between_the_passes_changes_no_gradient(shape: str, ask_between: bool, checkpointed: bool) -> None:
    """A checkpointed block is computed again on the way back, and must see the same prefix."""
    expected, found = gradients(shape, False, False), gradients(shape, ask_between, checkpointed)
    assert expected[1].abs().max() > 1e-3
    torch.testing.assert_close(found, expected)


class Asks:
    """A prefixer that keeps what the query was."""

    def __init__(self, prefixes: TaskPrefixes) -> None:
        self.prefixes, self.seen = prefixes, list[Tensor]()

    def __call__(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        self.seen.append(query())
        return self.prefixes(tokens, query)


@each_shape
def test_the_query_is_the_untouched_models_also_while_learning(shape: str) -> None:
    model, inputs = language_model(shape), questions(5, 8)
    with torch.no_grad():
        plain = model.query(inputs)
        model.prefixer = asks = Asks(banked(model))
        logits(model, inputs)  # leaves its prefixes, which are of another batch's size
        model.body.train()
        logits(model, inputs[:1])
        torch.testing.assert_close(model.query(inputs), plain, atol=0, rtol=0)
    assert model.body.training
    torch.testing.assert_close(asks.seen[0], plain, atol=0, rtol=0)
    torch.testing.assert_close(asks.seen[1], plain[:1], atol=1e-6, rtol=1e-5)
    assert not asks.seen[0].requires_grad


@each_shape
def test_prompts_stand_before_the_first_real_token(shape: str) -> None:
    model, inputs = language_model(shape), questions(4, 7)
    model.prompter = pool = PromptPool(4, 2, 2, 32, source())
    plain = body(shape)
    with torch.no_grad():
        found = logits(model, inputs)
        for row, length in enumerate((4, 7)):
            prompts = pool.prompts[pool.chosen[row]].flatten(0, 1)[None]
            whole = torch.cat([prompts, plain.get_input_embeddings()(inputs[row : row + 1, 0, -length:])], dim=1)
            expected = plain(inputs_embeds=whole).logits[0, -1]
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)
