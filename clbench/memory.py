"""Memory: what learning a suite of text will need, told from shapes before any weights are read.

The model is built without numbers (PyTorch's fake tensors), the method's adapters are attached to it, and one pass
over a micro-batch of the longest rows that the recipe allows is made to see what it keeps for the gradient. Weights,
adapters, gradients and optimiser are exact. Activations are an estimate: shorter rows keep less, kernels need room of
their own, and devices differ in what their attention keeps. What a method adds later (copies of merged weights,
gradients of past tasks) is not foreseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clbench import backbones
from clbench.backbones.language import LanguageModel
from clbench.errors import NotAvailable
from clbench.method import Method, Workbench
from clbench.padding import PROMPT
from clbench.plan import Row
from clbench.recipe import Recipe
from clbench.suite import Suite

MIB = 2**20
PACKED = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight in four bits: half a byte, a byte of scale for 64 of them, and four for 256 scales."""
TITLE = "Memory in MiB, forecast from shapes; activations are an estimate for the longest rows of a micro-batch:"
HEADS: tuple[str, ...] = (
    *("method", "weights", "adapters", "gradients", "optimiser", "activations", "together"),
    *("answering", "kept rows", "growth a task"),
)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes on the device while learning, but for `answering` and `kept_rows`."""

    weights: int
    """Of the backbone, trained or not."""
    adapters: int
    """Whatever else is trained."""
    gradients: int
    optimiser: int
    activations: int
    answering: int
    """Keys and values of one batch of the longest questions with their answers; takes the place of activations."""
    kept_rows: int
    """Of past tasks, in the processor's memory."""
    growth: int
    """What the method declares to add at most with each task."""

    @property
    def together(self) -> int:
        """While learning the first task."""
        return self.weights + self.adapters + self.gradients + self.optimiser + self.activations


def told(suite: Suite, rows: Sequence[Row], processes: int = 1) -> tuple[list[tuple[str, ...]], list[str]]:
    """A head and a line for each method, in MiB, and a sentence for each that nothing can be told of.

    Where `processes` share each batch, for one of them. No lines where the backbone has no outline. Raises NotAvailable
    where its configuration cannot be had.
    """
    lines, reasons = [HEADS], list[str]()
    for row in rows:
        own = ", ".join(word for word in row.variant.split(", ") if not word.startswith("recipe."))  # those of all rows
        name = f"{row.method.name} ({own})" if own else row.method.name
        try:
            found = forecast(suite, row.method, _of_each(row.recipe or suite.recipe, processes))
        except NotAvailable:
            raise
        except Exception as error:  # whatever a method may raise where there are no numbers
            reasons.append(f"{name}: nothing can be told before it runs ({str(error).partition(chr(10))[0]})")
            continue
        if found is None:
            return [], []
        lines.append((name, *_shown(found)))
    return lines, reasons


def _shown(found: Forecast) -> list[str]:
    names = ("weights", "adapters", "gradients", "optimiser", "activations", "together", "answering", "kept_rows")
    return [*(f"{getattr(found, name) / MIB:,.1f}" for name in names), f"<= {found.growth / MIB:,.1f}"]


def forecast(suite: Suite, method: Method, recipe: Recipe) -> Forecast | None:
    """What `method` will need on the suite's backbone; None where that has no outline.

    Raises NotAvailable where the backbone's configuration cannot be had, and what the method raises where it cannot
    be put on this backbone.
    """
    precision, nowhere = _precision(recipe), torch.device("meta")
    with nowhere:
        model = backbones.outline(suite.backbone, precision, suite.remote_code)
    if model is None:
        return None
    model.freeze_body()
    backbone = list(model.body.parameters())
    method.plugins(Workbench(model, recipe, nowhere, max(1, len(recipe.task_epochs)), 0))
    trained, kept = model.trainable(), method.resources()
    rows, tokens = _rows(recipe, kept.replay_batch), _tokens(recipe)
    return Forecast(
        weights=_bytes(backbone) - _saved(model, precision),
        adapters=_bytes([p for p in trained if not any(p is other for other in backbone)]),
        gradients=_bytes(trained),
        optimiser=_optimiser(trained, recipe),
        activations=_activations(model, recipe, rows, tokens) if trained else 0,
        answering=2 * model.depth * model.prefix_width * tokens * recipe.eval_batch_size * precision.itemsize,
        kept_rows=kept.buffer_samples * (2 * tokens + recipe.answer_tokens) * torch.int64.itemsize,
        growth=round(kept.stored_mib_per_task * MIB),
    )


