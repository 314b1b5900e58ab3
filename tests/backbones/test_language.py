from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    MambaConfig,
    PreTrainedConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from clbench.adapters import lora
from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Bytes, Lessons, Limits
from clbench.errors import BadValue
from clbench.padding import ANSWER, IGNORED, PROMPT
from clbench.recipe import Recipe
from clbench.stream import ImageSet, Stream, Task, TextSet
from clbench.text import Row, TextTask
from clbench.tiny import stream, text_stream

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"vocab_size": 259, "num_hidden_layers": 2, "num_attention_heads": 4}
OLD_NAMES: dict[str, Any] = {"vocab_size": 259, "n_layer": 2, "n_embd": 16, "n_head": 4}
# what a pass computes


@torch.no_grad()
def test_logits_of_a_padded_batch_are_transformers_own_of_each_row_alone(lab: Any, name: str) -> None:
    model, theirs = lab.model(name), lab.body(name)
    model.span = 3
    ours = model(lab.batch)
    assert ours.shape == (3, 3, 259)
    for i, row in enumerate(lab.rows):
        expected = theirs(input_ids=torch.tensor([row])).logits[0, -4:-1]
        assert expected.std() > 0.05
        torch.testing.assert_close(ours[i], expected, atol=2e-5, rtol=1e-5)


def test_the_window_is_shorter_than_the_text(lab: Any) -> None:
    """Otherwise the test above would not see a window at all."""
    torch.manual_seed(0)
    with torch.no_grad():
        windowed, whole = lab.body("mistral with a window"), lab.body("mistral")
        whole.load_state_dict(windowed.state_dict())
        row = torch.tensor([lab.rows[1]])
        assert not torch.allclose(windowed(row).logits, whole(row).logits, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma 2", "gpt-2"])
@torch.no_grad()
def test_features_look_at_the_question_alone(lab: Any, name: str) -> None:
    model = lab.model(name)
    found = model.features(lab.batch)
    assert found.shape == (3, 16)
    questions = [row[: len(row) - answer] for row, answer in zip(lab.rows, [2, 3, 1], strict=True)]
    for i, question in enumerate(questions):
        torch.testing.assert_close(model.features(lab.aligned([question], [0]))[0], found[i], atol=1e-5, rtol=1e-5)
        hidden = lab.body(name).base_model(input_ids=torch.tensor([question])).last_hidden_state
        torch.testing.assert_close(found[i], hidden[0].mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.query(lab.batch), found)


# where adapters go


def seen_by_attention(lab: Any, model: LanguageModel) -> dict[str, Tensor]:
    """Queries, keys and values that reach the first block's attention."""
    caught: list[dict[str, Tensor]] = []

    def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **further: Any) -> Any:
        caught.append({"q": query, "k": key, "v": value})
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **{**further, "softcap": None})

    AttentionInterface.register("spy", spy)
    before = model.attentions[0].plain_attention
    for attention in model.attentions:
        attention.plain_attention = "spy"
    with torch.no_grad():
        model(lab.batch)
    for attention in model.attentions:
        attention.plain_attention = before
    return caught[0]


def test_sites_are_exactly_the_rows_of_a_projection(lab: Any, name: str) -> None:
    whole = seen_by_attention(lab, lab.model(name))
    assert all(part.abs().max() > 0 for part in whole.values())
    for projection in "qkv":
        model = lab.model(name)
        site = model.sites((projection,))[0]
        assert (site.block, list(site.parts)) == (0, [projection])
        layer, (first, last) = model.get_submodule(site.path), site.parts[projection]
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight[first:last] = 0
            if layer.bias is not None:
                layer.bias[first:last] = 0
        changed = seen_by_attention(lab, model)
        assert changed[projection].abs().max() == 0
        for other in set("qkv") - {projection}:
            assert torch.equal(changed[other], whole[other])


def test_sites_come_block_by_block_and_fused_projections_share_one(lab: Any) -> None:
    apart, fused = lab.model("llama"), lab.model("phi 3")
    assert [(site.block, *site.parts) for site in apart.sites(("v", "q"))] == [(0, "q"), (0, "v"), (1, "q"), (1, "v")]
    assert [(site.block, *site.parts) for site in fused.sites(("v", "q"))] == [(0, "q", "v"), (1, "q", "v")]
    assert fused.sites(("q", "k", "v"))[0].parts == {"q": (0, 16), "k": (16, 24), "v": (24, 32)}


