from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
        body = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **config))
        body.save_pretrained(folder, max_shard_size=shard)
        tokenizer.save_pretrained(folder)
        return folder

    return made