def _of_each(recipe: Recipe, processes: int) -> Recipe:
    """What goes through the model at once in each of the processes that share a batch."""
    share = -(-recipe.batch_size // processes)
    if processes == 1:
        return recipe
    return recipe.model_copy(update={"micro_batch": min(recipe.micro_batch or share, share)})


def _precision(recipe: Recipe) -> torch.dtype:
    return torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32


def _rows(recipe: Recipe, kept: int) -> int:
    """In one pass; kept ones are shared out over the passes of a batch."""
    own = min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)
    return own - (-kept * own // recipe.batch_size)


def _tokens(recipe: Recipe) -> int:
    return recipe.prompt_tokens + recipe.answer_tokens


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _saved(model: LanguageModel, precision: torch.dtype) -> int:
    """How many bytes fewer the linear layers of the blocks take where they are held in four bits."""
    if not model.four_bits:
        return 0
    layers = [layer for _, block in model.blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
    return round(sum(layer.weight.numel() for layer in layers) * (precision.itemsize - PACKED))


def _optimiser(trained: Sequence[nn.Parameter], recipe: Recipe) -> int:
    """Adam keeps two moments of each number and a count of each tensor, SGD with momentum one."""
    if recipe.optimizer == "sgd":
        return _bytes(trained) if recipe.momentum else 0
    return 2 * _bytes(trained) + torch.float32.itemsize * len(trained)


def _activations(model: LanguageModel, recipe: Recipe, rows: int, tokens: int) -> int:
    """What one pass keeps for the gradient; with checkpointing each block's input, and once what a block keeps."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_the_processor(model)
        blocks = [block for _, block in model.blocks]
        seen = _Seen({p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())})
        for index, block in enumerate(blocks):
            seen.watch(index, block)
        model.train()
        model.span = recipe.answer_tokens
        _lose(model, recipe, rows, tokens, seen)
    inside = [seen.bytes(index) for index in range(len(blocks))]
    if not recipe.checkpointing:
        return seen.bytes(None) + sum(inside)
    inputs = len(blocks) * rows * tokens * model.width * _precision(recipe).itemsize
    return seen.bytes(None) + inputs + max(inside)


def _on_the_processor(model: nn.Module) -> None:
    """Give the tensors, which are nowhere, a device on which passes are made as they will be."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module.named_parameters(recurse=False):
            key = old.untyped_storage()._cdata
            made.setdefault(key, nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad))
            module._parameters[name] = made[key]
    for module in model.modules():
        for name, tensor in module.named_buffers(recurse=False):
            twin = made.get(tensor.untyped_storage()._cdata)
            module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype) if twin is None else twin.detach()


def _lose(model: LanguageModel, recipe: Recipe, rows: int, tokens: int, seen: _Seen) -> None:
    """A pass over rows of `tokens` tokens and their loss, as a strategy makes them."""
    inputs = torch.full((rows, 2, tokens), PROMPT)
    targets = torch.zeros(rows, recipe.answer_tokens, dtype=torch.int64)
    allowed = torch.ones(model.classes, dtype=torch.bool)
    lower = torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(seen.keep, lambda tensor: tensor):
        with lower:
            logits = model(inputs)
        model.losses(logits.float(), targets, allowed).mean()


class _Seen:
    """The storages that are kept for the gradient, by the block that keeps them first."""

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.block: int | None = None
        self.kept: dict[int, tuple[int | None, torch.UntypedStorage]] = {}

    def watch(self, index: int, block: nn.Module) -> None:
        """Note when the pass is in a block."""
        block.register_forward_pre_hook(self._at(index))
        block.register_forward_hook(self._at(None))

    def _at(self, index: int | None) -> Callable[..., None]:
        def note(*args: Any) -> None:
            self.block = index

        return note

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor's storage, which stays alive so that no other takes its place."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.kept.setdefault(storage._cdata, (self.block, storage))
        return tensor

    def bytes(self, block: int | None) -> int:
        """Of one block; None: outside of all."""
        return sum(storage.nbytes() for where, storage in self.kept.values() if where == block)
