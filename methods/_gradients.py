"""Gradients of what is trained, as flat vectors in the order of `model.trainable()`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from clbench.model import Classifier
from clbench.padding import is_text, trimmed
from clbench.recipe import Recipe


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


def at_once(recipe: Recipe, inputs: Tensor, usual: int) -> int:
    """How many samples may go through the model together where each has a gradient of its own.

    Of text no more than in a training pass, for which the memory must suffice; one where activations would
    not fit even there, since in evaluation mode they are all kept. `usual` of images, which are small.
    """
    if not is_text(inputs):
        return usual
    return 1 if recipe.checkpointing else min(usual, recipe.micro_batch or recipe.batch_size)


def chunks(size: int, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of at most `size` samples, no wider than these need."""
    for one, other in zip(inputs.split(size), targets.split(size), strict=True):
        yield trimmed(one, other)


def row_gradients(model: Classifier, value: Callable[..., Tensor], inputs: Tensor, *rest: Tensor) -> Tensor:
    """Gradients `[rows, numbers]` of `value(logits, *rest)` with respect to what is trained, one for each row.

    See `gradients_of_rows`.
    """
    found = gradients_of_rows(model, value, inputs, *rest)
    return torch.cat([gradient.reshape(len(inputs), -1) for gradient in found], dim=1)


def gradients_of_rows(
    model: Classifier, value: Callable[..., Tensor], inputs: Tensor, *rest: Tensor
) -> Sequence[Tensor]:
    """Gradients of `value(logits, *rest)`, for each trained parameter `[rows, *its shape]`.

    `inputs` `[rows, batch, …]` and every other tensor have a row's share at each index; `value` is given the
    logits of a row's batch in float32 and returns a scalar. All rows go through the model at once.
    """
    if len(inputs) == 1 and is_text(inputs[0]):
        return _gradients(model, value, inputs[0], *(tensor[0] for tensor in rest))
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def of_row(parameters: dict[str, Tensor], batch: Tensor, *others: Tensor) -> Tensor:
        return value(functional_call(model, parameters, (batch,)).float(), *others)

    in_dims = (None, 0, *(0 for _ in rest))
    with sdpa_kernel(SDPBackend.MATH):  # vmap would run the fused kernels one row at a time
        found = vmap(grad(of_row), in_dims=in_dims)(trained, inputs, *rest)
    return list(found.values())


@torch.enable_grad()
def _gradients(model: Classifier, value: Callable[..., Tensor], inputs: Tensor, *rest: Tensor) -> list[Tensor]:
    """Of a single row, with the fused kernels: of long text they need the least memory."""
    found = torch.autograd.grad(value(model(inputs).float(), *rest), model.trainable())
    return [gradient[None] for gradient in found]
