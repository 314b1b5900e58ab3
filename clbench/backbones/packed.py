"""Packed: linear layers whose frozen weights are held in four bits."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.errors import NotAvailable

Unpack = Callable[[torch.dtype], Tensor]
PACKED = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight in four bits: half a byte, a byte of scale for 64 of them, and four for 256 scales."""


def packing(instead: str) -> dict[str, Any]:
    """What `from_pretrained` must be told: NF4 with doubly quantised scales (Dettmers et al., QLoRA, 2023).

    Raises NotAvailable without bitsandbytes; `instead` is the same backbone without four bits.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise NotAvailable(
            "weights in four bits need bitsandbytes, which is not installed; run 'pip install bitsandbytes', or take "
            f"'{instead}', whose weights are as they are stored."
        )
    form = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **form)}


def is_packed(module: nn.Module) -> bool:
    """Whether bitsandbytes holds this layer's weight in four bits."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def spared_bytes(blocks: Iterable[nn.Module]) -> int:
    """How many bytes fewer the linear layers of the blocks would take in four bits."""
    weights = [part.weight for block in blocks for part in block.modules() if isinstance(part, nn.Linear)]
    return round(sum(weight.numel() * (weight.element_size() - PACKED) for weight in weights))


class PackedLinear(nn.Module):
    """A layer that bitsandbytes has packed; its weight is unpacked in each pass, forwards and backwards.

    bitsandbytes' own pass takes one kernel for a single row and another for several, so that an answer would depend on
    the batch it came in; on a processor it packs weights anew; and no function transform can batch it.
    """

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = int(packed.in_features), int(packed.out_features)
        self.bias: nn.Parameter | None = packed.bias
        self.state = packed.weight.quant_state
        self.weight = nn.Parameter(packed.weight.data.as_subclass(Tensor), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in]` to `[…, out]`, in the precision of `x`, or in that of autocast."""
        kind = x.device.type
        x = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
        out: Tensor = _Product.apply(x, self.unpacked)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def unpacked(self, precision: torch.dtype) -> Tensor:
        """The weight `[out, in]`."""
        unpack = importlib.import_module("bitsandbytes.functional").dequantize_4bit
        weight: Tensor = unpack(self.weight, self.state)
        return weight.to(precision)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.state.to(self.weight.device)
        return self


class _Product(torch.autograd.Function):
    """`x` times a frozen weight, of which nothing is kept for the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, unpack: Unpack) -> Tensor:
        return F.linear(x, unpack(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Unpack], output: Tensor) -> None:
        ctx.unpack = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.unpack(gradients[0].dtype), None
