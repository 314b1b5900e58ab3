"""The forecast of memory, against what small models really take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clbench import backbones, catalog, memory, plan, runner
from clbench.backbones import vision
from clbench.backbones.tags import TaggedSource
from clbench.errors import BadValue, NotAvailable
from clbench.method import Method, Workbench
from clbench.padding import PROMPT
from clbench.strategy import Strategy

FACTOR = 1.5
"""How far the estimate of activations may lie from what a pass keeps on a processor."""
CPU = torch.device("cpu")
CLASSES = 7


def suite(backbone: str = "nano-lm", **recipe: Any) -> Any:
    words = {"prompt_tokens": "48", "answer_tokens": "16", "batch_size": "4", **recipe}
    return catalog.suite("trace-tiny", {k: str(v) for k, v in words.items()}, backbone=backbone)


def of_images(backbone: str = "glyph-vit", **recipe: Any) -> Any:
    return catalog.suite("glyphs", {"batch_size": "4", **{k: str(v) for k, v in recipe.items()}}, backbone=backbone)


def method(name: str, chosen: Any) -> Method:
    return catalog.rows(chosen, [name], {})[0].method


def forecast(chosen: Any, name: str) -> memory.Forecast:
    return memory.forecast(chosen, method(name, chosen), chosen.recipe, lambda: CLASSES)


def told(name: str, **recipe: Any) -> memory.Forecast:
    chosen = suite(**recipe)
    return memory.forecast(chosen, method(name, chosen), chosen.recipe, lambda: pytest.fail("text has no classes"))


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class Kept:
    """What is kept for the gradient, without the weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


def step(chosen: Any, name: str) -> dict[str, int]:
    """What a real step takes: a micro-batch of images, or of the longest rows."""
    recipe = chosen.recipe
    model = backbones.build(chosen.backbone, CLASSES, 0, weights="random")
    model.freeze_body()
    weights = list(model.body.parameters())
    method(name, chosen).plugins(Workbench(model, recipe, CPU, 8, 0))
    trained = model.trainable()
    optimiser = torch.optim.Adam(trained, lr=1e-3, fused=True)
    if isinstance(model, vision.VisionClassifier):
        inputs = torch.zeros(recipe.batch_size, *model.image_shape, dtype=torch.uint8)
        targets = torch.zeros(len(inputs), dtype=torch.int64)
    else:
        model.span = recipe.answer_tokens
        inputs = torch.full((recipe.batch_size, 2, recipe.prompt_tokens + recipe.answer_tokens), PROMPT)
        targets = torch.zeros(len(inputs), recipe.answer_tokens, dtype=torch.int64)
    kept = Kept(model)
    with kept.hooks:
        loss = model.losses(model(inputs), targets, torch.ones(model.classes, dtype=torch.bool)).mean()
    loss.backward()
    optimiser.step()
    states = [value for state in optimiser.state.values() for value in state.values()]
    return {
        "weights": bytes_of(weights),
        "trained": bytes_of(trained),
        "gradients": bytes_of(p.grad for p in trained if p.grad is not None),
        "optimiser": bytes_of(states),
        "activations": kept.bytes,
    }


@pytest.mark.parametrize(
    ("name", "backbone"), [("seqlora", "nano-lm"), ("seqlora", "tiny-lm"), ("finetune", "nano-lm")]
)
def test_the_forecast_is_what_a_step_takes(name: str, backbone: str) -> None:
    found, real = told(name, backbone=backbone), step(suite(backbone), name)
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
    lines, reasons = memory.told(chosen, rows, lambda: chosen.stream().classes)
    assert [line[0] for line in lines] == ["method", "seqlora"]
    assert len(reasons) == 1
    assert reasons[0].startswith("ranpac: nothing can be told before it runs (")


# images


@pytest.mark.parametrize("name", ["seqlora", "finetune", "l2p", "dualprompt", "coda-prompt", "aper-adapter"])
def test_of_images_the_forecast_is_what_a_step_takes_to_the_byte(name: str) -> None:
    chosen = of_images()
    found, real = forecast(chosen, name), step(chosen, name)
    head = (128 + 1) * CLASSES * 4
    assert (found.weights, found.gradients) == (real["weights"], real["trained"])
    assert found.adapters == (head if name == "finetune" else real["trained"])
    assert found.activations == real["activations"]
    assert found.optimiser >= real["optimiser"]  # what this batch did not choose has no moments yet
    if name in ("seqlora", "finetune"):
        assert found.optimiser == real["optimiser"]


def test_a_query_keeps_nothing_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = forecast(of_images(), "l2p")
    monkeypatch.setattr(vision.VisionClassifier, "_untouched", lambda self, inputs, tokens=None: tokens[:, 0])
    assert forecast(of_images(), "l2p").activations == twice.activations


