"""SD-LoRA: past LoRAs frozen as directions, whose magnitudes are trained on with every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from clbench.adapters.lora import LoRA, LoRALinear
from clbench.errors import BadValue
from clbench.method import Method, Resources, Workbench
from clbench.model import Classifier
from clbench.strategy import Plugin, Strategy

_TINY = 1e-30
"""Keeps a pair that was never trained at zero."""


@torch.no_grad()
def normalise_last(layer: LoRALinear) -> Tensor:
    """Give the last kept pair factors of unit Frobenius norm, part by part.

    Returns the products ‖B‖‖A‖ that were taken out, `[parts]`.
    """
    magnitudes = []
    downs, ups = layer.bank_down[-1].split(layer.rank), layer.bank_up[-1].split(layer.sizes)
    for down, up in zip(downs, ups, strict=True):
        sizes = torch.linalg.vector_norm(down), torch.linalg.vector_norm(up)
        for factor, size in zip((down, up), sizes, strict=True):
            factor.div_(size.clamp(min=_TINY))
        magnitudes.append(sizes[0] * sizes[1])
    return torch.stack(magnitudes)


def inner_products(lora: LoRA, shares: Tensor) -> Tensor:
    """⟨D_i, D_j⟩ of the kept directions D = share · B A, summed over all layers and parts: `[kept, kept]`.

    shares: `[layers, kept, parts]`. No matrix of a layer's full size is made.
    """
    kept = shares.shape[1]
    total = torch.zeros(kept, kept, dtype=torch.float64, device=shares.device)
    for layer, own in zip(lora.layers, shares.double(), strict=True):
        downs, ups = layer.bank_down.double().split(layer.rank, 1), layer.bank_up.double().split(layer.sizes, 1)
        for down, up, share in zip(downs, ups, own.T[: len(downs)], strict=True):
            scaled = up * share[:, None, None]
            outputs, inputs = torch.einsum("ior,jos->ijrs", scaled, scaled), torch.einsum("irk,jsk->ijrs", down, down)
            total += (outputs * inputs).sum((2, 3))
    return total


class _Directions(Plugin):
    def __init__(self, method: SDLoRA, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.method, self.bench, self.lora = method, bench, lora
        self.magnitudes = nn.Parameter(torch.full((1,), method.start, device=bench.device))
        """α of every direction kept and, last, of the live pair."""
        bench.model.register_parameter("lora_magnitudes", self.magnitudes)
        self.parts = [len(layer.bounds) for layer in lora.layers]
        self.shares = torch.ones(len(lora), 1, max(self.parts), device=bench.device)
        """How a direction's magnitude is shared out, `[layers, pairs, parts]`; all 1 for the live pair.

        Where a layer has fewer parts than another, the rest of its row means nothing.
        """

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Freeze what the last task has learned as a direction, and start a fresh pair."""
        task = strategy.task_index
        if task > 0:
            self._freeze()
            self.lora.restart(self.bench.generator("fresh pair", task))
        if self.method.ranks:
            rank = self.method.ranks[min(task, len(self.method.ranks) - 1)]
            with torch.no_grad():
                for layer in self.lora.layers:
                    layer.down.unflatten(0, (-1, layer.rank))[:, rank:] = 0

    @torch.no_grad()
    def _freeze(self) -> None:
        self.lora.keep()
        sizes = [normalise_last(layer) for layer in self.lora.layers]
        magnitudes, shares = self.magnitudes.data, self.shares[:, :-1]
        if self.method.compat_reset:
            magnitudes, shares = torch.full_like(magnitudes, self.method.start), torch.ones_like(self.shares)
        else:
            size, found = torch.cat(sizes).square().mean().sqrt(), pad_sequence(sizes, batch_first=True)
            magnitudes[-1] *= size
            shares = torch.cat([shares, (found / size.clamp(min=_TINY))[:, None]], dim=1)
            if self.method.distil is not None and shares.shape[1] > 1:
                magnitudes, shares = self._distilled(magnitudes, shares, self.method.distil)
        self.shares = torch.cat([shares, torch.ones_like(shares[:, :1])], dim=1)
        # Another parameter, because an optimiser that is carried on has a state of the old one's size.
        self.magnitudes = nn.Parameter(torch.cat([magnitudes, magnitudes.new_full((1,), self.method.start)]))
        self.bench.model.register_parameter("lora_magnitudes", self.magnitudes)

    def _distilled(self, magnitudes: Tensor, shares: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        """Give the newest direction to the older ones where they can carry it."""
        products = inner_products(self.lora, shares)
        old, cross, own = products[:-1, :-1], products[:-1, -1], products[-1, -1]
        weights = torch.linalg.pinv(old, hermitian=True) @ cross
        if own - weights @ cross > limit * own:
            return magnitudes, shares
        self.lora.rewrite_kept(lambda bank: bank[:-1])
        return magnitudes[:-1] + magnitudes[-1] * weights.to(magnitudes.dtype), shares[:, :-1]

    def learning_rate_factors(self, model: Classifier) -> Mapping[nn.Parameter, float]:
        """Magnitudes may take larger steps than factors."""
        return {self.magnitudes: self.method.magnitude_rate}

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Weigh the directions by their magnitudes as they are now."""
        weights = (self.magnitudes[:, None] * self.shares)[:, None]
        self.lora.mix(own[..., :parts] for own, parts in zip(weights, self.parts, strict=True))

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The same at test."""
        self.before_forward(strategy)

    def state(self) -> dict[str, Any]:
        """The shares; directions and magnitudes are the model's."""
        return {"shares": self.shares}

    def load_state(self, state: dict[str, Any]) -> None:
        """The shares."""
        self.shares = state["shares"].to(self.shares.device)

    def notes(self) -> dict[str, Any]:
        """α of each direction, the live pair's last."""
        return {"magnitudes": [round(value, 4) for value in self.magnitudes.tolist()]}


class SDLoRA(Method):
    """Wu et al., ICLR 2025: h = W_0 x + s Σ_i<t α_i B_i A_i x / (‖B_i‖‖A_i‖) + s α_t B_t A_t x.

    That is the released code's form; the paper divides the current direction by its norms, too.
    B_t, A_t and all of α are trained; α has one number a task, the same in all layers and projections. When
    a task is over, its factors are frozen at unit Frobenius norm and their size goes into α_t, so that the
    features do not jump. As sizes differ between layers while α_t does not, each layer keeps its share of
    the mean size beside its direction. The released code drops the size and sets all of α back to `start` at
    every task (`compat_reset`). All directions are applied in one product, also at test, where the paper has them
    merged into one matrix: that would round otherwise, so that an answer near a tie need not be the one of the model
    that was trained. The product costs rank (in + out) multiplications a token, projection and task.

    `ranks` lowers the rank of later tasks (SD-LoRA-RR): rows left out are zero and stay so, which is the same
    function; the space they are stored in is not made smaller. `distil` drops a direction that the older
    ones span but for this share of its squared norm, and adds its part to their α (SD-LoRA-KD); it is done
    when the next task begins. Rank and s are the recipe's (s = 1 where alpha equals rank).
    """

    name = "sd-lora"
    paper = "Wu et al. 2025"

    start: float = Field(default=0.8, gt=0, description="α of a new pair")
    magnitude_rate: float = Field(default=1.0, gt=0, description="step size of α, over that of all else")
    ranks: tuple[int, ...] = Field(
        default=(), description="rank of each task's pair, the last for all that follow; none given: the recipe's"
    )
    distil: float | None = Field(default=None, ge=0, lt=1, description="drop directions with so small a residual")
    compat_reset: bool = Field(default=False, description="forget sizes and set all α back, as the released code")

    @model_validator(mode="after")
    def _fits(self) -> SDLoRA:
        if self.compat_reset and self.distil is not None:
            raise ValueError("distil gives a direction's size to others, and compat_reset forgets it; choose one")
        if any(rank < 1 for rank in self.ranks):
            raise ValueError(f"ranks must be 1 or more; got {self.ranks}")
        return self

    def resources(self) -> Resources:
        """One pair of factors a task, a number, and its shares."""
        return Resources(stored_mib_per_task=32.0)

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA whose past is a set of weighted directions."""
        if self.ranks and max(self.ranks) > bench.recipe.lora_rank:
            raise BadValue(
                f"{self.name}.ranks has {max(self.ranks)}, above the recipe's lora_rank {bench.recipe.lora_rank}; "
                "lower it, or raise recipe.lora_rank."
            )
        return [_Directions(self, bench, bench.lora())]
