"""The forecast of memory, against what small models really take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clbench import backbones, catalog, memory
from clbench.errors import NotAvailable
from clbench.method import Method, Workbench
from clbench.padding import PROMPT
from clbench.recipe import Recipe

FACTOR = 1.5
"""How far the estimate of activations may lie from what a pass keeps on a processor."""
CPU = torch.device("cpu")


def suite(backbone: str = "nano-lm", **recipe: Any) -> Any:
    words = {"prompt_tokens": "48", "answer_tokens": "16", "batch_size": "4", **recipe}
    return catalog.suite("trace-tiny", {k: str(v) for k, v in words.items()}, backbone=backbone)


def method(name: str) -> Method:
    (row,) = catalog.rows(suite(), [name], {})
    return row.method


def told(name: str, **recipe: Any) -> memory.Forecast:
    chosen = suite(**recipe)
    found = memory.forecast(chosen, method(name), chosen.recipe)
    assert found is not None
    return found


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def step(name: str, backbone: str, recipe: Recipe) -> dict[str, int]:
    """What a real step takes: a micro-batch of the longest rows."""
    model = backbones.build(backbone, 0, 0, weights="random")
    model.freeze_body()
    weights = list(model.body.parameters())
    method(name).plugins(Workbench(model, recipe, CPU, 8, 0))
    trained = model.trainable()
    optimiser = torch.optim.Adam(trained, lr=1e-3, fused=True)
    model.span = recipe.answer_tokens
    inputs = torch.full((recipe.batch_size, 2, recipe.prompt_tokens + recipe.answer_tokens), PROMPT)
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        targets = torch.zeros(len(inputs), recipe.answer_tokens, dtype=torch.int64)
        loss = model.losses(model(inputs), targets, torch.ones(model.classes, dtype=torch.bool)).mean()
    loss.backward()
    optimiser.step()
    states = [value for state in optimiser.state.values() for value in state.values()]
    return {
        "weights": bytes_of(weights),
        "trained": bytes_of(trained),
        "gradients": bytes_of(p.grad for p in trained if p.grad is not None),
        "optimiser": bytes_of(states),
        "activations": sum(kept.values()),
    }


@pytest.mark.parametrize(
    ("name", "backbone"), [("seqlora", "nano-lm"), ("seqlora", "tiny-lm"), ("finetune", "nano-lm")]
)
def test_the_forecast_is_what_a_step_takes(name: str, backbone: str) -> None:
    found, real = told(name, backbone=backbone), step(name, backbone, suite(backbone).recipe)
    assert found.weights == real["weights"]
    assert found.gradients == real["trained"] == real["gradients"]
    assert found.adapters == (0 if name == "finetune" else real["trained"])
    assert found.optimiser == real["optimiser"]
    assert real["activations"] / FACTOR <= found.activations <= real["activations"] * FACTOR
    assert (
        found.together
        == sum(real[k] for k in ("weights", "gradients", "optimiser")) + found.adapters + found.activations
    )


def test_the_recipe_moves_it() -> None:
    plain = told("seqlora")
    assert told("seqlora", micro_batch=2).activations < plain.activations
    assert told("seqlora", checkpointing="true").activations < plain.activations
    assert told("seqlora", lora_rank=16).adapters == 2 * plain.adapters
    assert told("seqlora", precision="bfloat16").weights == plain.weights / 2
    assert told("seqlora", optimizer="sgd").optimiser == 0
    # keys and values: 2 blocks of width 32, 64 tokens, float32
    assert told("seqlora", eval_batch_size=10).answering == 2 * 2 * 32 * 64 * 4 * 10


def test_kept_rows_are_joined_to_a_batch_and_kept() -> None:
    plain, kept = told("seqlora"), told("replay")
    assert kept.activations > plain.activations
    assert kept.kept_rows > plain.kept_rows == 0


def test_billions_of_weights_are_never_made() -> None:
    found = told("seqlora", backbone="llama-1b-shape", precision="bfloat16")
    assert found.weights == 2 * 1_235_814_400
    # 16 blocks; queries 2048 to 2048 and values 2048 to 512, rank 8
    assert found.adapters == 16 * 8 * (2048 + 2048 + 2048 + 512) * 4


def test_what_cannot_be_told_says_so() -> None:
    chosen = suite()
    rows = catalog.rows(chosen, ["seqlora", "ranpac"], {})
    lines, reasons = memory.told(chosen, rows)
    assert [line[0] for line in lines] == ["method", "seqlora"]
    assert len(reasons) == 1
    assert reasons[0].startswith("ranpac: nothing can be told before it runs (")


def test_images_have_no_forecast() -> None:
    tiny = catalog.suite("tiny")
    assert memory.told(tiny, catalog.rows(tiny, ["seqlora"], {})) == ([], [])


def test_a_missing_configuration_is_said(tmp_path: Any) -> None:
    with pytest.raises(NotAvailable, match="no configuration of a language model"):
        told("seqlora", backbone=f"hf:none@{tmp_path}")
