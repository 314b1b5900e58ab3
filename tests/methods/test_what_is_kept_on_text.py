"""What methods keep of text: as much as they train, however large the frozen model is."""

from __future__ import annotations

from typing import Any

import pytest

from clbench import catalog, checkpoint, tiny
from clbench.backbones import causal
from clbench.backbones.causal import NANO_LM, ShapeSource
from clbench.meter import tensor_bytes

METHODS = sorted({contender.method for contender in catalog.suite("trace").contenders} - {"finetune"})
"""All that are compared on TRACE; full fine-tuning keeps the whole network."""
WIDER = 6


def wide() -> Any:
    """nano-lm with more frozen weights between the layers that are adapted."""
    config = NANO_LM.config()
    config.intermediate_size *= WIDER
    return config


@pytest.mark.parametrize("name", METHODS)
def test_stored_numbers_do_not_grow_with_the_frozen_model(
    name: str, begin_text: Any, teach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = catalog.rows(tiny.tiny_text, [name], {})
    method = row.method.model_copy(update={"epochs": 1})
    kept, frozen = [], []
    for source in (NANO_LM, ShapeSource("nano-lm", wide)):
        monkeypatch.setattr(causal, "NANO_LM", source)
        run = teach(begin_text(method, tasks=1))
        kept.append(tensor_bytes(checkpoint.tensors_of(run.learned())))
        frozen.append(tensor_bytes(dict(run.model.body.named_parameters())))
    assert frozen[1] > 2 * frozen[0]
    assert kept[1] == kept[0] > 0