def test_a_fresh_lora_changes_nothing_and_gets_gradients(lab: Any, name: str) -> None:
    model = lab.model(name)
    with torch.no_grad():
        before = model(lab.batch)
    adapters = lora.attach(model, ("q", "v"), 2, 2.0, torch.Generator().manual_seed(0))
    after = model(lab.batch)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    after.square().sum().backward()
    assert all(layer.up.grad is not None and layer.up.grad.abs().sum() > 0 for layer in adapters.layers)


def test_gpt_2_has_linear_layers_like_all_others(lab: Any) -> None:
    model = lab.model("gpt-2")
    assert not [module for module in model.modules() if isinstance(module, Conv1D)]
    assert model.feed_forwards()[0] == ("body.transformer.h.0.ln_2", "body.transformer.h.0.mlp")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BloomConfig(vocab_size=259, hidden_size=16, n_layer=2, n_head=4), "BloomForCausalLM does not use"),
        (MambaConfig(vocab_size=259, hidden_size=16, num_hidden_layers=2), "MambaForCausalLM does not use"),
    ],
)
def test_an_architecture_without_the_attention_interface_is_refused(config: PreTrainedConfig, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        LanguageModel(AutoModelForCausalLM.from_config(config), Bytes())


def test_a_kind_of_layer_whose_mask_is_unknown_is_refused(lab: Any) -> None:
    strange = lab.body("gemma 2")
    strange.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(BadValue, match="layers of the kind 'chunked_attention'"):
        LanguageModel(strange, Bytes())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPTNeoXConfig(**SIZES, hidden_size=16, intermediate_size=24), "no layer for the projection 'q'"),
        (GPTBigCodeConfig(**OLD_NAMES, multi_query=True), "how 'attn.c_attn' of a GPTBigCode"),
        (GPTBigCodeConfig(**OLD_NAMES, multi_query=False), "how 'attn.c_attn' of a GPTBigCode"),
    ],
)
def test_projections_whose_rows_are_unknown_are_refused(config: PreTrainedConfig, words: str) -> None:
    model = LanguageModel(AutoModelForCausalLM.from_config(config), Bytes())
    with pytest.raises(BadValue, match=words):
        model.sites(("q",))


def test_an_unknown_projection_is_refused(lab: Any) -> None:
    with pytest.raises(BadValue, match="no projection called 'x' in a language model; choose of q, k, v, o"):
        lab.model().sites(("q", "x"))


# learning

TARGETS = torch.tensor([[IGNORED, 7, 258], [5, 6, 258], [IGNORED, IGNORED, 258]])
EVERYTHING = torch.ones(259, dtype=torch.bool)


def test_a_loss_is_the_mean_over_the_answers_tokens(lab: Any) -> None:
    logits = torch.randn(3, 4, 259, generator=torch.Generator().manual_seed(0))
    found = lab.model().losses(logits, TARGETS, EVERYTHING)
    chances = logits[:, 1:].log_softmax(-1)
    by_hand = [
        -(chances[0, 1, 7] + chances[0, 2, 258]) / 2,
        -(chances[1, 0, 5] + chances[1, 1, 6] + chances[1, 2, 258]) / 3,
        -chances[2, 2, 258],
    ]
    torch.testing.assert_close(found, torch.stack(by_hand))


def test_losses_do_not_depend_on_how_a_batch_is_cut(lab: Any) -> None:
    model = lab.model()
    model.span = 3
    whole = model.losses(model(lab.batch), TARGETS, EVERYTHING)
    for first, last in ((0, 1), (1, 3)):
        piece = model.losses(model(lab.batch[first:last]), TARGETS[first:last], EVERYTHING)
        torch.testing.assert_close(piece, whole[first:last])


def text_task(name: str, answer: str, prompt: str = "1+1=", cap: int = 4) -> TextTask:
    rows = (Row(prompt, answer),)
    return TextTask(
        name=name, kind="label", prefix="", cue="=", answer_tokens=cap, train=rows, validation=rows, test=rows
    )


def test_the_span_grows_with_the_answers_and_never_shrinks(lab: Any) -> None:
    model = lab.model()
    read = model.read(Stream.of_text([text_task("a", "two"), text_task("b", "x"), text_task("c", "twenty")]), Recipe())
    spans = []
    for task in read:
        model.begin(task)
        spans.append(model.span)
    assert spans == [4, 4, 7]  # with the closing token


def test_text_longer_than_the_context_is_refused_with_the_numbers(lab: Any) -> None:
    long = Stream.of_text([text_task("long", "two", prompt="1" * 60)])
    with pytest.raises(BadValue, match="task 'long' with its answer may have 65 tokens, and the model reads 64"):
        lab.model().read(long, Recipe())
    read = lab.model().read(long, Recipe(prompt_tokens=32))
    assert read.tasks[0].test.batch(torch.tensor([0]), CPU)[0].shape == (1, 2, 32)


