"""Reading: text rows as token batches, cut where they are too long."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from clbench.errors import BadValue
from clbench.padding import ANSWER, IGNORED, NOTHING, PROMPT
from clbench.stream import TextSet
from clbench.text import TextTask

Tokens = list[int]


class Tokenizer(Protocol):
    """What reads text for a language model."""

    end: int
    """The token that closes an answer."""

    def encode(self, texts: Sequence[str]) -> list[tuple[Tokens, list[int]]]:
        """For each text its tokens, opened as the model expects it, and where each ends, in characters."""
        ...

    def decode(self, tokens: Tokens) -> str:
        """The text of tokens, without special ones."""
        ...


class HubTokenizer:
    """A fast tokenizer of transformers, without any chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise BadValue(
                f"the tokenizer {type(tokenizer).__name__} cannot tell where its tokens stand in the text; "
                "use a model folder with a tokenizer.json."
            )
        if tokenizer.eos_token_id is None:
            raise BadValue("the tokenizer has no token that ends a text, so no answer could end; set its eos_token.")
        self.tokenizer, self.end = tokenizer, int(tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> list[tuple[Tokens, list[int]]]:
        """Opened by the beginning-of-text token where the tokenizer has it so; never closed."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), return_offsets_mapping=True, return_attention_mask=False, verbose=False)
        pairs = []
        for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True):
            closed = bool(ids) and ids[-1] == self.end and offsets[-1] == (0, 0)
            last = len(ids) - closed
            pairs.append((list(ids[:last]), [end for _, end in offsets[:last]]))
        return pairs

    def decode(self, tokens: Tokens) -> str:
        """Without special tokens, and nothing cleaned up."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Bytes:
    """UTF-8 bytes as tokens, opened and closed by tokens that no text holds."""

    opening, end = 257, 258
    vocabulary = 259

    def encode(self, texts: Sequence[str]) -> list[tuple[Tokens, list[int]]]:
        """One token a byte."""
        pairs = []
        for text in texts:
            ends = [place for place, letter in enumerate(text, 1) for _ in letter.encode()]
            pairs.append(([self.opening, *text.encode()], [0, *ends]))
        return pairs

    def decode(self, tokens: Tokens) -> str:
        """A broken character becomes U+FFFD."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


@dataclass(frozen=True)
class Limits:
    """How long a question and an answer may be, in tokens, and what a long question loses.

    `body`: what stands after the instruction, from its front; the instruction and the cue stay. `left`: whatever
    stands first in question and answer together while learning, and in the question alone when it is asked,
    as in TRACE's code. An answer that is too long to be learned loses its end, and with it the closing token.
    """

    prompt: int
    answer: int
    truncation: Literal["body", "left"] = "body"


class Lessons(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Rows to learn from: batches of questions with their answers, which end together at the right.

    A batch's inputs are `[batch, 2, width]`: token ids above roles (`clbench.padding`); its targets are the
    answers' tokens with the closing one, `[batch, longest]`, `IGNORED` before them.
    """

    def __init__(self, source: TextSet, tokenizer: Tokenizer, limits: Limits) -> None:
        self.source, self.targets = source, source.targets
        self.pairs = [(_kept(prompt), _kept(answer)) for prompt, answer in _pairs(source, tokenizer, limits)]
        self.longest_answer = max((len(answer) for _, answer in self.pairs), default=1)
        self.longest = max((len(prompt) + len(answer) for prompt, answer in self.pairs), default=0)

    @property
    def tokens(self) -> int:
        """How many there are in all rows."""
        return sum(len(prompt) + len(answer) for prompt, answer in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, _ = self.batch(torch.tensor([index]), torch.device("cpu"))
        return inputs[0], 0

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Questions with answers at `indices`, as wide as the longest."""
        pairs = [self.pairs[i] for i in indices.tolist()]
        width = max(len(prompt) + len(answer) for prompt, answer in pairs)
        span = max(len(answer) for _, answer in pairs)
        inputs = torch.full((len(pairs), 2, width), NOTHING)
        targets = torch.full((len(pairs), span), IGNORED)
        for row, (prompt, answer) in enumerate(pairs):
            first = width - len(prompt) - len(answer)
            inputs[row, 0, first : width - len(answer)] = prompt
            inputs[row, 0, width - len(answer) :] = answer
            inputs[row, 1, first : width - len(answer)] = PROMPT
            inputs[row, 1, width - len(answer) :] = ANSWER
            targets[row, span - len(answer) :] = answer
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def sha256(self) -> str:
        """Hash of the rows."""
        return self.source.sha256()


class Questions(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Rows to be asked: batches of questions alone, with the greatest length of each answer for a target."""

    def __init__(self, source: TextSet, tokenizer: Tokenizer, limits: Limits) -> None:
        self.source, self.targets = source, source.targets
        read = tokenizer.encode([row.prompt for row in source.rows])
        self.prompts = [_kept(_cut(tokens, ends, source.task, limits)) for tokens, ends in read]
        self.cap = min(source.task.answer_tokens, limits.answer)
        self.longest = max((len(prompt) for prompt in self.prompts), default=0) + self.cap

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, _ = self.batch(torch.tensor([index]), torch.device("cpu"))
        return inputs[0], 0

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Questions at `indices`, `[batch, 2, width]`, and `[batch]` greatest lengths."""
        prompts = [self.prompts[i] for i in indices.tolist()]
        width = max(map(len, prompts))
        inputs = torch.full((len(prompts), 2, width), NOTHING)
        for row, prompt in enumerate(prompts):
            inputs[row, 0, width - len(prompt) :] = prompt
            inputs[row, 1, width - len(prompt) :] = PROMPT
        caps = torch.full((len(prompts),), self.cap)
        return inputs.to(device, non_blocking=True), caps.to(device, non_blocking=True)

    def sha256(self) -> str:
        """Hash of the rows."""
        return self.source.sha256()


def _kept(tokens: Tokens) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int32)


def _pairs(source: TextSet, tokenizer: Tokenizer, limits: Limits) -> list[tuple[Tokens, Tokens]]:
    """Question and closed answer of each row; read as one text, so that a token is where the model would see it."""
    found = []
    joined = tokenizer.encode([row.prompt + row.answer for row in source.rows])
    for row, (tokens, ends) in zip(source.rows, joined, strict=True):
        asked = bisect_right(ends, len(row.prompt))  # a token across the boundary belongs to the answer
        if limits.truncation == "left":
            opened = bisect_right(ends, 0)
            found.append(_from_the_left(tokens, opened, len(tokens) - asked + 1, tokenizer.end, limits))
        else:
            prompt = _cut(tokens[:asked], ends[:asked], source.task, limits)
            found.append((prompt, [*tokens[asked:], tokenizer.end][: limits.answer]))
    return found


def _from_the_left(tokens: Tokens, opened: int, learned: int, end: int, limits: Limits) -> tuple[Tokens, Tokens]:
    """Question and answer as TRACE's code cuts them; `learned`: how many tokens at the end are learned.

    As there, a text that fills the limit is not closed, and its last tokens are learned in as great a number as
    if it were.
    """
    room, text = limits.prompt + limits.answer, tokens[opened:]
    whole = text[-room:] if len(text) >= room else [*tokens, end][-room:]
    first = max(1, len(whole) - learned)  # nothing stands before the first token that could tell it
    return whole[:first], whole[first:]


def _cut(tokens: Tokens, ends: Sequence[int], task: TextTask, limits: Limits) -> Tokens:
    """A question within its limit. Raises BadValue where it is empty, or not even instruction and cue would fit."""
    if not tokens:
        raise BadValue(f"task '{task.name}' has a question without any token; give every row a prompt.")
    if len(tokens) <= limits.prompt:
        return tokens
    if limits.truncation == "left":
        return tokens[-limits.prompt :]
    first = bisect_right(ends, len(task.prefix))
    cue = len(ends) - bisect_right(ends, ends[-1] - len(task.cue))
    if first + cue > limits.prompt:
        raise BadValue(
            f"instruction and cue of task '{task.name}' have {first + cue} tokens and a question may have "
            f"{limits.prompt}; raise recipe.prompt_tokens."
        )
    return tokens[:first] + tokens[len(tokens) - (limits.prompt - first) :]
