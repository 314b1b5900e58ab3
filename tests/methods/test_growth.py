"""What a step costs, and what is kept, may grow with the tasks only where the method says so."""

from __future__ import annotations

from typing import Any

import pytest

from clbench import catalog, tiny

FIXED = ("seqlora", "finetune", "ewc", "si", "mas", "tasl", "l2pp")
"""Methods whose step and whose memory are those of the second task for ever."""
STEADY = ("lwf", "derpp", "agem", "er-ace", "dualprompt", "s-prompt", "inclora", "inflora")
"""Methods whose step is, while what they keep grows, or fills up."""


def costs(name: str, begin: Any, teach: Any) -> Any:
    settings = {**tiny.tiny.settings.get(name, {}), "epochs": 1}
    return teach(begin(catalog.method_type(name).cls(**settings))).state.costs


@pytest.mark.parametrize("method", [*FIXED, *STEADY])
def test_a_step_costs_the_same_in_every_later_task(method: str, begin: Any, teach: Any) -> None:
    _, second, third = costs(method, begin, teach)
    assert second.flops_per_step
    assert second.flops_per_step == third.flops_per_step
    if method in FIXED:
        assert second.stored_bytes == third.stored_bytes
