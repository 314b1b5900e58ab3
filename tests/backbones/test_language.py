from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
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
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from clbench.adapters import lora
from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Bytes, Lessons, Limits
from clbench.errors import BadValue
from clbench.model import Prefixes
from clbench.padding import ANSWER, IGNORED, NOTHING, PROMPT
from clbench.recipe import Recipe
from clbench.stream import ImageSet, Stream, Task, TextSet
from clbench.text import Row, TextTask
from clbench.tiny import stream, text_stream

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {"vocab_size": 259, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.3, "max_position_embeddings": 64}
SPECIAL: dict[str, Any] = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
TWO_KINDS = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2),
    "mistral": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=None),
    "mistral with a window": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=4),
    "gemma 2": Gemma2Config(
        **WIDE, num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=TWO_KINDS, attn_logit_softcapping=1.0
    ),
    "gemma 3": Gemma3TextConfig(**WIDE, num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=TWO_KINDS),
    "qwen 2": Qwen2Config(**WIDE, num_key_value_heads=2),
    "phi": PhiConfig(**WIDE),
    "phi 3": Phi3Config(**WIDE, num_key_value_heads=2, **SPECIAL),
    "gpt-2": GPT2Config(vocab_size=259, n_layer=2, n_head=4, n_embd=16, n_positions=64, initializer_range=0.3),
}
DRAWN: dict[str, Any] = {}


def body(name: str) -> Any:
    """A small model of transformers with random weights, its biases too."""
    if name not in DRAWN:
        torch.manual_seed(0)
        DRAWN[name] = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
        for path, parameter in DRAWN[name].named_parameters():
            if path.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
    return copy.deepcopy(DRAWN[name])


def language_model(name: str = "llama") -> LanguageModel:
    return LanguageModel(body(name), Bytes())


def aligned(rows: Sequence[Sequence[int]], answers: Sequence[int]) -> Tensor:
    """Rows that end together, the last tokens of each an answer, `[batch, 2, width]`."""
    width = max(map(len, rows))
    inputs = torch.full((len(rows), 2, width), NOTHING)
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        inputs[i, 0, width - len(row) :] = torch.tensor(row)
        inputs[i, 1, width - len(row) :] = PROMPT
        inputs[i, 1, width - answer :] = ANSWER
    return inputs


def drawn_rows(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randint(256, (length,), generator=draws).tolist() for length in lengths]


ROWS = drawn_rows([5, 12, 9])
BATCH = aligned(ROWS, [2, 3, 1])


# what a pass computes


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_of_a_padded_batch_are_transformers_own_of_each_row_alone(name: str) -> None:
    model, theirs = language_model(name), body(name)
    model.span = 3
    ours = model(BATCH)
    assert ours.shape == (3, 3, 259)
    for i, row in enumerate(ROWS):
        expected = theirs(input_ids=torch.tensor([row])).logits[0, -4:-1]
        assert expected.std() > 0.05
        torch.testing.assert_close(ours[i], expected, atol=2e-5, rtol=1e-5)


