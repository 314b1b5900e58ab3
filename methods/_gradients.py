"""Gradients of what is trained, as flat vectors in the order of `model.trainable()`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from clbench.model import Classifier
from clbench.strategy import Strategy


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of `tensors` in one vector `[numbers]`, a copy."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def flat_gradient(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The gradients that the last backward pass left, `[numbers]`; zeros where it left none."""
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The flat `vector` cut into views of the shapes of `like`: what `flat` joined."""
    cut = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(cut, like, strict=True)]


@contextlib.contextmanager
def evaluating(model: Classifier) -> Iterator[None]:
    """Within the block the model is in evaluation mode: a gradient to compare with holds no dropout's noise."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def autocast(strategy: Strategy) -> torch.autocast:
    """The precision of the strategy's own forward pass. Uncached, because a cast must not outlive a transform."""
    wanted = strategy.recipe.precision == "bfloat16"
    return torch.autocast(strategy.device.type, torch.bfloat16, enabled=wanted, cache_enabled=False)


def row_gradients(model: Classifier, value: Callable[..., Tensor], inputs: Tensor, *rest: Tensor) -> Tensor:
    """Gradients `[rows, numbers]` of `value(logits, *rest)` with respect to what is trained, one for each row.

    `inputs` `[rows, batch, …]` and every other tensor have a row's share at each index; `value` is given the
    logits `[batch, classes]` of a row in float32 and returns a scalar. All rows go through the model at once.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def of_row(parameters: dict[str, Tensor], batch: Tensor, *others: Tensor) -> Tensor:
        return value(functional_call(model, parameters, (batch,)).float(), *others)

    in_dims = (None, 0, *(0 for _ in rest))
    with sdpa_kernel(SDPBackend.MATH):  # vmap would run the fused kernels one row at a time
        found = vmap(grad(of_row), in_dims=in_dims)(trained, inputs, *rest)
    return torch.cat([gradient.reshape(len(inputs), -1) for gradient in found.values()], dim=1)
