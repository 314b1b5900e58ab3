"""Causal language models from transformers as classifiers of tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from clbench.backbones.anatomy import KINDS_OF_LAYERS, attention_of, blocks_of, refuse_unknown, with_linear_layers
from clbench.backbones.packed import PackedLinear, spared_bytes
from clbench.backbones.reading import Lessons, Limits, Questions, Tokenizer
from clbench.errors import BadValue
from clbench.model import Classifier, Extent, Prefixes, Site
from clbench.padding import IGNORED, NOTHING, PROMPT
from clbench.recipe import Recipe
from clbench.stream import Stream, Task, TextSet, Union

APART = {
    "q": ("q_proj", "query", "q_lin"),
    "k": ("k_proj", "key", "k_lin"),
    "v": ("v_proj", "value", "v_lin"),
    "o": ("o_proj", "dense", "out_proj", "out_lin"),
}
"""What the projections of an attention are called where each is a layer."""
FUSED = ("qkv_proj", "c_attn")
"""Layers whose rows are all queries, then all keys, then all values."""
NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "input_layernorm")
FEED_FORWARDS = ("mlp", "feed_forward")


class LanguageModel(Classifier):
    """Any causal language model of transformers that uses its attention interface.

    A sample is a question with its answer; logits are those of the answers' tokens. Its loss is the mean over
    the answer's tokens and the closing one, so that a batch's loss is the same in whatever pieces it is computed
    (TRACE's code, with one sample a device, has the same).
    """

    def __init__(self, body: PreTrainedModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer, config = tokenizer, body.config.get_text_config()
        refuse_unknown(body, getattr(config, "layer_types", None) or ())
        self.body: Any = with_linear_layers(body)
        self.width, self.classes = int(config.hidden_size), int(config.vocab_size)
        self.blocks = blocks_of(body, int(config.num_hidden_layers))
        self.attentions = [attention_of(block) for _, block in self.blocks]
        self.temperature, self.span = 0.0, 1
        """How many positions at the end may hold an answer's tokens; grows with the tasks."""
        self.four_bits = any(isinstance(module, PackedLinear) for module in self.body.modules())
        """Whether the blocks' linear layers are held in four bits; set where a model is only outlined."""
        self._use_prefixes()

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @property
    def prefix_width(self) -> int:
        """Size of a key or value, all heads together; fewer than the queries' where heads share them."""
        config = self.body.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return int(heads * self._head_size())

    def _head_size(self) -> int:
        config = self.body.config.get_text_config()
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    # what a pass computes

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[batch, span, classes]`, position i saying what the token at `-span + i` should be."""
        embedded, visible = self._embedded(inputs)
        span = min(self.span, inputs.shape[-1] - 1)
        logits: Tensor = self._run(embedded, visible, logits_to_keep=span + 1).logits
        return logits[:, :-1]

    def features(self, inputs: Tensor) -> Tensor:
        """Mean of the questions' last hidden states, adapters on, prompts and prefixes off."""
        self._set_prefixes(Prefixes())
        embedded, visible = self.body.get_input_embeddings()(inputs[:, 0]), inputs[:, 1] != NOTHING
        hidden: Tensor = self.body.base_model(**self._arguments(embedded, visible)).last_hidden_state.float()
        asked = (inputs[:, 1] == PROMPT).float().unsqueeze(-1)
        return (hidden * asked).sum(1) / asked.sum(1).clamp(min=1)

    @torch.no_grad()
    def query(self, inputs: Tensor) -> Tensor:
        """Like `features`, without dropout; the prefixes stay, for a checkpointed pass looks at them once more."""
        held, training = [attention.prefix for attention in self.attentions], self.body.training
        self.body.eval()
        found = self.features(inputs)
        self.body.train(training)
        for attention, prefix in zip(self.attentions, held, strict=True):
            attention.prefix = prefix
        return found

    def _embedded(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings `[batch, tokens, width]` and which of them may be looked at; prompts stand first."""
        visible = inputs[:, 1] != NOTHING
        embedded: Tensor = self.body.get_input_embeddings()(inputs[:, 0])
        prompts, prefixes = None, Prefixes()
        if self.prefixer is not None:
            prefixes = self.prefixer(embedded, lambda: self.query(inputs))
            prompts = prefixes.tokens
        elif self.prompter is not None:
            prompts = self.prompter(embedded, self.query(inputs))
        self._set_prefixes(prefixes)
        if prompts is not None:
            embedded = torch.cat([prompts.to(embedded.dtype), embedded], dim=1)
            visible = F.pad(visible, (prompts.shape[1], 0), value=True)
        return embedded, visible

    def _run(self, embedded: Tensor, visible: Tensor, **further: Any) -> Any:
        return self.body(**self._arguments(embedded, visible), **further)

    def _arguments(self, embedded: Tensor, visible: Tensor) -> dict[str, Any]:
        """For a pass without a cache; positions count what is visible, so that padding changes nothing."""
        return {
            "inputs_embeds": embedded,
            "attention_mask": self._masks(visible, embedded.shape[1], embedded.dtype),
            "position_ids": (visible.long().cumsum(1) - 1).clamp(min=0),
            "use_cache": False,
        }

    def _masks(self, visible: Tensor, queries: int, dtype: torch.dtype) -> Any:
        """Additive masks of the last `queries` of the tokens; for each kind of layer where there are several.

        Made here, because transformers' own cannot be made inside a function transform.
        """
        config = self.body.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return _mask(visible, queries, dtype, window)
        windows = dict(zip(KINDS_OF_LAYERS, (None, window), strict=True))
        masks = {kind: _mask(visible, queries, dtype, windows[kind]) for kind in dict.fromkeys(kinds)}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    # learning

    def losses(self, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        """Mean over each answer's tokens, `[batch]`; every token is always allowed."""
        assert targets.shape[1] <= logits.shape[1], "answers longer than any task that has begun"
        logits = logits[:, -targets.shape[1] :].flatten(0, 1)  # classes last, since it is their sums that take time
        each = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none").view_as(targets)
        return each.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)

    def read(self, stream: Stream, recipe: Recipe) -> Stream:
        """Train and validation as lessons, test as questions.

        Raises BadValue where the stream is of images, or has rows that are longer than the model's context.
        """
        if not stream.is_text:
            raise BadValue("a language model reads text, and this suite has images; choose a vision backbone.")
        self.temperature = recipe.temperature
        limits = Limits(recipe.prompt_tokens, recipe.answer_tokens, recipe.truncation)
        if recipe.checkpointing:
            self.body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

        def read(task: Task) -> Task:
            train, validation, test = (_text(part) for part in (task.train, task.validation, task.test))
            lessons = Lessons(train, self.tokenizer, limits), Lessons(validation, self.tokenizer, limits)
            asked = Questions(test, self.tokenizer, limits)
            self._refuse_longer(task.name, max(part.longest for part in (*lessons, asked)))
            return Task(task.name, *lessons, asked, task.classes)

        self._hold_in(torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32)
        return Stream(tuple(read(task) for task in stream), stream.class_names)

    def _hold_in(self, precision: torch.dtype) -> None:
        """Store the weights in `precision`; those in four bits stay so.

        Buffers stay as they are: the frequencies of rotary positions, rounded to a bfloat16, would turn distant tokens
        by angles that the model has never seen.
        """
        for parameter in self.body.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(precision)

    def _refuse_longer(self, task: str, longest: int) -> None:
        """Raise BadValue where `longest` tokens are more than the model was made for."""
        room = getattr(self.body.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and longest > room:
            raise BadValue(
                f"a question of task '{task}' with its answer may have {longest} tokens, and the model reads {room}; "
                "lower recipe.prompt_tokens or recipe.answer_tokens."
            )

    def extent(self, recipe: Recipe, samples: int) -> Extent:
        """Rows as long as the recipe allows; the span is widened for them as it would be by a task."""
        tokens, self.span = recipe.prompt_tokens + recipe.answer_tokens, recipe.answer_tokens
        blocks = [block for _, block in self.blocks]
        return Extent(
            inputs=torch.full((samples, 2, tokens), PROMPT),
            targets=torch.zeros(samples, recipe.answer_tokens, dtype=torch.int64),
            recomputed=blocks if recipe.checkpointing else (),
            cached_tokens=tokens,
            spared_bytes=spared_bytes(blocks) if self.four_bits else 0,
        )

    def begin(self, task: Task) -> None:
        """Widen the span to the task's longest answer; it never shrinks, since past samples may come back."""
        parts = task.train.parts if isinstance(task.train, Union) else (task.train,)
        self.span = max(self.span, *(part.longest_answer for part in parts if isinstance(part, Lessons)))

    # answering

    @torch.no_grad()
    def reply(self, inputs: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Answers `[batch, longest]`, `IGNORED` behind their end, and margins `[batch]`.

        Greedy, or sampled where a temperature is set; questions `[batch, 2, width]` end together, `limits` `[batch]`
        are the answers' greatest lengths.
        """
        embedded, visible = self._embedded(inputs)
        cache = Cache(layer_class_to_replicate=Roomy)
        arguments = self._arguments(embedded, visible) | {"use_cache": True}
        logits = self.body(**arguments, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        margins = torch.full((len(inputs),), float("inf"), device=inputs.device)
        open_, said = torch.ones_like(margins, dtype=torch.bool), []
        for length in range(1, int(limits.max()) + 1):
            token, margin = self._next(logits)
            margins = torch.where(open_, torch.minimum(margins, margin), margins)
            open_ = open_ & (token != self.tokenizer.end)
            said.append(torch.where(open_, token, IGNORED))
            open_ = open_ & (length < limits)
            if not open_.any():
                break
            visible = F.pad(visible, (0, 1), value=True)
            logits = (
                self.body(
                    input_ids=token[:, None],
                    attention_mask=self._masks(visible, 1, embedded.dtype),
                    position_ids=(visible.long().sum(1) - 1)[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                .logits[:, -1]
                .float()
            )
        return torch.stack(said, dim=1), margins

    def _next(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row and how clear the choice was: not at all where it is drawn."""
        if self.temperature:
            chances = (logits / self.temperature).softmax(-1)
            return chances.multinomial(1)[:, 0], torch.zeros_like(logits[:, 0])
        best = logits.topk(2, dim=-1)
        return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]

    def settle(self, reply: tuple[Tensor, Tensor], seen: Tensor) -> tuple[Tensor, Tensor]:
        """As they were given."""
        return reply

    def words(self, answers: Tensor) -> list[str]:
        """The text of answers `[n, length]`."""
        return [self.tokenizer.decode([token for token in row if token >= 0]) for row in answers.tolist()]

    # where adapters go

    def sites(self, projections: Sequence[str]) -> tuple[Site, ...]:
        """The attention's layers: one for each projection, or one for all where they are fused."""
        wrong = [name for name in projections if name not in APART]
        if wrong or not projections:
            raise BadValue(
                f"no projection called '{(wrong or [''])[0]}' in a language model; choose of {', '.join(APART)}."
            )
        return tuple(
            site
            for index, (path, block) in enumerate(self.blocks)
            for site in self._of(index, path, block, projections)
        )

    def _of(self, index: int, path: str, block: nn.Module, projections: Sequence[str]) -> Iterator[Site]:
        """The sites of one block, in the order q, k, v, o."""
        linear = {name.rpartition(".")[2]: name for name, _ in block.named_modules() if name and "." in name}
        fused = next((linear[leaf] for leaf in FUSED if leaf in linear), None)
        wanted = [name for name in APART if name in projections]
        if fused is not None:
            heads = int(self.body.config.get_text_config().num_attention_heads) * self._head_size()
            ends = (0, heads, heads + self.prefix_width, heads + 2 * self.prefix_width)
            rows = {name: (ends[i], ends[i + 1]) for i, name in enumerate("qkv") if name in wanted}
            if rows:
                yield Site(f"{path}.{fused}", index, rows)
            size = self._outputs(f"{path}.{fused}")
            if size != ends[-1] or hasattr(self.body.config, "multi_query"):  # GPT-BigCode goes head by head
                raise BadValue(f"how '{fused}' of a {type(self.body).__name__} is laid out is not known here.")
            wanted = [name for name in wanted if name not in "qkv"]
        for name in wanted:
            found = next((linear[leaf] for leaf in APART[name] if leaf in linear), None)
            if found is None:
                kind = type(self.body).__name__
                raise BadValue(f"{kind} has no layer for the projection '{name}' that is known here; choose others.")
            yield Site(f"{path}.{found}", index, {name: (0, self._outputs(f"{path}.{found}"))})

    def _outputs(self, path: str) -> int:
        layer: Any = self.get_submodule(path)
        return int(layer.out_features)

    def feed_forwards(self) -> tuple[tuple[str, str], ...]:
        """The norm before each block's feed-forward network and the network."""
        found = []
        for path, block in self.blocks:
            names = dict(block.named_children())
            norm = next((name for name in NORMS if name in names), None)
            inner = next((name for name in FEED_FORWARDS if name in names), None)
            if norm is None or inner is None:
                raise BadValue(f"no feed-forward network that is known here in a {type(block).__name__}.")
            found.append((f"{path}.{norm}", f"{path}.{inner}"))
        return tuple(found)

    # prefixes

    def _use_prefixes(self) -> None:
        """Let the attention look at prefixes first: keys and values that a block's attention module carries."""
        config = self.body.config
        self.plain_attention = config._attn_implementation
        for attention in self.attentions:
            attention.prefix, attention.plain_attention = None, self.plain_attention
        config._attn_implementation = PREFIXED

    def _set_prefixes(self, prefixes: Prefixes) -> None:
        size = self._head_size()
        for index, attention in enumerate(self.attentions):
            pair = prefixes.attention.get(index)
            heads = None if pair is None else tuple(part.unflatten(-1, (-1, size)).transpose(1, 2) for part in pair)
            attention.prefix = heads


PREFIXED = "clbench"
"""The name under which our attention is known to transformers."""


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **further: Any
) -> Any:
    """The module's own attention, behind its prefix `(keys, values)`, each `[batch, heads, length, head]`."""
    own = sys.modules[type(module).__module__].eager_attention_forward
    plain = own if module.plain_attention == "eager" else ALL_ATTENTION_FUNCTIONS[module.plain_attention]
    if module.prefix is not None:
        keys, values = (part.to(key.dtype) for part in module.prefix)
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (keys.shape[2], 0))
    return plain(module, query, key, value, attention_mask, **further)


AttentionInterface.register(PREFIXED, _attend)


SPARE = 64
"""For how many tokens to come a cache makes room at a time."""


class Roomy(DynamicLayer):
    """A layer's keys and values, with room for some to come.

    transformers' own copies all it holds for each new token, which took a third of a batch's time.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in the tokens' `[batch, heads, tokens, head]`; gives all so far."""
        fresh = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(*fresh)
            self.held = [new[:, :, :0] for new in fresh]
        first = self.get_seq_length()
        last = first + key_states.shape[2]
        if last > self.held[0].shape[2]:
            self.held = [F.pad(held[:, :, :first], (0, 0, 0, last + SPARE - first)) for held in self.held]
        for held, new in zip(self.held, fresh, strict=True):
            held[:, :, first:last] = new
        self.keys, self.values = (held[:, :, :last] for held in self.held)
        return self.keys, self.values


def _mask(visible: Tensor, queries: int, dtype: torch.dtype, window: int | None) -> Tensor:
    """`[batch, 1, queries, tokens]`: 0 where a token may look, the lowest number elsewhere; itself it always may."""
    tokens = visible.shape[1]
    places = torch.arange(tokens, device=visible.device)
    back = places[tokens - queries :, None] - places
    allowed = (back >= 0) & (visible[:, None, :] | (back == 0))
    if window is not None and window < tokens:
        allowed = allowed & (back < window)
    lowest = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=visible.device).masked_fill(~allowed, lowest)[:, None]


def _text(examples: object) -> TextSet:
    assert isinstance(examples, TextSet)
    return examples
