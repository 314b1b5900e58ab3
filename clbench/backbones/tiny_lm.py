"""The shape of `tiny-lm`: a small Llama that reads bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import LlamaConfig

WEIGHTS_PATH = Path(__file__).with_name("tiny-lm.safetensors")
"""`LlamaForCausalLM.state_dict()` without `lm_head.weight`, which is tied to the embedding."""
CONTEXT_BYTES = 256
"""Length of the windows it was pre-trained on."""


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 255, and three tokens that no text holds.

    >>> ByteTokenizer().encode("aü")
    [97, 195, 188]
    >>> ByteTokenizer().decode([257, 97, 195, 188, 258])
    'aü'
    """

    pad_id, bos_id, eos_id = 256, 257, 258
    vocabulary = 259

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`, with no special token before or after."""
        return list(text.encode())

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens` without the special ones; a broken character becomes U+FFFD."""
        return bytes(token for token in tokens if token < self.pad_id).decode(errors="replace")


def tiny_lm_config() -> LlamaConfig:
    """0.7 M weights: width 128, 4 blocks, 4 heads, tied embeddings."""
    return LlamaConfig(
        vocab_size=ByteTokenizer.vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_BYTES,
        tie_word_embeddings=True,
        pad_token_id=ByteTokenizer.pad_id,
        bos_token_id=ByteTokenizer.bos_id,
        eos_token_id=ByteTokenizer.eos_id,
    )