def test_the_window_is_shorter_than_the_text() -> None:
    """Otherwise the test above would not see a window at all."""
    torch.manual_seed(0)
    with torch.no_grad():
        windowed, whole = body("mistral with a window"), body("mistral")
        whole.load_state_dict(windowed.state_dict())
        row = torch.tensor([ROWS[1]])
        assert not torch.allclose(windowed(row).logits, whole(row).logits, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma 2", "gpt-2"])
@torch.no_grad()
def test_features_look_at_the_question_alone(name: str) -> None:
    model = language_model(name)
    found = model.features(BATCH)
    assert found.shape == (3, 16)
    questions = [row[: len(row) - answer] for row, answer in zip(ROWS, [2, 3, 1], strict=True)]
    for i, question in enumerate(questions):
        torch.testing.assert_close(model.features(aligned([question], [0]))[0], found[i], atol=1e-5, rtol=1e-5)
        hidden = body(name).base_model(input_ids=torch.tensor([question])).last_hidden_state
        torch.testing.assert_close(found[i], hidden[0].mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.query(BATCH), found)


# where adapters go


def seen_by_attention(model: LanguageModel) -> dict[str, Tensor]:
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
        model(BATCH)
    for attention in model.attentions:
        attention.plain_attention = before
    return caught[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_sites_are_exactly_the_rows_of_a_projection(name: str) -> None:
    whole = seen_by_attention(language_model(name))
    assert all(part.abs().max() > 0 for part in whole.values())
    for projection in "qkv":
        model = language_model(name)
        site = model.sites((projection,))[0]
        assert (site.block, list(site.parts)) == (0, [projection])
        layer, (first, last) = model.get_submodule(site.path), site.parts[projection]
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight[first:last] = 0
            if layer.bias is not None:
                layer.bias[first:last] = 0
        changed = seen_by_attention(model)
        assert changed[projection].abs().max() == 0
        for other in set("qkv") - {projection}:
            assert torch.equal(changed[other], whole[other])


def test_sites_come_block_by_block_and_fused_projections_share_one() -> None:
    apart, fused = language_model("llama"), language_model("phi 3")
    assert [(site.block, *site.parts) for site in apart.sites(("v", "q"))] == [(0, "q"), (0, "v"), (1, "q"), (1, "v")]
    assert [(site.block, *site.parts) for site in fused.sites(("v", "q"))] == [(0, "q", "v"), (1, "q", "v")]
    assert fused.sites(("q", "k", "v"))[0].parts == {"q": (0, 16), "k": (16, 24), "v": (24, 32)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fresh_lora_changes_nothing_and_gets_gradients(name: str) -> None:
    model = language_model(name)
    with torch.no_grad():
        before = model(BATCH)
    adapters = lora.attach(model, ("q", "v"), 2, 2.0, torch.Generator().manual_seed(0))
    after = model(BATCH)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    after.square().sum().backward()
    assert all(layer.up.grad is not None and layer.up.grad.abs().sum() > 0 for layer in adapters.layers)


def test_gpt_2_has_linear_layers_like_all_others() -> None:
    model = language_model("gpt-2")
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


def test_a_kind_of_layer_whose_mask_is_unknown_is_refused() -> None:
    strange = body("gemma 2")
    strange.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(BadValue, match="layers of the kind 'chunked_attention'"):
        LanguageModel(strange, Bytes())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPTNeoXConfig(**WIDE), "no layer for the projection 'q'"),
        (GPTBigCodeConfig(**SIZES, n_embd=16, n_head=4, multi_query=True), "how 'attn.c_attn' of a GPTBigCode"),
        (GPTBigCodeConfig(**SIZES, n_embd=16, n_head=4, multi_query=False), "how 'attn.c_attn' of a GPTBigCode"),
    ],
)
def test_projections_whose_rows_are_unknown_are_refused(config: PreTrainedConfig, words: str) -> None:
    model = LanguageModel(AutoModelForCausalLM.from_config(config), Bytes())
    with pytest.raises(BadValue, match=words):
        model.sites(("q",))


def test_an_unknown_projection_is_refused() -> None:
    with pytest.raises(BadValue, match="no projection called 'x' in a language model; choose of q, k, v, o"):
        language_model().sites(("q", "x"))


# learning

TARGETS = torch.tensor([[IGNORED, 7, 258], [5, 6, 258], [IGNORED, IGNORED, 258]])
EVERYTHING = torch.ones(259, dtype=torch.bool)


def test_a_loss_is_the_mean_over_the_answers_tokens() -> None:
    logits = torch.randn(3, 4, 259, generator=torch.Generator().manual_seed(0))
    found = language_model().losses(logits, TARGETS, EVERYTHING)
    chances = logits[:, 1:].log_softmax(-1)
    by_hand = [
        -(chances[0, 1, 7] + chances[0, 2, 258]) / 2,
        -(chances[1, 0, 5] + chances[1, 1, 6] + chances[1, 2, 258]) / 3,
        -chances[2, 2, 258],
    ]
    torch.testing.assert_close(found, torch.stack(by_hand))


