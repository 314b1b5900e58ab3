"""Bottleneck adapters: a small network parallel to each block's feed-forward network, the same for every backbone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.model import Classifier

Use: TypeAlias = Literal["live", "none"] | int
"""Which adapter a pass goes through: the live one, none, or the one in a slot of the bank."""


class ParallelAdapter(nn.Module):
    """`mlp(norm(x)) + scale * (up @ relu(down @ x + down_bias) + up_bias)` (AdaptFormer, Chen et al. 2022).

    down: `[hidden, width]`, Kaiming-uniform (a = sqrt 5); up: `[width, hidden]` and both biases, zero, so that
    the adapted block starts equal to the frozen one. As in the released code the adapter reads what enters the
    block's norm; the paper writes what leaves it.

    Beside the live adapter there is a bank of kept ones, one `[numbers]` row each, of which a forward pass can use
    one instead.
    """

    bank: Tensor

    def __init__(self, norm: nn.Module, mlp: nn.Module, width: int, hidden: int, scale: float, device: torch.device):
        super().__init__()
        self.norm, self.mlp, self.scale = norm, mlp, scale
        self.use: Use = "live"
        self.down = nn.Parameter(torch.empty(hidden, width, device=device))
        self.down_bias = nn.Parameter(torch.zeros(hidden, device=device))
        self.up = nn.Parameter(torch.zeros(width, hidden, device=device))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device))
        self.register_buffer("bank", torch.zeros(0, sum(part.numel() for part in self.parts), device=device))

    @property
    def parts(self) -> tuple[nn.Parameter, ...]:
        """What is trained."""
        return self.down, self.down_bias, self.up, self.up_bias

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Draw a fresh `down`; set all else to zero."""
        bound = 1 / math.sqrt(self.down.shape[1])
        self.down.copy_(torch.rand(self.down.shape, generator=generator) * (2 * bound) - bound)
        for part in self.parts[1:]:
            part.zero_()

    @torch.no_grad()
    def keep(self) -> None:
        """Put a copy of the live adapter at the end of the bank."""
        self.bank = torch.cat([self.bank, torch.cat([part.flatten() for part in self.parts])[None]])

    def _chosen(self, slot: int) -> tuple[Tensor, ...]:
        pieces = self.bank[slot].split([part.numel() for part in self.parts])
        return tuple(piece.view(part.shape) for piece, part in zip(pieces, self.parts, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, tokens, width]` to the same."""
        out: Tensor = self.mlp(self.norm(x))
        if self.use == "none":
            return out
        down, down_bias, up, up_bias = self.parts if self.use == "live" else self._chosen(self.use)
        return torch.add(out, F.linear(F.relu(F.linear(x, down, down_bias)), up, up_bias), alpha=self.scale)


class Bottlenecks:
    """The adapters of one model, one a block."""

    def __init__(self, layers: Sequence[ParallelAdapter]) -> None:
        self.layers = tuple(layers)

    def restart(self, generator: torch.Generator) -> None:
        """Make the live adapters fresh ones, which change nothing yet."""
        for layer in self.layers:
            layer.restart(generator)

    def keep(self) -> None:
        """Put a copy of the live adapters at the end of the bank."""
        for layer in self.layers:
            layer.keep()

    @contextlib.contextmanager
    def using(self, which: Use) -> Iterator[None]:
        """Within the block every pass goes through these adapters."""
        before = [layer.use for layer in self.layers]
        for layer in self.layers:
            layer.use = which
        try:
            yield
        finally:
            for layer, use in zip(self.layers, before, strict=True):
                layer.use = use


def attach(model: Classifier, hidden: int, scale: float, generator: torch.Generator) -> Bottlenecks:
    """Freeze the backbone and put an adapter of `hidden` units parallel to each feed-forward network."""
    model.freeze_body()
    layers = []
    for norm_path, mlp_path in model.feed_forwards():
        norm, mlp = model.get_submodule(norm_path), model.get_submodule(mlp_path)
        device = next(mlp.parameters()).device
        layer = ParallelAdapter(norm, mlp, model.width, hidden, scale, device)
        model.set_submodule(norm_path, nn.Identity())  # the adapter reads what enters the norm
        model.set_submodule(mlp_path, layer)
        layers.append(layer)
    bottlenecks = Bottlenecks(layers)
    bottlenecks.restart(generator)
    return bottlenecks
