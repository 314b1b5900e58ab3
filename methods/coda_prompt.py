"""CODA-Prompt: prefixes made of components, each weighted by how a sample's features match it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.prefix import halves
from clbench.errors import BadValue
from clbench.method import Method, Resources, Search, Workbench
from clbench.model import Prefixes
from clbench.strategy import Plugin, Strategy

KINDS = ("prompts", "keys", "attentions")


def weights(query: Tensor, keys: Tensor, attentions: Tensor) -> Tensor:
    """α `[batch, blocks, components]`: the cosine of q ⊙ A_m and K_m (Eq. 5), in [-1, 1].

    query: `[batch, width]`, keys and attentions: `[blocks, components, width]`. Two products of matrices;
    q ⊙ A, `[batch, blocks, components, width]`, is never made.
    """
    inner = torch.einsum("bd,lmd->blm", query, attentions * F.normalize(keys, dim=-1))
    square = torch.einsum("bd,lmd->blm", query.square(), attentions.square())
    return inner / square.clamp_min(1e-24).sqrt()


def orthonormal_rows(past: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`[count, width]` orthonormal rows, orthogonal to `past` `[n, width]` too where the width has room for all."""
    width = past.shape[1]
    rows = past.double().cpu() if len(past) + count <= width else past.new_zeros(0, width).double().cpu()
    drawn = torch.randn(count, width, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(torch.cat([rows, drawn]).T).Q.T
    return basis[-count:]


def orthogonality(past: Tensor, live: Tensor) -> Tensor:
    """Sum over blocks of the mean of (RR' - I)², R = [past; live], without what `live` has no part in (Eq. 7).

    past: `[blocks, n, width]`, live: `[blocks, m, width]`. Zero where, and only where, the live rows are
    orthonormal and orthogonal to the past ones. What is left out has no gradient, and would cost O(n²).
    """
    own = live @ live.mT - torch.eye(live.shape[1], device=live.device)
    across = live @ past.mT
    return (own.square().sum() + 2 * across.square().sum()) / (past.shape[1] + live.shape[1]) ** 2


class Components(nn.Module):
    """Trainable components for the current task and frozen ones for the past, by block.

    prompts: `[blocks, components, length, prefix width]`, keys and attentions: `[blocks, components, width]`;
    the same with `past_` before their names.
    """

    def __init__(
        self, blocks: int, count: int, length: int, widths: tuple[int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        width, prefix_width = widths
        for kind, shape in zip(KINDS, ((length, prefix_width), (width,), (width,)), strict=True):
            self.register_parameter(kind, nn.Parameter(torch.zeros(blocks, count, *shape)))
            self.register_buffer(f"past_{kind}", torch.zeros(blocks, 0, *shape))
        self.restart(generator)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Past and live rows `[blocks, components, numbers]` of each kind."""
        return [(self.get_buffer(f"past_{kind}").flatten(2), self.get_parameter(kind).flatten(2)) for kind in KINDS]

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Draw fresh live components, orthogonal to the past ones in each block."""
        for kind, (past, live) in zip(KINDS, self.pairs(), strict=True):
            fresh = torch.stack([orthonormal_rows(rows, live.shape[1], generator) for rows in past])
            parameter = self.get_parameter(kind)
            parameter.copy_(fresh.view(parameter.shape))

    @torch.no_grad()
    def retire(self, generator: torch.Generator) -> None:
        """Freeze the live components into the past and start fresh ones."""
        for kind in KINDS:
            joined = torch.cat([self.get_buffer(f"past_{kind}"), self.get_parameter(kind)], dim=1)
            setattr(self, f"past_{kind}", joined)
        self.restart(generator)

    def forward(self, tokens: Tensor, query: Callable[[], Tensor]) -> Prefixes:
        """The weighted sum of all components: its first half are keys, its second values."""
        live = [self.get_parameter(kind) for kind in KINDS]
        past = [self.get_buffer(f"past_{kind}") for kind in KINDS]
        features = query().to(live[0].dtype)
        with torch.autocast(features.device.type, enabled=False):  # small products, and a cosine must not be rounded
            older, newer = (  # apart, so that no gradient goes through the past
                torch.einsum("blm,lmxd->blxd", weights(features, keys, attentions), prompts)
                for prompts, keys, attentions in (past, live)
            )
        return halves(range(len(live[0])), older + newer)


class _Growing(Plugin):
    def __init__(self, method: CodaPrompt, bench: Workbench, components: Components) -> None:
        super().__init__()
        self.method, self.bench, self.components = method, bench, components

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Freeze the last task's components and add fresh ones."""
        if strategy.task_index > 0:
            self.components.retire(self.bench.generator("components", strategy.task_index))

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the components orthonormal."""
        if self.method.orthogonality_weight:
            terms = [orthogonality(past, live) for past, live in self.components.pairs()]
            strategy.loss += self.method.orthogonality_weight * torch.stack(terms).sum()


class CodaPrompt(Method):
    """Smith et al., CVPR 2023: p = Σ_m cos(q ⊙ A_m, K_m) P_m in each of the first `depth` blocks.

    q are the untouched backbone's features; half of p goes before the keys of attention, half before the
    values. A task trains its own `components` P, K, A and the head; those of past tasks are frozen but take
    part, in training and at test. The loss has μ times the deviation of P, K and A from orthonormal rows.

    Text: q is the mean of the last hidden states over the question's tokens, and the head stays frozen [ours;
    no paper has it].

    Departures: components are added a task at a time (the paper: 100 in all, 100 / T a task), so the number
    of tasks need not be known; fresh ones come from a QR factorisation against the span of the past ones
    (the released code subtracts projections on vectors that are no longer orthogonal to one another); where
    the width has no room for that, they are orthonormal among themselves. μ is the paper's; the released
    scripts use 0. The step grows with the components, as the method's sum does.
    """

    name = "coda-prompt"
    paper = "Smith et al. 2023"

    depth: int = Field(default=5, ge=1, description="put prefixes into the first so many blocks")
    components: int = Field(default=10, ge=1, description="components a task")
    length: int = Field(default=8, ge=2, multiple_of=2, description="of a component: half for keys, half for values")
    orthogonality_weight: Annotated[float, Search(1e-3, 1.0)] = Field(default=0.1, ge=0, description="μ")

    def resources(self) -> Resources:
        """Some components a task."""
        return Resources(stored_mib_per_task=64.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Put the components' sum into the attention."""
        model = bench.model
        if self.components > model.width:
            raise BadValue(
                f"{self.name}.components is {self.components}, and features have {model.width} numbers; "
                f"orthonormal keys need {model.width} or fewer."
            )
        blocks, widths = min(self.depth, model.depth), (model.width, model.prefix_width)
        components = Components(blocks, self.components, self.length, widths, bench.generator("components", 0))
        model.prefixer = components.to(bench.device)
        return [_Growing(self, bench, components)]