def test_losses_do_not_depend_on_how_a_batch_is_cut() -> None:
    model = language_model()
    model.span = 3
    whole = model.losses(model(BATCH), TARGETS, EVERYTHING)
    for first, last in ((0, 1), (1, 3)):
        piece = model.losses(model(BATCH[first:last]), TARGETS[first:last], EVERYTHING)
        torch.testing.assert_close(piece, whole[first:last])


def text_task(name: str, answer: str, prompt: str = "1+1=", cap: int = 4) -> TextTask:
    rows = (Row(prompt, answer),)
    return TextTask(
        name=name, kind="label", prefix="", cue="=", answer_tokens=cap, train=rows, validation=rows, test=rows
    )


def test_the_span_grows_with_the_answers_and_never_shrinks() -> None:
    model = language_model()
    read = model.read(Stream.of_text([text_task("a", "two"), text_task("b", "x"), text_task("c", "twenty")]), Recipe())
    spans = []
    for task in read:
        model.begin(task)
        spans.append(model.span)
    assert spans == [4, 4, 7]  # with the closing token


def test_text_longer_than_the_context_is_refused_with_the_numbers() -> None:
    long = Stream.of_text([text_task("long", "two", prompt="1" * 60)])
    with pytest.raises(BadValue, match="task 'long' with its answer may have 65 tokens, and the model reads 64"):
        language_model().read(long, Recipe())
    read = language_model().read(long, Recipe(prompt_tokens=32))
    assert read.tasks[0].test.batch(torch.tensor([0]), CPU)[0].shape == (1, 2, 32)


def test_images_are_refused() -> None:
    with pytest.raises(BadValue, match="a language model reads text"):
        language_model().read(stream(), Recipe())


