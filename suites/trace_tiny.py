"""trace-tiny: eight small generated tasks in TRACE's form, for a language model of 0.7 M weights that reads bytes.

Source: made here, free to use; see `_trace_tiny`. Command: `clbench run trace-tiny`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.recipe import Recipe
from clbench.suite import Contender, Suite
from clbench.suites import _llm

if TYPE_CHECKING:
    from clbench.stream import Stream


def _stream(order_seed: int = 0) -> Stream:
    from clbench.suites import _trace_tiny

    return _llm.stream(_trace_tiny.read(), order_seed)


trace_tiny = Suite(
    name="trace-tiny",
    make_stream=_stream,
    stream_name="trace-tiny",
    backbone="tiny-lm",
    recipe=Recipe(
        epochs=2,
        batch_size=8,
        eval_batch_size=100,
        learning_rate=2e-3,
        clip=1.0,
        lora_rank=8,
        lora_alpha=32,
        lora_sites=("q", "v"),
        prompt_tokens=192,
        answer_tokens=64,
    ),
    transform=_llm.TRANSFORM,
    normalisation="none",
    contenders=(
        Contender("seqlora"),
        Contender("finetune"),
        Contender("ewc"),
        Contender("replay"),
        Contender("olora"),
        Contender("hidelora"),
        Contender("treelora"),
        Contender("joint"),
    ),
    settings={
        "finetune": {"learning_rate": 3e-4},
        "ewc": {"penalty_weight": 10.0},  # of 10, 100 and 1000 the one that lets all tasks be learned (validation rows)
        "replay": {"replay_batch": 8},
        "treelora": {"decomposition": "none", "penalty_weight": 0.5},
    },
    notes=_llm.notes,
    score="strict",
)
