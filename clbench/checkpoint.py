"""Checkpoints: what a run has learned so far, as the bytes of one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from clbench.model import Classifier


def frozen_names(model: Classifier) -> frozenset[int]:
    """Identities of the untouched backbone's parameters, taken before a method attaches anything."""
    return frozenset(id(parameter) for parameter in model.body.parameters())


def learned(model: Classifier, untouched: frozenset[int]) -> dict[str, Tensor]:
    """All tensors of `model` that differ from the untouched backbone: trained, added, or kept as buffers."""
    tensors = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or id(parameter) not in untouched
    }
    persistent = model.state_dict()
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors


@torch.no_grad()
def restore(model: Classifier, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` back; a buffer that has grown since the model was built takes its new shape."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        current = getattr(module, leaf)
        if current.shape == tensor.shape:
            current.copy_(tensor)
        elif isinstance(current, nn.Parameter):
            setattr(module, leaf, nn.Parameter(tensor.to(current.device), requires_grad=current.requires_grad))
        else:
            setattr(module, leaf, tensor.to(current.device))
    for module in model.modules():
        refold = getattr(module, "refold", None)
        if callable(refold):
            refold()


def pack(state: Mapping[str, Any]) -> bytes:
    """Nested dicts, lists, tensors and plain values as one file.

    >>> unpack(pack({"a": [torch.ones(2), 3], "b": {"c": "x"}}))
    {'a': [tensor([1., 1.]), 3], 'b': {'c': 'x'}}
    """
    tensors: dict[str, Tensor] = {}
    plain = _flatten(state, tensors)
    return save(tensors, metadata={"state": json.dumps(plain)})


def unpack(content: bytes) -> dict[str, Any]:
    """What `pack` was given. Raises ValueError where the content is torn or foreign."""
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        plain = json.loads(header["__metadata__"]["state"])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"no checkpoint: {error}") from error
    state: dict[str, Any] = _nest(plain, tensors)
    return state


def tensors_of(state: Any) -> dict[str, Tensor]:
    """The tensors anywhere inside a nested state."""
    found: dict[str, Tensor] = {}
    _flatten(state, found)
    return found


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash over names, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _flatten(value: Any, into: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(into)}"
        into[name] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(value, Mapping):
        return {"__dict__": [[key, _flatten(item, into)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten(item, into) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors, numbers, strings, lists and dicts; got {type(value).__name__}.")


def _nest(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_nest(item, tensors) for item in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _nest(item, tensors) for key, item in value["__dict__"]}
    return value
