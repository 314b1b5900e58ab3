"""Classifier: what methods may ask of any backbone with a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    body: nn.Module
    head: nn.Module
    width: int
    """Size of a feature vector."""
    classes: int

    def __init__(self) -> None:
        super().__init__()
        self.prompter: Prompter | None = None

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
    def sites(self, projections: Sequence[str]) -> tuple[Site, ...]:
        """The layers that hold the named projections, in the order of the blocks."""

    def features(self, inputs: Tensor) -> Tensor:
        """Feature vectors `[batch, width]`."""
        tokens = self.tokens(inputs)
        if self.prompter is None:
            return self.pool(self.encode(tokens))
        with torch.no_grad():
            query = self.pool(self.encode(tokens))
        return self.prompted(tokens, self.prompter(tokens, query))

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
