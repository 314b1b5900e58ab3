from __future__ import annotations

from typing import Any

import pytest
import torch

from clbench.methods.inclora import IncLoRA
from clbench.methods.olora import OLoRA
from clbench.methods.seqlora import SeqLoRA


def test_is_orthogonal_lora_without_its_penalty_to_the_bit(begin: Any, teach: Any) -> None:
    plain, other = teach(begin(IncLoRA())), teach(begin(OLoRA(penalty_weight=0)))
    assert plain.facts()["scores"] == other.facts()["scores"]
    theirs = dict(other.model.state_dict())
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("method", [IncLoRA(), OLoRA(penalty_weight=0)], ids=lambda method: method.name)
def test_the_first_task_is_that_of_one_lora_to_the_bit(method: Any, begin: Any, teach: Any, weights: Any) -> None:
    found = weights(teach(begin(method, epochs=1), 0))
    expected = weights(teach(begin(SeqLoRA(), epochs=1), 0))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_a_task_starts_where_the_last_one_ended(begin: Any, teach: Any) -> None:
    run = teach(begin(IncLoRA()), 0)
    images = run.stream.tasks[0].train.images
    before = run.model(images).detach()
    run.strategy.task_index = 1
    run.plugins[0].before_train_dataset_adaptation(run.strategy)
    torch.testing.assert_close(run.model(images), before)
    layer = run.plugins[0].lora.layers[0]
    assert not layer.up.any()
    assert layer.past_up[0].any()
