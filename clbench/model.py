"""Classifier: what methods may ask of any backbone with a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clbench.errors import BadValue
from clbench.recipe import Recipe
from clbench.seeding import generator
from clbench.stream import Stream, Task


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

    @property
    def adds_something(self) -> bool:
        """Whether there are any."""
        return self.tokens is not None or bool(self.attention)


class Prefixer(Protocol):
    """Chooses the prefixes of each sample."""

    def __call__(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        """Prefixes for embedded tokens; `query()` are the untouched backbone's features, one more pass when asked."""
        ...


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The largest batch that a recipe allows, and what shapes do not tell of the memory that a model takes for it."""

    inputs: Tensor
    targets: Tensor
    recomputed: Sequence[nn.Module] = ()
    """Of these the inputs alone are kept for the gradient; the rest is computed once more, in one at a time."""
    cached_tokens: int = 0
    """Of how many tokens of a sample keys and values are kept while it is answered."""
    spared_bytes: int = 0
    """How many bytes fewer than shapes say the backbone's weights take."""


class Head(nn.Module):
    """A linear classifier whose rows do not depend on how many classes there are.

    Row c starts from numbers drawn for class c alone, so that a stream's first task gives the same
    result whatever follows it.
    """

    def __init__(self, width: int, classes: int, seed: int) -> None:
        if not classes:
            raise BadValue(
                "images are answered by classes, and this suite's answers are text; choose a language model."
            )
        super().__init__()
        rows = [torch.randn(width, generator=generator(seed, "head", c)) * 0.02 for c in range(classes)]
        self.weight = nn.Parameter(torch.stack(rows))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[batch, classes]` of features `[batch, width]`."""
        return nn.functional.linear(features, self.weight, self.bias)


class Classifier(nn.Module, ABC):
    """A frozen pre-trained network and what answers with it; adapters and prompts attach to it.

    Images: logits are of all classes of the stream, `[batch, classes]`, by a trainable head. Text: a language
    model is a classifier of tokens; its logits `[batch, positions, classes]` are of the vocabulary at the last
    positions, where the answers' tokens stand, and its head is frozen like the rest.
    A `prompter` adds tokens, a `prefixer` adds what is only looked at; one at most is set.
    """

    body: nn.Module
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
    def features(self, inputs: Tensor) -> Tensor:
        """Feature vectors `[batch, width]`; of text, of its questions alone."""

    @abstractmethod
    def query(self, inputs: Tensor) -> Tensor:
        """Feature vectors `[batch, width]` without any prompt or prefix; no gradient."""

    @abstractmethod
    def sites(self, projections: Sequence[str]) -> tuple[Site, ...]:
        """The layers that hold the named projections, in the order of the blocks."""

    @abstractmethod
    def feed_forwards(self) -> tuple[tuple[str, str], ...]:
        """Each block's feed-forward network, by the names of the norm before it and of itself."""

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        """The loss of each sample, `[batch]`. `allowed` `[classes]` or `[batch, classes]`: which logits it sees."""

    @abstractmethod
    def read(self, stream: Stream, recipe: Recipe) -> Stream:
        """The stream in the form in which this model takes it."""

    @abstractmethod
    def extent(self, recipe: Recipe, samples: int) -> Extent:
        """For a forecast of memory: what so many samples come to; their numbers mean nothing."""

    @abstractmethod
    def begin(self, task: Task) -> None:
        """A task is about to be learned, or, when a run goes on, has been."""

    @abstractmethod
    def reply(self, inputs: Tensor, limits: Tensor) -> Any:
        """The answer to test inputs before a choice is made; `limits` `[batch]` are what `read` put for targets."""

    @abstractmethod
    def settle(self, reply: Any, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Answers `[batch]`, or tokens `[batch, length]`, and the margins `[batch]` by which they were chosen."""

    @abstractmethod
    def words(self, answers: Tensor) -> list[str] | None:
        """The text of answers `[n, length]`; None where they are classes."""

    def freeze_body(self) -> None:
        """Stop the backbone's own weights from being trained."""
        for parameter in self.body.parameters():
            parameter.requires_grad_(False)

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that training moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class ImageClassifier(Classifier):
    """A vision network with a head over the classes of the stream.

    A prompter's tokens have their outputs read; what a prefixer adds is only looked at.
    """

    head: nn.Module
    recall: Callable[[Tensor], Tensor | None] | None = None
    """Inputs -> the untouched backbone's features of them, where they are known and that is asked; see `recall`."""

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

    def features(self, inputs: Tensor) -> Tensor:
        """Feature vectors `[batch, width]`."""
        if self.prefixer is not None:
            tokens = self.tokens(inputs)
            prefixes = self.prefixer(tokens, lambda: self._untouched(inputs, tokens))
            known = None if prefixes.adds_something else self._recalled(inputs)
            return self.prefixed(tokens, prefixes) if known is None else known
        if self.prompter is not None:
            tokens = self.tokens(inputs)
            return self.prompted(tokens, self.prompter(tokens, self._untouched(inputs, tokens)))
        known = self._recalled(inputs)
        return self.pool(self.encode(self.tokens(inputs))) if known is None else known

    def query(self, inputs: Tensor) -> Tensor:
        """Feature vectors `[batch, width]` without any prompt or prefix."""
        return self._untouched(inputs)

    @torch.no_grad()
    def _untouched(self, inputs: Tensor, tokens: Tensor | None = None) -> Tensor:
        known = self._recalled(inputs)
        if known is not None:
            return known
        return self.pool(self.encode(self.tokens(inputs) if tokens is None else tokens))

    def _recalled(self, inputs: Tensor) -> Tensor | None:
        return None if self.recall is None else self.recall(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[batch, classes]`."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def losses(self, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
        """Cross-entropy over the allowed classes, `[batch]`."""
        return nn.functional.cross_entropy(logits.masked_fill(~allowed, float("-inf")), targets, reduction="none")

    def read(self, stream: Stream, recipe: Recipe) -> Stream:
        """As it is."""
        return stream

    def begin(self, task: Task) -> None:
        """Nothing to prepare."""

    def reply(self, inputs: Tensor, limits: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self(inputs)
        return logits.float()

    def settle(self, reply: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The best of the classes seen, and how far it lies above the next."""
        best = reply.masked_fill(~seen, float("-inf")).topk(min(2, reply.shape[1]), dim=1)
        return best.indices[:, 0], best.values[:, 0] - best.values[:, -1]

    def words(self, answers: Tensor) -> None:
        """Classes have no text."""
        return None
