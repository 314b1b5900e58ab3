"""Memory: what learning a suite will need, told from shapes before any weights are read.

The model is built without numbers (PyTorch's fake tensors), the method's adapters are attached to it, and one pass
over a micro-batch, of images or of the longest rows that the recipe allows, is made to see what it keeps for the
gradient. Weights, adapters, gradients and optimiser are exact. Activations are an estimate: shorter rows keep less,
kernels need room of their own, and devices differ in what their attention keeps. What a method adds later (passes of
its own over kept samples, copies of the model or of merged weights, gradients of past tasks, adapters that grow with
the tasks) is not foreseen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clbench import backbones
from clbench.method import Method, Workbench
from clbench.model import Classifier, Extent
from clbench.plan import Row
from clbench.recipe import Recipe
from clbench.suite import Suite

MIB = 2**20
TITLE = "Memory in MiB, forecast from shapes; activations are an estimate for the largest micro-batch:"
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
    """In the place of activations: of text the keys and values of one batch of the longest questions with their
    answers; of images, of which no pass keeps anything for another, the most that the pass of a batch holds at once."""
    kept_rows: int
    """Of past tasks, in the processor's memory; images as the transform gives them, a byte a pixel and colour."""
    growth: int
    """What the method declares to add at most with each task."""

    @property
    def together(self) -> int:
        """While learning the first task."""
        return self.weights + self.adapters + self.gradients + self.optimiser + self.activations


def told(
    suite: Suite, rows: Sequence[Row], classes: Callable[[], int], processes: int = 1
) -> tuple[list[tuple[str, ...]], list[str]]:
    """A head and a line for each method, in MiB, and a sentence for each that nothing can be told of.

    `classes()`, asked for a head, counts those of the stream. Where `processes` share each batch, for one of them.
    Raises what `classes()` and `backbones.outline` raise: that is wrong with every row.
    """
    lines, reasons = [HEADS], list[str]()
    for row in rows:
        own = ", ".join(word for word in row.variant.split(", ") if not word.startswith("recipe."))  # those of all rows
        name = f"{row.method.name} ({own})" if own else row.method.name
        recipe = _of_each(row.recipe or suite.recipe, processes)
        model = _outline(suite, recipe, classes)
        try:
            found = _forecast(model, row.method, recipe)
        except Exception as error:  # whatever a method may raise where there are no numbers
            why = str(error).partition("\n")[0] or type(error).__name__
            reasons.append(f"{name}: nothing can be told before it runs ({why})")
            continue
        lines.append((name, *_shown(found)))
    return lines, reasons


def _shown(found: Forecast) -> list[str]:
    names = ("weights", "adapters", "gradients", "optimiser", "activations", "together", "answering", "kept_rows")
    return [*(f"{getattr(found, name) / MIB:,.1f}" for name in names), f"<= {found.growth / MIB:,.1f}"]


def forecast(suite: Suite, method: Method, recipe: Recipe, classes: Callable[[], int]) -> Forecast:
    """What `method` will need on the suite's backbone; `classes()`, asked for a head, counts those of the stream.

    Raises NotAvailable where the backbone's configuration cannot be had, and what the method raises where it cannot
    be put on this backbone.
    """
    return _forecast(_outline(suite, recipe, classes), method, recipe)


def _outline(suite: Suite, recipe: Recipe, classes: Callable[[], int]) -> Classifier:
    return backbones.outline(suite.backbone, _precision(recipe), classes, suite.remote_code)


def _forecast(model: Classifier, method: Method, recipe: Recipe) -> Forecast:
    model.freeze_body()
    backbone = list(model.body.parameters())
    method.plugins(Workbench(model, recipe, torch.device("meta"), max(1, len(recipe.task_epochs)), 0))
    trained, kept = model.trainable() if method.schedule != "none" else [], method.resources()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_the_processor(model)
        extent = model.extent(recipe, _samples(recipe, kept.replay_batch))
        return Forecast(
            weights=_bytes(backbone) - extent.spared_bytes,
            adapters=_bytes([p for p in trained if not any(p is other for other in backbone)]),
            gradients=_bytes(trained),
            optimiser=_optimiser(trained, recipe),
            answering=_answering(model, recipe),
            activations=_activations(model, recipe, extent) if trained else 0,
            kept_rows=kept.buffer_samples * _bytes([extent.inputs[0], extent.targets[:1]]),
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


def _samples(recipe: Recipe, kept: int) -> int:
    """In one pass; kept ones are shared out over the passes of a batch."""
    own = min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)
    return own - (-kept * own // recipe.batch_size)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimiser(trained: Sequence[nn.Parameter], recipe: Recipe) -> int:
    """Adam keeps two moments of each number and a count of each tensor, SGD with momentum one."""
    if recipe.optimizer == "sgd":
        return _bytes(trained) if recipe.momentum else 0
    return 2 * _bytes(trained) + torch.float32.itemsize * len(trained)


def _activations(model: Classifier, recipe: Recipe, extent: Extent) -> int:
    """What one pass keeps for the gradient; of what is computed again the inputs, and once what a part of it keeps."""
    seen = _Seen(_own(model))
    for index, part in enumerate(extent.recomputed):
        seen.watch(index, part)
    model.train()
    allowed = torch.ones(model.classes, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(seen.keep, lambda tensor: tensor):
        with _lower(recipe):
            logits = model(extent.inputs)
        model.losses(logits.float(), extent.targets, allowed).mean()
    inside = [seen.bytes(index) for index in range(len(extent.recomputed))]
    return seen.bytes(None) + seen.entered + max(inside, default=0)


def _answering(model: Classifier, recipe: Recipe) -> int:
    """What a batch of test samples takes."""
    extent = model.extent(recipe, recipe.eval_batch_size)
    if extent.cached_tokens:
        numbers = 2 * model.depth * model.prefix_width * extent.cached_tokens * recipe.eval_batch_size
        return numbers * _precision(recipe).itemsize
    model.eval()
    alive = _Alive(_own(model))
    with alive, torch.no_grad(), _lower(recipe):
        model(extent.inputs)
    return alive.most


def _own(model: nn.Module) -> set[int]:
    """The storages of its weights and buffers."""
    return {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}


def _lower(recipe: Recipe) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16")


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


class _Seen:
    """The storages that are kept for the gradient, by the part of the model that keeps them first."""

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.part: int | None = None
        self.kept: dict[int, tuple[int | None, torch.UntypedStorage]] = {}
        self.entered = 0
        """Bytes of the inputs of parts."""

    def watch(self, index: int, part: nn.Module) -> None:
        """Note when the pass is in a part, and what it came in with."""

        def enter(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.part = index
            if torch.is_grad_enabled():
                self.entered += _bytes([next(value for value in (*args, *named.values()) if isinstance(value, Tensor))])

        def leave(*args: Any) -> None:
            self.part = None

        part.register_forward_pre_hook(enter, with_kwargs=True)
        part.register_forward_hook(leave)

    def keep(self, tensor: Tensor) -> Tensor:
        """Note a tensor's storage, which stays alive so that no other takes its place."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.kept.setdefault(storage._cdata, (self.part, storage))
        return tensor

    def bytes(self, part: int | None) -> int:
        """Of one part; None: outside of all."""
        return sum(storage.nbytes() for where, storage in self.kept.values() if where == part)


class _Alive(TorchDispatchMode):
    """How many bytes of what operations give are there at the same time, at most, without what is `known`."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.now, self.most = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