def test_kept_images_take_a_byte_a_pixel_and_join_the_batch() -> None:
    plain, kept = forecast(of_images(), "seqlora"), forecast(of_images(), "replay")
    (row,) = catalog.rows(of_images(), ["replay"], {})
    assert kept.kept_rows == row.method.resources().buffer_samples * (32 * 32 + 8)  # and its class
    assert plain.kept_rows == 0
    both = 1 + row.method.resources().replay_batch / 4
    assert both - 0.1 < kept.activations / plain.activations < both + 0.1


def test_answering_images_is_what_one_pass_holds_at_once() -> None:
    one, many = (forecast(of_images(eval_batch_size=size), "ncm") for size in (1, 64))
    assert (one.activations, one.gradients, one.optimiser, one.adapters) == (0, 0, 0, 0)  # it learns without gradients
    # While the MLP computes: its input and output of GELU, 17 tokens of 4 * 128 numbers, and what goes around it.
    assert 64 * 17 * (2 * 512 + 128) * 4 <= many.answering <= 64 * 17 * (2 * 512 + 4 * 128) * 4
    assert many.answering == pytest.approx(64 * one.answering, rel=0.05)


@pytest.mark.parametrize("backbone", ["vit-b16-in21k", "timm:vit_base_patch16_224@nowhere.safetensors"])
def test_large_transformers_are_told_of_without_their_weights(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(source: TaggedSource) -> None:
        pytest.fail("weights were asked for")

    monkeypatch.setattr(TaggedSource, "weights_file", weights)
    chosen = catalog.suite("cifar100", {}, backbone=backbone)
    found = forecast(chosen, "seqlora")
    assert found.weights == 85_798_656 * 4
    # 12 blocks; queries and values of 768, rank 10; the head
    assert found.adapters == 12 * 2 * 10 * (768 + 768) * 4 + (768 + 1) * CLASSES * 4
    # Of a block the LoRA keeps its input, attention what it multiplies, GELU its input in bfloat16; norms theirs whole.
    tokens = 128 * 197
    assert 12 * tokens * (6 * 768 + 3072) * 2 < found.activations < 12 * tokens * (6 * 768 + 3072) * 2 * 2
    assert forecast(chosen, "ewc").together == found.together


def test_all_methods_of_a_suite_of_images_are_told_of_in_one_table() -> None:
    tiny = catalog.suite("tiny")
    lines, reasons = memory.told(tiny, catalog.rows(tiny, ["seqlora", "icl"], {}), lambda: 8)
    assert [line[0] for line in lines] == ["method", "seqlora"]
    assert reasons == ["icl: nothing can be told before it runs (AssertionError)"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in catalog.methods() if name not in ("icl", "ncm")])  # these have none
def test_every_methods_first_step_takes_what_was_forecast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for terms of its own, which keep up to a fifth more, and kept samples, of which there are none yet."""
    suite = catalog.suite("tiny")
    stream, rows = suite.stream(), catalog.rows(suite, [name], {})
    (cell,) = plan.cells(suite, stream, rows, [0], 0, "cpu")
    found = memory.forecast(cell.suite, cell.method, cell.suite.recipe, lambda: stream.classes)
    passes = Strategy._passes

    def watched(self: Strategy, **further: Any) -> None:
        kept = Kept(self.model)
        with kept.hooks:
            passes(self, **further)
        assert found.gradients == bytes_of(self.model.trainable())
        least, most = (0, 1.0) if cell.method.resources().replay_batch else (1, 1.2)
        assert least * found.activations <= kept.bytes <= most * found.activations
        raise KeyboardInterrupt

    monkeypatch.setattr(Strategy, "_passes", watched)
    running = runner.Run(cell, stream, CPU, runner.Silent())
    with pytest.raises(KeyboardInterrupt):
        running.learn(*running.lessons()[0])


def test_data_that_are_not_here_are_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head has a row for each class."""
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path))
    chosen = catalog.suite("cifar100")
    with pytest.raises(NotAvailable, match="clbench data prepare cifar100"):
        memory.told(chosen, catalog.rows(chosen, ["seqlora"], {}), lambda: chosen.stream().classes)


def test_a_missing_configuration_is_said(tmp_path: Any) -> None:
    with pytest.raises(NotAvailable, match="no configuration of a language model"):
        told("seqlora", backbone=f"hf:none@{tmp_path}")


def test_what_is_wrong_with_the_stream_is_said_once() -> None:
    def none() -> int:
        raise BadValue("no such order")

    tiny = catalog.suite("tiny")
    with pytest.raises(BadValue, match="no such order"):
        memory.told(tiny, catalog.rows(tiny, ["seqlora", "ewc"], {}), none)