def test_images_are_refused(lab: Any) -> None:
    with pytest.raises(BadValue, match="a language model reads text"):
        lab.model().read(stream(), Recipe())


def adapted(lab: Any, name: str = "llama") -> tuple[LanguageModel, list[nn.Parameter]]:
    """A model with a LoRA that changes something."""
    model = lab.model(name)
    adapters = lora.attach(model, ("q", "v"), 2, 2.0, torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    for layer in adapters.layers:
        layer.up.data.copy_(torch.randn(layer.up.shape, generator=draws) * 0.3)
    model.span = 3
    return model, model.trainable()


@pytest.mark.parametrize("name", ["llama", "gemma 2", "phi 3"])
def test_computing_activations_again_gives_equal_gradients(lab: Any, name: str) -> None:
    found = []
    for checkpointing in (False, True):
        model, parameters = adapted(lab, name)
        model.read(Stream.of_text([text_task("a", "two")]), Recipe(checkpointing=checkpointing))
        model.train()
        calls: list[int] = []
        model.blocks[0][1].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model.losses(model(lab.batch), TARGETS, EVERYTHING).mean().backward()
        assert len(calls) == 1 + checkpointing
        found.append([parameter.grad for parameter in parameters])
    for plain, again in zip(*found, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("name", ["llama", "mistral with a window", "gemma 2", "gemma 3", "qwen 2", "phi 3"])
def test_gradients_of_each_sample_by_a_function_transform_equal_a_loop(lab: Any, name: str) -> None:
    model, _ = adapted(lab, name)
    own = {path: p.detach() for path, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (inputs[None],))
        return model.losses(logits, targets[None], EVERYTHING)[0]

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be batched
        at_once = vmap(grad(loss), in_dims=(None, 0, 0))(own, lab.batch, TARGETS)
    for i in range(len(lab.batch)):
        alone = grad(loss)(own, lab.batch[i], TARGETS[i])
        for path in own:
            torch.testing.assert_close(at_once[path][i], alone[path], atol=1e-5, rtol=1e-4)


def test_bfloat16_rounds_and_changes_nothing_else(lab: Any) -> None:
    exact, rough = adapted(lab)[0], adapted(lab)[0]
    rough.read(Stream.of_text([text_task("a", "two")]), Recipe(precision="bfloat16"))
    assert {p.dtype for p in rough.body.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, features = rough(lab.batch), rough.features(lab.batch)
    assert logits.dtype == torch.bfloat16
    assert features.dtype == torch.float32
    expected = exact(lab.batch)
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_rotary_frequencies_are_never_rounded(lab: Any) -> None:
    """A bfloat16 holds 0.8 with an error of 1/640: a radian and more over some hundred tokens."""
    exact, rough = lab.model("llama"), lab.model("llama")
    rough.read(Stream.of_text([text_task("a", "two")]), Recipe(precision="bfloat16"))
    buffers = dict(rough.body.named_buffers())
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in exact.body.named_buffers():
        assert torch.equal(buffers[name], buffer)


def test_lessons_and_questions_fit_the_model(lab: Any) -> None:
    """What `read` makes is what a pass takes."""
    model = lab.model()
    task = model.read(text_stream(tasks=1), Recipe()).tasks[0]
    model.begin(task)
    inputs, targets = task.train.batch(torch.arange(4), CPU)
    assert isinstance(task.train, Lessons)
    assert model.losses(model(inputs), targets, EVERYTHING).shape == (4,)
    questions, caps = task.test.batch(torch.arange(4), CPU)
    answers, margins = model.reply(questions, caps)
    assert answers.shape[0] == margins.shape[0] == 4
    assert answers.shape[1] <= 2


def test_a_question_and_its_answer_are_one_text_for_the_model(lab: Any) -> None:
    rows = (Row("ab", "cd"),)
    task = TextTask(name="a", kind="label", prefix="", cue="", answer_tokens=4, train=rows, validation=rows, test=rows)
    inputs, targets = Lessons(TextSet(rows, task), Bytes(), Limits(8, 8)).batch(torch.tensor([0]), CPU)
    assert inputs[0].tolist() == [[257, *b"abcd", 258], [PROMPT] * 3 + [ANSWER] * 3]
    assert targets.tolist() == [[*b"cd", 258]]


def test_a_vision_task_is_no_text(lab: Any) -> None:
    pictures = ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1))
    with pytest.raises(BadValue):
        lab.model().read(Stream((Task("a", pictures, pictures, pictures, (0,)),)), Recipe())
