from __future__ import annotations

from typing import Any

import torch

from clbench.methods.pertask import PerTask
from clbench.methods.seqlora import SeqLoRA


def test_the_first_task_is_that_of_one_lora_to_the_bit(begin: Any, teach: Any) -> None:
    run, plain = teach(begin(PerTask()), 0), teach(begin(SeqLoRA()), 0)
    for layer, other in zip(run.model.body.blocks, plain.model.body.blocks, strict=True):
        assert torch.equal(layer.attn.qkv.up, other.attn.qkv.up)
        assert torch.equal(layer.attn.qkv.bank_up[0], other.attn.qkv.up)


def test_nothing_is_forgotten(begin: Any, teach: Any) -> None:
    scores = teach(begin(PerTask())).facts()["scores"]
    for task in range(3):
        assert {row[task] for row in scores[task + 1 :]} == {scores[task + 1][task]}


def test_each_sample_gets_its_tasks_lora_and_classes(begin: Any, teach: Any) -> None:
    run = teach(begin(PerTask()))
    plugin, layers = run.plugins[0], run.plugins[0].lora.layers
    inputs = run.stream.tasks[0].train.images[:3]
    run.strategy.mbatch = [inputs, torch.zeros(3, dtype=torch.int64), torch.tensor([2, 0, 1])]
    plugin.before_eval_forward(run.strategy)
    run.strategy.mb_output = together = run.model(inputs)
    plugin.after_eval_forward(run.strategy)
    for sample, task in enumerate((2, 0, 1)):
        for layer in layers:
            layer.down.data, layer.up.data = layer.bank_down[task], layer.bank_up[task]
        torch.testing.assert_close(together[sample], run.model(inputs)[sample])
        own = run.strategy.mb_output[sample].isfinite().nonzero().flatten()
        assert own.tolist() == [2 * task, 2 * task + 1]


def test_among_all_classes_it_can_be_wrong_about_the_task(begin: Any, teach: Any) -> None:
    free, told = (teach(begin(PerTask(own_classes=own))).facts()["scores"][3] for own in (False, True))
    assert sum(free) < sum(told)


def test_declares_that_it_is_told_the_task() -> None:
    assert PerTask().resources().task_id_at_test
