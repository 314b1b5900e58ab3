"""How `tiny-lm` is made: next-byte prediction on generated text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from clbench.backbones import tiny_text
from clbench.backbones.tiny_lm import CONTEXT_BYTES, WEIGHTS_PATH, ByteTokenizer, tiny_lm_config
from clbench.files import write_atomically
from clbench.seeding import derive, generator


@dataclass(frozen=True, kw_only=True)
class TinyLmRecipe:
    """AdamW on windows packed without gaps; linear warm-up, then a cosine down to `last_share`."""

    corpus_bytes: int = 16_000_000
    held_out_bytes: int = 100_000
    steps: int = 6_000
    batch_size: int = 8
    """Windows of `CONTEXT_BYTES` tokens."""
    learning_rate: float = 2.5e-3
    last_share: float = 0.02
    warmup_steps: int = 150
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (self.last_share + (1 - self.last_share) * 0.5 * (1 + math.cos(math.pi * done)))


def packed(documents: Sequence[str]) -> Tensor:
    """Begin, bytes and end of each document, one after another: `[tokens]` int16."""
    tokenizer, tokens = ByteTokenizer(), []
    for document in documents:
        tokens += [tokenizer.bos_id, *tokenizer.encode(document), tokenizer.eos_id]
    return torch.tensor(tokens, dtype=torch.int16)


def corpus_sha256(documents: Sequence[str]) -> str:
    """Hash of the documents in order."""
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()


def windows(tokens: Tensor, batch_size: int, draws: torch.Generator) -> Tensor:
    """`[batch_size, CONTEXT_BYTES + 1]` int64 cut out at random places."""
    starts = torch.randint(len(tokens) - CONTEXT_BYTES, (batch_size, 1), generator=draws)
    return tokens[starts + torch.arange(CONTEXT_BYTES + 1)].long()


def next_byte_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each token given those before it in its window."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor) -> float:
    """Mean loss over `tokens` cut into windows, the last incomplete one left out."""
    count = (len(tokens) - 1) // CONTEXT_BYTES
    starts = torch.arange(count)[:, None] * CONTEXT_BYTES
    parts = tokens[starts + torch.arange(CONTEXT_BYTES + 1)].long().split(32)
    return sum(float(next_byte_loss(model, part)) * len(part) for part in parts) / count


def pretrain_tiny_lm(
    report: Callable[[str], None], out: Path | None = None, recipe: TinyLmRecipe | None = None
) -> Path:
    """Make the weights of `tiny-lm` and their model card; returns the path of the weights.

    They go to folder `out`, or to where the shipped ones lie. Takes about 35 minutes on an idle CPU core.
    """
    recipe = recipe or TinyLmRecipe()
    torch.manual_seed(derive(recipe.seed, "tiny-lm"))
    model = LlamaForCausalLM(tiny_lm_config())
    facts = train(model, recipe, report)
    weights = save({name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"})
    path = WEIGHTS_PATH if out is None else out / WEIGHTS_PATH.name
    write_atomically(path, weights)
    card = {**tiny_lm_card(facts, recipe), "sha256": hashlib.sha256(weights).hexdigest()}
    write_atomically(path.with_suffix(".json"), (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())
    report(f"wrote {path} and its card; held-out loss {facts['held_out_nats_per_byte']}")
    return path


def train(model: nn.Module, recipe: TinyLmRecipe, report: Callable[[str], None]) -> dict[str, Any]:
    """Train `model` in place; returns the facts for its card."""
    began = time.monotonic()
    documents = tiny_text.corpus(recipe.corpus_bytes, recipe.seed)
    tokens = packed(documents)
    held_out = packed(tiny_text.corpus(recipe.held_out_bytes, recipe.seed + 1))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=recipe.betas,
    )
    draws = generator(recipe.seed, "tiny-lm windows")
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        loss = next_byte_loss(model, windows(tokens, recipe.batch_size, draws))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            minutes = (time.monotonic() - began) / 60
            report(f"step {step + 1}/{recipe.steps}  loss {loss.detach():.3f}  {minutes:.1f} min")
    model.eval()
    return {
        "documents": len(documents),
        "corpus_sha256": corpus_sha256(documents),
        "weights": sum(parameter.numel() for parameter in parameters),
        "tokens_seen": recipe.steps * recipe.batch_size * CONTEXT_BYTES,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "held_out_nats_per_byte": round(held_out_loss(model, held_out), 4),
    }


def tiny_lm_card(facts: dict[str, Any], recipe: TinyLmRecipe) -> dict[str, Any]:
    """The model card of `tiny-lm`, without the hash of its weights."""
    return {
        "name": "tiny-lm",
        "architecture": "transformers LlamaForCausalLM, float32: width 128, 4 blocks, 4 heads, tied embeddings",
        "input": "UTF-8 bytes; pad 256, begin 257, end 258; no tokenizer file",
        "licence": "Apache-2.0; all text is generated by clbench.backbones.tiny_text",
        "data": (
            "generated short documents: stories, lists, sums, programs, dialogues, German sentences, copies; "
            "no instruction, cue or test row of the suite trace-tiny occurs in them"
        ),
        "recipe": dataclasses.asdict(recipe),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "threads": torch.get_num_threads(),
        **facts,
    }
