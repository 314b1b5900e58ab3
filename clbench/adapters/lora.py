"""LoRA: low-rank updates of linear layers, the same code for every backbone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.model import Classifier, Site


class LoRALinear(nn.Module):
    """A frozen linear layer plus `alpha / rank * up @ down` for some of its projections (Hu et al. 2022).

    down: `[parts * rank, in]`, Kaiming-uniform (a = sqrt 5); up: `[rows of all parts, rank]`, zero, so
    that the adapted layer starts equal to the frozen one. Retired pairs (`past_down` `[tasks, parts * rank, in]`,
    `past_up` `[tasks, rows, rank]`) are summed into the layer's effective weight, which costs no time in a step; the
    frozen layer itself is never written to. A weight of less than 32 bits could not hold them: whatever is smaller
    than half the distance between its neighbouring numbers, 0.2 % to 0.4 % of a bfloat16, would be gone. There they
    are applied beside it, all in one product a factor, and are as exact as the live pair.

    Beside them there is a bank of kept pairs, `bank_down` `[slots, parts * rank, in]` and `bank_up`
    `[slots, rows, rank]`, of which a forward pass can use one for each sample instead of the live pair, or
    all of them together with the live pair, each times a coefficient.

    While learning, the share `dropout` of what enters the live pair is zero and the rest scaled up for it.
    """

    past_down: Tensor
    past_up: Tensor
    bank_down: Tensor
    bank_up: Tensor
    weight: Tensor

    def __init__(
        self, base: nn.Linear, site: Site, rank: int, alpha: float, generator: torch.Generator, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base, self.dropout = base.requires_grad_(False), dropout
        self.name = f"block {site.block} {'+'.join(site.parts)}"
        self.rank, self.scale = rank, alpha / rank
        self.use: Literal["live", "kept", "mixed", "none"] = "live"
        self.slots: Tensor | None = None
        self.coefficients: Tensor | None = None
        self.bounds = tuple(site.parts.values())
        self.sizes = [last - first for first, last in self.bounds]
        fan_in, device = base.in_features, base.weight.device
        self.down = nn.Parameter(torch.empty(len(self.bounds) * rank, fan_in, device=device))
        self.up = nn.Parameter(torch.zeros(sum(self.sizes), rank, device=device))
        for kept in ("past", "bank"):
            self.register_buffer(f"{kept}_down", self.down.detach().new_zeros(0, *self.down.shape))
            self.register_buffer(f"{kept}_up", self.up.detach().new_zeros(0, *self.up.shape))
        self.register_buffer("weight", base.weight.detach(), persistent=False)
        self.restart(generator)

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Draw a fresh `down` and set `up` to zero."""
        bound = math.sqrt(6 / ((1 + 5) * self.base.in_features))
        fresh = torch.rand(self.down.shape, generator=generator) * (2 * bound) - bound
        self.down.copy_(fresh)
        self.up.zero_()

    @torch.no_grad()
    def retire(self, generator: torch.Generator) -> None:
        """Freeze the live pair into the past and start a fresh one."""
        self.past_down = torch.cat([self.past_down, self.down.detach()[None]])
        self.past_up = torch.cat([self.past_up, self.up.detach()[None]])
        self.refold()
        self.restart(generator)

    @property
    def is_off(self) -> bool:
        """Whether it gives what the frozen layer gives."""
        return self.use == "none" and not len(self.past_down)

    @property
    def folds(self) -> bool:
        """Whether the effective weight takes in the retired pairs: where it is as exact as they are."""
        return self.base.weight.dtype in (torch.float32, torch.float64)

    @torch.no_grad()
    def refold(self) -> None:
        """Rebuild the effective weight from the frozen layer and the retired pairs."""
        if not (self.folds and len(self.past_down)):
            self.weight = self.base.weight.detach()
            return
        weight = self.base.weight.detach().clone()
        row = 0
        for part, ((first, last), size) in enumerate(zip(self.bounds, self.sizes, strict=True)):
            down = self.past_down[:, part * self.rank : (part + 1) * self.rank]
            weight[first:last] += self.scale * torch.einsum("tor,tri->oi", self.past_up[:, row : row + size], down)
            row += size
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, …, in]` to `[batch, …, out]`."""
        out = F.linear(x, self.weight, self.base.bias) if self.folds else self._beside(x)
        if self.use == "none":
            return out
        if self.use == "kept":
            assert self.slots is not None
            return torch.add(out, self._kept(x, self.slots), alpha=self.scale)
        if self.use == "mixed":
            assert self.coefficients is not None
            return torch.add(out, self._mixed(x, self.coefficients), alpha=self.scale)
        low = F.linear(self._entering(x), self.down).split(self.rank, dim=-1)
        pieces = [F.linear(part, up) for part, up in zip(low, self.up.split(self.sizes), strict=True)]
        return torch.add(out, self._placed(pieces), alpha=self.scale)

    def _entering(self, x: Tensor) -> Tensor:
        """What the live pair is given: `x` itself unless something is dropped."""
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def _beside(self, x: Tensor) -> Tensor:
        """The frozen layer's output and, where there are any, the retired pairs' updates."""
        out: Tensor = self.base(x)
        if not len(self.past_down):
            return out
        return torch.add(out, self._summed(F.linear(x, self.past_down.flatten(0, 1)), self.past_up), alpha=self.scale)

    def _kept(self, x: Tensor, slots: Tensor) -> Tensor:
        """The update of each sample by the kept pair in its slot, one batched product a factor."""
        rows = x.reshape(len(x), -1, x.shape[-1])
        low = torch.bmm(rows, self.bank_down[slots].mT.to(x.dtype)).split(self.rank, dim=-1)
        ups = self.bank_up[slots].to(x.dtype).split(self.sizes, dim=1)
        pieces = [torch.bmm(part, up.mT).view(*x.shape[:-1], -1) for part, up in zip(low, ups, strict=True)]
        return self._placed(pieces)

    def _mixed(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """The sum of all kept pairs' updates and, last, the live one's: one product a factor, however many pairs."""
        ups, entering = torch.cat([self.bank_up, self.up[None]]), self._entering(x)
        if entering is x:
            low = F.linear(x, torch.cat([self.bank_down, self.down[None]]).flatten(0, 1))
        else:
            low = torch.cat([F.linear(x, self.bank_down.flatten(0, 1)), F.linear(entering, self.down)], dim=-1)
        return self._summed(low, ups, coefficients)

    def _summed(self, low: Tensor, ups: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """The sum over pairs, each times its coefficient, of `ups` `[pairs, rows, rank]` times `low`, `[…]` of all."""
        low = low.unflatten(-1, (len(ups), len(self.bounds), self.rank))
        if coefficients is not None:
            across = [1] * (low.ndim - 4)  # what stands between batch and width
            low = low * coefficients.reshape(len(coefficients), *across, *coefficients.shape[1:], 1)
        pieces = [
            F.linear(low[..., part, :].flatten(-2), up.transpose(0, 1).flatten(1))
            for part, up in enumerate(ups.split(self.sizes, dim=1))
        ]
        return self._placed(pieces)

    def _placed(self, pieces: Sequence[Tensor]) -> Tensor:
        """The projections' updates at their rows of the layer's output, zeros between them."""
        zero, shape = pieces[0].new_zeros(()), pieces[0].shape[:-1]  # as exact as the pieces, also under autocast
        columns: list[Tensor] = []
        at, end = 0, self.base.out_features
        for (first, last), piece in zip(self.bounds, pieces, strict=True):
            if first > at:
                columns.append(zero.expand(*shape, first - at))
            columns.append(piece)
            at = last
        if at < end:
            columns.append(zero.expand(*shape, end - at))
        return torch.cat(columns, dim=-1) if len(columns) > 1 else columns[0]


class LoRA:
    """The adapters of one model, one a layer, in the order of the blocks."""

    def __init__(self, layers: Sequence[LoRALinear]) -> None:
        self.layers = tuple(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def downs(self) -> list[nn.Parameter]:
        """The down-projections A of all layers."""
        return [layer.down for layer in self.layers]

    def parameters(self) -> Iterable[nn.Parameter]:
        """All trainable factors, layer by layer."""
        for layer in self.layers:
            yield layer.down
            yield layer.up

    def retire(self, generator: torch.Generator) -> None:
        """Freeze the live pairs of all layers and start fresh ones."""
        for layer in self.layers:
            layer.retire(generator)

    def restart(self, generator: torch.Generator) -> None:
        """Start fresh live pairs in all layers; what they were is lost."""
        for layer in self.layers:
            layer.restart(generator)

    @torch.no_grad()
    def keep(self) -> None:
        """Put a copy of the live pairs at the end of the bank."""
        for layer in self.layers:
            layer.bank_down = torch.cat([layer.bank_down, layer.down[None]])
            layer.bank_up = torch.cat([layer.bank_up, layer.up[None]])

    @torch.no_grad()
    def draw_to_kept(self, share: float, slots: Sequence[int]) -> None:
        """Move the live factors by `share` towards the mean of the kept ones in `slots`, factor by factor."""
        for layer in self.layers:
            layer.down.lerp_(layer.bank_down[list(slots)].mean(0), share)
            layer.up.lerp_(layer.bank_up[list(slots)].mean(0), share)

    @torch.no_grad()
    def rewrite_kept(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace each factor's bank `[slots, …]` by what `change` makes of it."""
        for layer in self.layers:
            layer.bank_down, layer.bank_up = change(layer.bank_down), change(layer.bank_up)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the model is the untouched backbone (and what was retired into its weights)."""
        before = [layer.use for layer in self.layers]
        for layer in self.layers:
            layer.use = "none"
        try:
            yield
        finally:
            for layer, use in zip(self.layers, before, strict=True):
                layer.use = use

    def choose(self, slots: Tensor | None) -> None:
        """From now on use the kept pair in `slots` `[batch]` for each sample; None: the live pair for all."""
        for layer in self.layers:
            layer.use, layer.slots = ("live" if slots is None else "kept"), slots

    def mix(self, coefficients: Iterable[Tensor]) -> None:
        """From now on add up all kept pairs and, last, the live one, each times its coefficient.

        `coefficients`: of each layer, `[batch or 1, slots + 1, parts or 1]`; gradients reach them.
        """
        for layer, own in zip(self.layers, coefficients, strict=True):
            layer.use, layer.coefficients = "mixed", own


def attach(
    model: Classifier,
    projections: Sequence[str],
    rank: int,
    alpha: float,
    generator: torch.Generator,
    blocks: int | None = None,
    dropout: float = 0.0,
) -> LoRA:
    """Freeze the backbone and put a LoRA on the named projections of the first `blocks` blocks (all: None).

    Its factors are float32 whatever the backbone is stored in; within `autocast` they are applied in that precision.
    """
    model.freeze_body()
    layers = []
    for site in model.sites(projections):
        if blocks is not None and site.block >= blocks:
            continue
        parent_path, _, leaf = site.path.rpartition(".")
        parent = model.get_submodule(parent_path)
        base = getattr(parent, leaf)
        layer = LoRALinear(base, site, rank, alpha, generator, dropout)
        setattr(parent, leaf, layer)
        layers.append(layer)
    return LoRA(layers)
