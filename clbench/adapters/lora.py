"""LoRA: low-rank updates of linear layers, the same code for every backbone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.model import Classifier, Site


class LoRALinear(nn.Module):
    """A frozen linear layer plus `alpha / rank * up @ down` for some of its projections (Hu et al. 2022).

    down: `[parts * rank, in]`, Kaiming-uniform (a = sqrt 5); up: `[rows of all parts, rank]`, zero, so
    that the adapted layer starts equal to the frozen one. Retired pairs are summed into the layer's
    effective weight (`past_down` `[tasks, parts * rank, in]`, `past_up` `[tasks, rows, rank]`), which
    costs no time in a step; the frozen layer itself is never written to.
    """

    past_down: Tensor
    past_up: Tensor
    weight: Tensor

    def __init__(self, base: nn.Linear, site: Site, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank, self.scale = rank, alpha / rank
        self.bounds = tuple(site.parts.values())
        self.sizes = [last - first for first, last in self.bounds]
        fan_in, device = base.in_features, base.weight.device
        self.down = nn.Parameter(torch.empty(len(self.bounds) * rank, fan_in, device=device))
        self.up = nn.Parameter(torch.zeros(sum(self.sizes), rank, device=device))
        self.register_buffer("past_down", self.down.detach().new_zeros(0, *self.down.shape))
        self.register_buffer("past_up", self.up.detach().new_zeros(0, *self.up.shape))
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

    @torch.no_grad()
    def refold(self) -> None:
        """Rebuild the effective weight from the frozen layer and the retired pairs."""
        if not len(self.past_down):
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
        """`[…, in]` to `[…, out]`."""
        out = F.linear(x, self.weight, self.base.bias)
        low = F.linear(x, self.down).split(self.rank, dim=-1)
        ups = self.up.split(self.sizes)
        pieces: list[Tensor] = []
        at = 0
        for (first, last), part, up in zip(self.bounds, low, ups, strict=True):
            if first > at:
                pieces.append(x.new_zeros(()).expand(*out.shape[:-1], first - at))
            pieces.append(F.linear(part, up))
            at = last
        if at < out.shape[-1]:
            pieces.append(x.new_zeros(()).expand(*out.shape[:-1], out.shape[-1] - at))
        delta = torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]
        return torch.add(out, delta, alpha=self.scale)


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


def attach(
    model: Classifier,
    projections: Sequence[str],
    rank: int,
    alpha: float,
    generator: torch.Generator,
    blocks: int | None = None,
) -> LoRA:
    """Freeze the backbone and put a LoRA on the named projections of the first `blocks` blocks (all: None)."""
    model.freeze_body()
    layers = []
    for site in model.sites(projections):
        if blocks is not None and site.block >= blocks:
            continue
        parent_path, _, leaf = site.path.rpartition(".")
        parent = model.get_submodule(parent_path)
        base = getattr(parent, leaf)
        layer = LoRALinear(base, site, rank, alpha, generator)
        setattr(parent, leaf, layer)
        layers.append(layer)
    return LoRA(layers)
