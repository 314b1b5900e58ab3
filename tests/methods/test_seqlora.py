from __future__ import annotations

from typing import Any

import pytest
import torch

from clbench.adapters.lora import LoRALinear
from clbench.methods.seqlora import SeqLoRA


def adapters(run: Any) -> list[LoRALinear]:
    return [module for module in run.model.modules() if isinstance(module, LoRALinear)]


def test_one_adapter_is_carried_through_all_tasks(begin: Any, teach: Any) -> None:
    run = begin(SeqLoRA())
    layers = adapters(run)
    assert len(layers) == 2
    starts: list[torch.Tensor] = []
    epochs = run.strategy.on_epoch

    def first_of_a_task(epoch: int, of: int, loss: float) -> None:
        starts.append(layers[0].up.detach().clone())
        epochs(epoch, of, loss)

    frozen = [layer.base.weight.clone() for layer in layers]
    teach(run, 0)
    end = layers[0].up.detach().clone()
    run.strategy.on_epoch = first_of_a_task
    run.strategy.learning_rate = 1e-12  # so small that after an epoch the weights are still those of the start
    teach(run, 1)
    torch.testing.assert_close(starts[0], end, atol=1e-9, rtol=0)
    assert end.abs().max() > 1e-3
    assert adapters(run) == layers
    assert all(len(layer.past_down) == 0 for layer in layers)
    assert all(torch.equal(layer.base.weight, before) for layer, before in zip(layers, frozen, strict=True))


def test_masking_leaves_the_old_rows_of_the_head_alone(begin: Any, teach: Any, weights: Any) -> None:
    for masking, same in (("current", True), ("seen", False)):
        run = teach(begin(SeqLoRA(head_masking=masking)), 0)
        before = weights(run)
        teach(run, 1)
        after = weights(run)
        for name in ("head.weight", "head.bias"):
            assert torch.equal(before[name][:2], after[name][:2]) is same
            assert not torch.equal(before[name][2:4], after[name][2:4])
            assert torch.equal(before[name][4:], after[name][4:])  # classes not seen yet


@pytest.mark.parametrize(
    "recipe",
    [{"weight_decay": 0.1}, {"carry_optimizer": True}, {"optimizer": "sgd", "weight_decay": 0.1}],
    ids=lambda recipe: " ".join(recipe),
)
def test_neither_decay_nor_momentum_moves_the_old_rows(
    recipe: dict[str, Any], begin: Any, teach: Any, weights: Any
) -> None:
    run = begin(SeqLoRA(), tasks=2, epochs=1, **recipe)
    start = weights(run)
    learned = weights(teach(run, 0))
    after = weights(teach(run, 1))
    for name in ("head.weight", "head.bias"):
        assert torch.equal(start[name][2:], learned[name][2:])
        assert not torch.equal(start[name][:2], learned[name][:2])
        assert torch.equal(learned[name][:2], after[name][:2])
        assert not torch.equal(learned[name][2:4], after[name][2:4])


def test_forgets_more_without_the_mask(begin: Any, teach: Any) -> None:
    kept = {}
    for masking in ("current", "seen"):
        run = teach(begin(SeqLoRA(head_masking=masking)), 0, 1)
        kept[masking] = run.state.scores[2][0]
    assert kept["seen"] < kept["current"]
