"""Checkpoints: what a run has learned so far, as the bytes of one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from clbench.model import Classifier


class Untouched:
    """The backbone's parameters as they were before a method attached anything.

    A parameter counts as touched once it has been written to or given other storage, so that a weight that
    was trained in the first task and frozen since is still part of what was learned. (Writing through
    `.data` in place cannot be seen; such a parameter must be trainable to be kept.)
    """

    def __init__(self, model: Classifier) -> None:
        # The parameters themselves are held: the identity of one that is dropped may be given to another.
        self._marks = {id(p): (p, p._version, p.data_ptr()) for p in model.body.parameters()}

    def __contains__(self, parameter: nn.Parameter) -> bool:
        mark = self._marks.get(id(parameter))
        return mark is not None and mark[1:] == (parameter._version, parameter.data_ptr())


def learned(model: Classifier, untouched: Untouched) -> dict[str, Tensor]:
    """All tensors of `model` that differ from the untouched backbone: trained, added, or kept as buffers."""
    tensors = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or parameter not in untouched
    }
    persistent = model.state_dict()
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors


@torch.no_grad()
def restore(model: Classifier, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` back; one that has grown since the model was built takes its new shape.

    A parameter stays the same object. A module with a method `refold` is asked to rebuild what it
    derives from its buffers. Raises AttributeError where the model has no such module or tensor.
    """
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        current = getattr(module, leaf)
        if current.shape == tensor.shape:
            current.copy_(tensor)
        elif isinstance(current, nn.Parameter):
            current.data = tensor.to(current.device)
        else:
            setattr(module, leaf, tensor.to(current.device))
    for module in model.modules():
        refold = getattr(module, "refold", None)
        if callable(refold):
            refold()


def pack(state: Mapping[str, Any]) -> bytes:
    """Nested dicts, lists, tensors and plain values as one file, which holds a hash of all of them.

    >>> unpack(pack({"a": [torch.ones(2), 3], "b": {"c": "x"}}))
    {'a': [tensor([1., 1.]), 3], 'b': {'c': 'x'}}
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_flatten(state, tensors))
    # Cloned, because the format refuses tensors that share their storage.
    own = {name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return save(own, metadata={"state": plain, "sha256": _sha256(plain, own)})


def unpack(content: bytes) -> dict[str, Any]:
    """What `pack` was given, on the CPU. Raises ValueError where the content is torn, foreign or was altered.

    One without a hash, of a clbench that kept none, counts as foreign: whether it was altered cannot be known.
    """
    try:
        tensors = load(content)
        held = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if held.get("sha256") != _sha256(held["state"], tensors):
            raise ValueError("its content does not have the hash that was written with it")
        state: dict[str, Any] = _nest(json.loads(held["state"]), tensors)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"no checkpoint: {error}") from error
    return state


def tensors_of(state: Any) -> dict[str, Tensor]:
    """The tensors anywhere inside a nested state, by their paths: 'a/0'. Nothing is copied."""
    found: dict[str, Tensor] = {}
    _flatten(state, found)
    return found


def sha256(state: Any) -> str:
    """Hash over everything inside a nested state: plain values, and the tensors' names, types, shapes and values.

    >>> sha256({"a": torch.zeros(2)}) == sha256({"b": torch.zeros(2)})
    False
    """
    tensors: dict[str, Tensor] = {}
    return _sha256(json.dumps(_flatten(state, tensors)), tensors)


def _sha256(plain: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(plain.encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        total.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _flatten(value: Any, into: dict[str, Tensor], path: str = "") -> Any:
    """`value` with each tensor replaced by its path; the tensors go into `into`."""
    if isinstance(value, Tensor):
        name = path if path not in into else f"{path}#{len(into)}"  # the keys 'a/b' and 'a', 'b' have one path
        into[name] = value.detach()
        return {"__tensor__": name}
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str | int)]
        if wrong:
            raise TypeError(f"a checkpoint's dicts have strings or integers as keys; got {wrong[0]!r}.")
        return {"__dict__": [[key, _flatten(item, into, _join(path, key))] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten(item, into, _join(path, place)) for place, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors, numbers, strings, lists and dicts; got {type(value).__name__}.")


def _join(path: str, key: str | int) -> str:
    return f"{path}/{key}" if path else str(key)


def _nest(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_nest(item, tensors) for item in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _nest(item, tensors) for key, item in value["__dict__"]}
    return value
