"""Prefixes: trainable keys and values that the attention of some blocks sees before its own (prefix tuning)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from clbench.adapters.prompts import TaskPrompts
from clbench.errors import BadValue
from clbench.model import Classifier, Prefixes


def existing(model: Classifier, blocks: Sequence[int]) -> tuple[int, ...]:
    """`blocks`, all of which the backbone has. Raises BadValue otherwise."""
    wrong = [block for block in blocks if not 0 <= block < model.depth]
    if wrong:
        raise BadValue(
            f"a prefix was asked for in block {wrong[0]}, and this backbone has blocks 0 to {model.depth - 1}; "
            "name blocks of these."
        )
    return tuple(blocks)


def by_block(blocks: Sequence[int], pairs: Tensor) -> Prefixes:
    """`pairs` `[batch, blocks, 2, length, width]`, keys before values, as the prefixes of `blocks`."""
    return Prefixes(attention={block: (pairs[:, i, 0], pairs[:, i, 1]) for i, block in enumerate(blocks)})


def halves(blocks: Sequence[int], prompts: Tensor) -> Prefixes:
    """`prompts` `[batch, blocks, length, width]`, whose first half are the keys and whose second the values."""
    return by_block(blocks, prompts.unflatten(2, (2, -1)))


class TaskPrefixes(nn.Module):
    """A trainable prefix for some blocks and a bank of kept ones: prompts of `[blocks, 2, length, width]`.

    A sample's keys and values are the same wherever it stands in the batch. `reshaped` is the deviation of
    common ports of DualPrompt: `[2, batch]` is read as `[batch, 2]` without being transposed, so that one
    half of a batch gets the keys for both and the other half the values.
    """

    def __init__(
        self, blocks: Sequence[int], length: int, width: int, generator: torch.Generator, reshaped: bool = False
    ) -> None:
        super().__init__()
        self.blocks, self.reshaped, self.is_off = tuple(blocks), reshaped, False
        self.prompts = TaskPrompts((len(self.blocks), 2, length, width), generator)

    def forward(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        """The prefixes of a batch."""
        if self.is_off:
            return Prefixes()
        pairs = self.prompts(len(tokens))
        if self.reshaped:
            apart = pairs.movedim(0, 2)  # [blocks, 2, batch, length, width]
            pairs = apart.reshape(len(apart), len(tokens), 2, *apart.shape[3:]).movedim(0, 1)
        return by_block(self.blocks, pairs)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the model is the untouched backbone."""
        self.is_off = True
        try:
            yield
        finally:
            self.is_off = False

    def keep(self) -> None:
        """Put a copy of the live prefix at the end of the bank."""
        self.prompts.keep()

    def draw_to_kept(self, share: float, slots: Sequence[int]) -> None:
        """Move the live prefix by `share` towards the mean of the kept ones in `slots`."""
        self.prompts.draw_to_kept(share, slots)

    def choose(self, slots: Tensor | None) -> None:
        """From now on use the kept prefix in `slots` `[batch]` for each sample; None: the live one for all."""
        self.prompts.choose(slots)
