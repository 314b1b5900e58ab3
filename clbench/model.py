"""Classifier: what methods may ask of any backbone with a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from clbench.seeding import generator


@dataclass(frozen=True)
class Site:
    """A linear layer that can carry an adapter, and which of its output rows belong to which projection."""

    path: str
    """Name of the module inside the classifier."""
    block: int
    """Index of the transformer block."""
    parts: Mapping[str, tuple[int, int]]
    """Projection name -> (first row, row after the last) of the layer's output."""


class Prompter(Protocol):
    """Chooses the prompt tokens of each sample."""

    def __call__(self, tokens: Tensor, query: Tensor) -> Tensor:
        """Prompts `[batch, prompt, width]` from embedded tokens and the untouched backbone's features."""
        ...


@dataclass(frozen=True)
class Prefixes:
    """What a forward pass sees before the input's own; features are read where they always are."""

    tokens: Tensor | None = None
    """Tokens before the input's, behind a class token: `[batch, prompt, width]` (prompt tuning)."""
    attention: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Index of a block -> keys and values before its own, each `[batch, length, prefix_width]` (prefix tuning)."""


class Prefixer(Protocol):
    """Chooses the prefixes of each sample."""

    def __call__(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        """Prefixes for embedded tokens; `query()` are the untouched backbone's features, one more pass when asked."""
        ...


class Head(nn.Module):
    """A linear classifier whose rows do not depend on how many classes there are.

    Row c starts from numbers drawn for class c alone, so that a stream's first task gives the same
    result whatever follows it.
    """

    def __init__(self, width: int, classes: int, seed: int) -> None:
        super().__init__()
        rows = [torch.randn(width, generator=generator(seed, "head", c)) * 0.02 for c in range(classes)]
        self.weight = nn.Parameter(torch.stack(rows))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[batch, classes]` of features `[batch, width]`."""
        return nn.functional.linear(features, self.weight, self.bias)


class Classifier(nn.Module, ABC):
    """A frozen backbone and a trainable head; adapters and prompts attach to it.

    `body` is the pre-trained network, `head` maps features to the logits of all classes of the stream.
    A `prompter` adds tokens and has their outputs read, a `prefixer` adds what is only looked at; one at most is set.
    """

    body: nn.Module
    head: nn.Module
    width: int
    """Size of a feature vector."""
    classes: int

    def __init__(self) -> None:
        super().__init__()
        self.prompter: Prompter | None = None
        self.prefixer: Prefixer | None = None

    @property
    @abstractmethod
    def depth(self) -> int:
        """How many transformer blocks there are."""

    @property
    @abstractmethod
    def prefix_width(self) -> int:
        """Size of a block's key or value of one token, all heads together."""

    @abstractmethod
    def tokens(self, inputs: Tensor) -> Tensor:
        """Embedded input `[batch, tokens, width]` as the first block expects it."""

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Output tokens `[batch, tokens, width]` after the last block and its norm."""

    @abstractmethod
    def pool(self, encoded: Tensor) -> Tensor:
        """The feature vector `[batch, width]` of output tokens."""

    @abstractmethod
    def prompted(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """Features `[batch, width]` when `prompts` `[batch, prompt, width]` are added to the tokens."""

    @abstractmethod
    def prefixed(self, tokens: Tensor, prefixes: Prefixes) -> Tensor:
        """Features `[batch, width]` behind `prefixes`; with none of them, those of the untouched backbone."""

    @abstractmethod
    def sites(self, projections: Sequence[str]) -> tuple[Site, ...]:
        """The layers that hold the named projections, in the order of the blocks."""

    @abstractmethod
    def feed_forwards(self) -> tuple[tuple[str, str], ...]:
        """Each block's feed-forward network, by the names of the norm before it and of itself."""

    def features(self, inputs: Tensor) -> Tensor:
        """Feature vectors `[batch, width]`."""
        tokens = self.tokens(inputs)
        if self.prefixer is not None:
            return self.prefixed(tokens, self.prefixer(tokens, lambda: self.query(tokens)))
        if self.prompter is not None:
            return self.prompted(tokens, self.prompter(tokens, self.query(tokens)))
        return self.pool(self.encode(tokens))

    @torch.no_grad()
    def query(self, tokens: Tensor) -> Tensor:
        """Feature vectors `[batch, width]` of embedded tokens without any prompt or prefix."""
        return self.pool(self.encode(tokens))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[batch, classes]`."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def freeze_body(self) -> None:
        """Stop the backbone's own weights from being trained."""
        for parameter in self.body.parameters():
            parameter.requires_grad_(False)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
