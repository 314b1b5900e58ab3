"""Anatomy: where transformers' causal language models have their parts, and which of them are understood here."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from clbench.backbones.packed import PackedLinear, is_packed
from clbench.errors import BadValue

KINDS_OF_LAYERS = ("full_attention", "sliding_attention")


def refuse_unknown(body: PreTrainedModel, kinds: Collection[str]) -> None:
    """Raise BadValue where the body's attention would not be ours, or looks at what no mask here says."""
    name = type(body).__name__
    if not body._supports_attention_backend:
        raise BadValue(f"{name} does not use transformers' attention interface; choose another architecture.")
    unknown = sorted(set(kinds) - set(KINDS_OF_LAYERS))
    if unknown:
        raise BadValue(
            f"{name} has layers of the kind '{unknown[0]}', and known here are {' and '.join(KINDS_OF_LAYERS)}; "
            "choose another architecture."
        )


def with_linear_layers(body: PreTrainedModel) -> PreTrainedModel:
    """GPT-2's transposed layers as linear ones, and packed ones as ours, so that adapters meet one kind."""
    for path, layer in list(body.named_modules()):
        new: nn.Module
        if is_packed(layer):
            new = PackedLinear(layer)
        elif isinstance(layer, Conv1D):
            new = _straight(layer)
        else:
            continue
        parent, _, leaf = path.rpartition(".")
        setattr(body.get_submodule(parent), leaf, new)
    return body


def _straight(layer: Conv1D) -> nn.Linear:
    linear = nn.Linear(layer.nx, layer.nf, dtype=layer.weight.dtype)
    linear.weight = nn.Parameter(layer.weight.detach().T.contiguous())
    linear.bias = layer.bias
    return linear


def blocks_of(body: PreTrainedModel, depth: int) -> list[tuple[str, nn.Module]]:
    """The transformer blocks with their paths inside the classifier."""
    for path, module in body.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return [(f"body.{path}.{index}", block) for index, block in enumerate(module)]
    raise BadValue(f"found no {depth} blocks in a {type(body).__name__}; this architecture is not supported.")


def attention_of(block: nn.Module) -> Any:
    """The block's attention: the child that knows which layer it is of."""
    for child in block.children():
        if hasattr(child, "layer_idx") and hasattr(child, "config"):
            return child
    raise BadValue(f"found no attention in a {type(block).__name__}; this architecture is not supported.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' advice and progress on standard error."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
