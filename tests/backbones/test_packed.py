from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from clbench import backbones, catalog, memory, plan, runner
from clbench.backbones.language import LanguageModel
from clbench.backbones.packed import PackedLinear, is_packed
from clbench.errors import BadValue, NotAvailable
from clbench.recipe import Recipe
from clbench.tiny import text_stream

Saved = Callable[..., Path]
WIDE = {"hidden_size": 128, "intermediate_size": 128}
"""bitsandbytes packs 64 numbers at a time."""


def stand_in(weight: Tensor, bias: Tensor | None = None) -> Any:
    """A layer as bitsandbytes leaves it, whose packed weight is the weight in hundredths."""
    packed = (weight * 100).round().to(torch.int8)
    state = SimpleNamespace(device="", to=lambda device: setattr(state, "device", str(device)))
    layer = SimpleNamespace(in_features=weight.shape[1], out_features=weight.shape[0], bias=bias)
    layer.weight = SimpleNamespace(data=packed, quant_state=state)
    return layer


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> tuple[PackedLinear, Tensor]:
    """A packed layer of five inputs and three outputs, and its weight."""
    unpack = SimpleNamespace(dequantize_4bit=lambda packed, state: packed.float() / 100)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", unpack)
    weight = torch.arange(15.0).view(3, 5) / 100
    return PackedLinear(stand_in(weight, nn.Parameter(torch.ones(3)))), weight


def test_a_pass_is_the_plain_layers_and_so_is_its_gradient(layer: tuple[PackedLinear, Tensor]) -> None:
    packed, weight = layer
    ours, theirs = (torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    ours.requires_grad_()
    theirs.requires_grad_()
    found, expected = packed(ours), F.linear(theirs, weight, torch.ones(3))
    torch.testing.assert_close(found, expected)
    for out in (found, expected):
        out.square().sum().backward()
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_unpacked_weight_is_not_kept_for_the_gradient(layer: tuple[PackedLinear, Tensor]) -> None:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: torch.empty(0)):
        layer[0](torch.ones(2, 5, requires_grad=True))
    assert kept == []


def test_function_transforms_can_batch_it(layer: tuple[PackedLinear, Tensor]) -> None:
    packed, weight = layer
    rows = torch.randn(4, 1, 5, generator=torch.Generator().manual_seed(0))
    found = vmap(grad(lambda x: packed(x).square().sum()))(rows)
    torch.testing.assert_close(found, 2 * F.linear(rows, weight, torch.ones(3)) @ weight)


def test_it_computes_in_the_precision_of_autocast_and_moves_with_the_model(layer: tuple[PackedLinear, Tensor]) -> None:
    packed, _ = layer
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(torch.ones(1, 5)).dtype == torch.bfloat16
    assert packed(torch.ones(1, 5)).dtype == torch.float32
    packed.to("meta")
    assert packed.state.device == "meta"
    assert packed.weight.dtype == torch.int8


def test_what_four_bits_need_is_said(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (lambda name: backbones.build(name, 0, 0), backbones.weights_sha256):
        with pytest.raises(NotAvailable, match=r"run 'pip install bitsandbytes', or take 'hf:mine'"):
            ask(f"hf-4bit:mine@{saved()}")
    with pytest.raises(BadValue, match="random weights are never in four bits"):
        backbones.build(f"hf-4bit:mine@{saved()}", 0, 0, weights="random")


def test_the_forecast_counts_half_a_byte_and_the_scales(saved: Saved) -> None:
    folder = saved(**WIDE)
    found = {}
    for family in ("hf", "hf-4bit"):
        suite = catalog.suite("trace", {"precision": "float32"}, backbone=f"{family}:mine@{folder}")
        (row,) = catalog.rows(suite, ["seqlora"], {})
        found[family] = memory.forecast(suite, row.method, suite.recipe, lambda: 0)
    packed = 2 * (4 * 128 * 128 + 3 * 128 * 128)  # two blocks: attention and feed-forward network
    saving = found["hf"].weights - found["hf-4bit"].weights
    assert saving == pytest.approx(packed * (4 - 0.516), abs=packed * 0.001)
    assert found["hf"].adapters == found["hf-4bit"].adapters


# with bitsandbytes itself, where it is installed


@pytest.fixture
def folder(saved: Saved) -> Path:
    pytest.importorskip("bitsandbytes", reason="four bits need bitsandbytes")
    return saved(**{**WIDE, "initializer_range": 0.2})


@torch.no_grad()
def test_a_packed_model_is_the_model_of_its_unpacked_weights(folder: Path) -> None:
    model = backbones.build(f"hf-4bit:mine@{folder}", 0, 0)
    assert isinstance(model, LanguageModel)
    assert model.four_bits
    assert not any(map(is_packed, model.modules()))  # ours alone
    (task,) = model.read(text_stream(tasks=1), Recipe()).tasks
    model.begin(task)
    inputs, _ = task.train.batch(torch.arange(4), torch.device("cpu"))
    found = model(inputs)
    packed = [(path, module) for path, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert len(packed) == 2 * 7
    for path, module in packed:
        plain = nn.Linear(module.in_features, module.out_features, bias=False)
        plain.weight = nn.Parameter(module.unpacked(torch.float32))
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    torch.testing.assert_close(found, model(inputs))


@pytest.mark.parametrize("name", ["seqlora", "ewc", "ogd", "olora"])
def test_methods_that_train_adapters_run_in_four_bits(folder: Path, name: str) -> None:
    words = {"epochs": "1", "precision": "bfloat16", "prompt_tokens": "32", "answer_tokens": "8"}
    suite = catalog.suite("tiny-text", words, backbone=f"hf-4bit:mine@{folder}")
    stream = text_stream(tasks=2)
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, [name], {}), [0], 0, "cpu")
    record, _ = runner.run(cell, stream, device=torch.device("cpu"))
    assert record.status == "done", record.reason
    assert record.protocol["backbone"] == "hf-4bit:mine"
    assert record.audit is not None
    assert (record.audit.batch_flips, record.audit.label_flips) == (0, 0)