def adapted(name: str = "llama") -> tuple[LanguageModel, list[nn.Parameter]]:
    """A model with a LoRA that changes something."""
    model = language_model(name)
    adapters = lora.attach(model, ("q", "v"), 2, 2.0, torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(1)
    for layer in adapters.layers:
        layer.up.data.copy_(torch.randn(layer.up.shape, generator=draws) * 0.3)
    model.span = 3
    return model, model.trainable()


@pytest.mark.parametrize("name", ["llama", "gemma 2", "phi 3"])
def test_computing_activations_again_gives_equal_gradients(name: str) -> None:
    found = []
    for checkpointing in (False, True):
        model, parameters = adapted(name)
        model.read(Stream.of_text([text_task("a", "two")]), Recipe(checkpointing=checkpointing))
        model.train()
        calls: list[int] = []
        model.blocks[0][1].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model.losses(model(BATCH), TARGETS, EVERYTHING).mean().backward()
        assert len(calls) == 1 + checkpointing
        found.append([parameter.grad for parameter in parameters])
    for plain, again in zip(*found, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("name", ["llama", "mistral with a window", "gemma 2", "gemma 3", "qwen 2", "phi 3"])
def test_gradients_of_each_sample_by_a_function_transform_equal_a_loop(name: str) -> None:
    model, _ = adapted(name)
    own = {path: p.detach() for path, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (inputs[None],))
        return model.losses(logits, targets[None], EVERYTHING)[0]

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be batched
        at_once = vmap(grad(loss), in_dims=(None, 0, 0))(own, BATCH, TARGETS)
    for i in range(len(BATCH)):
        alone = grad(loss)(own, BATCH[i], TARGETS[i])
        for path in own:
            torch.testing.assert_close(at_once[path][i], alone[path], atol=1e-5, rtol=1e-4)


def test_bfloat16_rounds_and_changes_nothing_else() -> None:
    exact, rough = adapted()[0], adapted()[0]
    rough.read(Stream.of_text([text_task("a", "two")]), Recipe(precision="bfloat16"))
    assert {p.dtype for p in rough.body.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, features = rough(BATCH), rough.features(BATCH)
    assert logits.dtype == torch.bfloat16
    assert features.dtype == torch.float32
    expected = exact(BATCH)
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


# answering


NEVER = 999
"""No token at all."""


def ending_at(model: LanguageModel, token: int) -> None:
    model.tokenizer.end = token


def greedy(name: str, row: Sequence[int], cap: int, end: int) -> list[int]:
    """What transformers' own generation answers, without the closing token."""
    words = torch.tensor([row])
    found = body(name).generate(
        words,
        attention_mask=torch.ones_like(words),
        do_sample=False,
        max_new_tokens=cap,
        eos_token_id=end,
        pad_token_id=256,
    )
    said = found[0, len(row) :].tolist()
    return said[: said.index(end)] if end in said else said


def tokens(answers: Tensor) -> list[list[int]]:
    return [[token for token in row if token >= 0] for row in answers.tolist()]


QUESTIONS = drawn_rows([3 + i % 11 for i in range(32)], seed=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_transformers_own_generation_in_any_company(name: str) -> None:
    model = language_model(name)
    caps = torch.tensor([1 + i % 8 for i in range(32)])
    together = aligned(QUESTIONS, [0] * 32)
    ending_at(model, tokens(model.reply(together, caps)[0])[7][2])  # one that is said, so that some answers end early
    answers, margins = model.reply(together, caps)
    assert (margins > 1e-5).sum() >= 30
    found = tokens(answers)
    assert any(len(said) < cap for said, cap in zip(found, caps.tolist(), strict=True))
    for i, question in enumerate(QUESTIONS):
        if margins[i] <= 1e-5:
            continue
        assert found[i] == greedy(name, question, int(caps[i]), model.tokenizer.end)
        alone, margin = model.reply(aligned([question], [0]), caps[i : i + 1])
        assert tokens(alone) == [found[i]]
        torch.testing.assert_close(margin[0], margins[i], atol=1e-4, rtol=1e-4)


def test_each_answer_keeps_to_its_own_greatest_length() -> None:
    model = language_model()
    ending_at(model, NEVER)
    inputs = aligned(QUESTIONS[:3], [0] * 3)
    longest, _ = model.reply(inputs, torch.tensor([6, 6, 6]))
    mixed, _ = model.reply(inputs, torch.tensor([6, 2, 1]))
    assert [len(said) for said in tokens(mixed)] == [6, 2, 1]
    assert tokens(mixed) == [said[:cap] for said, cap in zip(tokens(longest), (6, 2, 1), strict=True)]


@pytest.fixture
def passes() -> Callable[[LanguageModel], list[int]]:
    """model -> how many tokens each pass through its body has from now on."""

    def watched(model: LanguageModel) -> list[int]:
        widths: list[int] = []

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given = kwargs.get("input_ids")
            widths.append((kwargs["inputs_embeds"] if given is None else given).shape[1])

        model.body.register_forward_pre_hook(note, with_kwargs=True)
        return widths

    return watched


def test_a_question_is_read_once_and_no_pass_is_made_for_nothing(passes: Callable[[LanguageModel], list[int]]) -> None:
    model = language_model()
    ending_at(model, NEVER)
    widths = passes(model)
    inputs = aligned(QUESTIONS[:4], [0] * 4)
    model.reply(inputs, torch.tensor([3, 1, 5, 2]))
    assert widths == [inputs.shape[2], 1, 1, 1, 1]


def test_answering_stops_when_all_answers_have_ended(passes: Callable[[LanguageModel], list[int]]) -> None:
    model = language_model()
    inputs = aligned(QUESTIONS[:1], [0])
    said = tokens(model.reply(inputs, torch.tensor([40]))[0])[0]
    ending_at(model, said[3])
    widths = passes(model)
    answers, _ = model.reply(inputs, torch.tensor([40]))
    end = said.index(said[3])
    assert tokens(answers) == [said[:end]]
    assert len(widths) == end + 1


def test_the_closing_token_is_no_part_of_an_answers_text() -> None:
    model = language_model()
    ending_at(model, NEVER)
    inputs = aligned([[257, *b"one plus one is"]], [0])
    said = tokens(model.reply(inputs, torch.tensor([5]))[0])[0]
    ending_at(model, said[2])
    (words,) = model.words(model.reply(inputs, torch.tensor([5]))[0])
    assert words == Bytes().decode(said[: said.index(said[2])])
    assert model.words(torch.tensor([[72, 105, IGNORED], [IGNORED, IGNORED, IGNORED]])) == ["Hi", ""]


def behind_query(tokens: Tensor, query: Tensor) -> Tensor:
    return torch.stack([query, -query], dim=1) * 2


def prefixes_of_query(tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
    asked = query()[:, None, :8]  # two heads of four share their keys
    return Prefixes(behind_query(tokens, query()), {1: (asked * 3, asked - 1)})


def teach_prompts(model: LanguageModel) -> None:
    model.prompter = behind_query


def teach_prefixes(model: LanguageModel) -> None:
    model.prefixer = prefixes_of_query


def by_whole_passes(model: LanguageModel, question: Sequence[int], count: int) -> list[int]:
    """Greedy tokens, each from a pass over all that was said so far."""
    said: list[int] = []
    for _ in range(count):
        inputs = aligned([[*question, *said, 0]], [len(said) + 1])
        said.append(int(model(inputs)[0, -1].argmax()))
    return said


@pytest.mark.parametrize("teach", [teach_prompts, teach_prefixes])
@torch.no_grad()
def test_prompts_and_prefixes_last_through_an_answer(teach: Callable[[LanguageModel], None]) -> None:
    model = language_model()
    ending_at(model, NEVER)
    inputs, caps = aligned(QUESTIONS[:6], [0] * 6), torch.full((6,), 6)
    plain, _ = model.reply(inputs, caps)
    teach(model)
    answers, margins = model.reply(inputs, caps)
    assert margins.min() > 1e-4
    assert tokens(answers) == [by_whole_passes(model, question, 6) for question in QUESTIONS[:6]]
    assert tokens(answers) != tokens(plain)
    model.prompter = model.prefixer = None
    assert torch.equal(model.reply(inputs, caps)[0], plain)


def test_sampled_answers_depend_on_the_seed_alone_and_are_never_clear() -> None:
    model = language_model()
    model.read(Stream.of_text([text_task("a", "two")]), Recipe(temperature=1.5))
    inputs, caps = aligned(QUESTIONS, [0] * 32), torch.full((32,), 5)

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return model.reply(inputs, caps)

    (first, margins), (again, _), (other, _) = drawn(0), drawn(0), drawn(1)
    assert torch.equal(first, again)
    assert tokens(first) != tokens(other)
    assert not margins.any()


def test_a_low_temperature_is_nearly_greedy() -> None:
    model = language_model()
    inputs, caps = aligned(QUESTIONS, [0] * 32), torch.full((32,), 5)
    greedy_answers, margins = model.reply(inputs, caps)
    model.temperature = 1e-3
    sampled, _ = model.reply(inputs, caps)
    clear = margins > 0.05
    assert clear.sum() > 10
    assert [s for s, c in zip(tokens(sampled), clear, strict=True) if c] == [
        g for g, c in zip(tokens(greedy_answers), clear, strict=True) if c
    ]


def test_lessons_and_questions_fit_the_model() -> None:
    """What `read` makes is what a pass takes."""
    model = language_model()
    task = model.read(text_stream(tasks=1), Recipe()).tasks[0]
    model.begin(task)
    inputs, targets = task.train.batch(torch.arange(4), CPU)
    assert isinstance(task.train, Lessons)
    assert model.losses(model(inputs), targets, EVERYTHING).shape == (4,)
    questions, caps = task.test.batch(torch.arange(4), CPU)
    answers, margins = model.reply(questions, caps)
    assert answers.shape[0] == margins.shape[0] == 4
    assert answers.shape[1] <= 2


def test_a_question_and_its_answer_are_one_text_for_the_model() -> None:
    rows = (Row("ab", "cd"),)
    task = TextTask(name="a", kind="label", prefix="", cue="", answer_tokens=4, train=rows, validation=rows, test=rows)
    inputs, targets = Lessons(TextSet(rows, task), Bytes(), Limits(8, 8)).batch(torch.tensor([0]), CPU)
    assert inputs[0].tolist() == [[257, *b"abcd", 258], [PROMPT] * 3 + [ANSWER] * 3]
    assert targets.tolist() == [[*b"cd", 258]]


def test_a_vision_task_is_no_text() -> None:
    pictures = ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1))
    with pytest.raises(BadValue):
        language_model().read(Stream((Task("a", pictures, pictures, pictures, (0,)),)), Recipe())
