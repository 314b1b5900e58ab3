from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Bytes
from clbench.padding import ANSWER, NOTHING, PROMPT

TEXTS = ["stance:A", "stance:B", "a long stance", "längs über Öl", "态度支持", "stance: none"] * 8
"""With no words told apart, ':A' and ':B' become tokens of their own."""
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture(scope="session")
def make_tokenizer() -> MakeTokenizer:
    """(template) -> a fast byte-level BPE tokenizer that opens and closes a text as the template says."""

    def made(template: str = "<s> $A") -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(TEXTS, trainer)
        special = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>") if name in template]
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(template, special_tokens=special)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")

    return made


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: MakeTokenizer) -> Callable[..., Path]:
    """(shard size) -> a folder with a small Llama and its tokenizer, as transformers writes it."""

    def made(shard: str = "1GB", **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        tokenizer = make_tokenizer()
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        body = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **{**sizes, **config})
        )
        body.save_pretrained(folder, max_shard_size=shard)
        tokenizer.save_pretrained(folder)
        return folder

    return made


SIZES: dict[str, Any] = {"vocab_size": 259, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.3, "max_position_embeddings": 64}
SPECIAL: dict[str, Any] = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
TWO_KINDS = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**WIDE, num_key_value_heads=2),
    "mistral": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=None),
    "mistral with a window": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=4),
    "gemma": GemmaConfig(**WIDE, num_key_value_heads=1, head_dim=8),
    "gemma 2": Gemma2Config(
        **WIDE, num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=TWO_KINDS, attn_logit_softcapping=1.0
    ),
    "gemma 3": Gemma3TextConfig(**WIDE, num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=TWO_KINDS),
    "qwen 2": Qwen2Config(**WIDE, num_key_value_heads=2),
    "qwen 3": Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8),
    "phi": PhiConfig(**WIDE),
    "phi 3": Phi3Config(**WIDE, num_key_value_heads=2, **SPECIAL),
    "gpt-2": GPT2Config(vocab_size=259, n_layer=2, n_head=4, n_embd=16, n_positions=64, initializer_range=0.3),
}


class Lab:
    """Small models with random weights that read bytes, and rows of tokens for them."""

    def __init__(self) -> None:
        self.drawn: dict[str, Any] = {}
        self.rows = self.some_rows([5, 12, 9])
        self.batch = self.aligned(self.rows, [2, 3, 1])

    def body(self, name: str = "llama") -> Any:
        """A model of transformers alone, its biases random too."""
        if name not in self.drawn:
            torch.manual_seed(0)
            made = self.drawn[name] = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
            for path, parameter in made.named_parameters():
                if path.endswith("bias"):
                    nn.init.normal_(parameter, std=0.3)
        return copy.deepcopy(self.drawn[name])

    def model(self, name: str = "llama") -> LanguageModel:
        """The same as ours."""
        return LanguageModel(self.body(name), Bytes())

    def aligned(self, rows: Sequence[Sequence[int]], answers: Sequence[int]) -> Tensor:
        """Rows that end together, the last tokens of each an answer, `[batch, 2, width]`."""
        width = max(map(len, rows))
        inputs = torch.full((len(rows), 2, width), NOTHING)
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            inputs[i, 0, width - len(row) :] = torch.tensor(row)
            inputs[i, 1, width - len(row) :] = PROMPT
            inputs[i, 1, width - answer :] = ANSWER
        return inputs

    def some_rows(self, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
        """Random tokens, always the same."""
        draws = torch.Generator().manual_seed(seed)
        return [torch.randint(256, (length,), generator=draws).tolist() for length in lengths]


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    """Every architecture in turn."""
    return str(request.param)
