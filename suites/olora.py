"""olora-order1 to olora-order6: the O-LoRA benchmark's text classification tasks in its six published orders.

Source and licence: see `_olora`; the files go into `olora` below $CLBENCH_DATA, or are named by --from. Command:
`clbench run olora-order1`; it needs a GPU. Orders 1 to 3 have four tasks, 4 to 6 all fifteen. Minutes and scores were
not measured here, and those of the O-LoRA paper are of T5-large, which is no causal model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.suite import USUAL, Files, Suite
from clbench.suites import _llm, _olora, _rows
from clbench.suites._references_text import REFERENCES

if TYPE_CHECKING:
    from clbench.stream import Stream

# O-LoRA's scripts for LLaMA (github.com/cmnfriend/O-LoRA): 64 samples a step, one pass, 512 tokens and answers of 50;
# rank, alpha and dropout as TRACE's. Their 1e-3 in the first task and 1e-4 in the others is 1e-4 here.
RECIPE = _llm.RECIPE.model_copy(
    update={"batch_size": 64, "betas": (0.9, 0.999), "prompt_tokens": 512, "answer_tokens": 50, "epochs": 1}
)
TWICE = "MNLI"
"""The task that the scripts of orders 4 to 6 go through twice."""


def _order(order: int, files: Files = USUAL) -> Suite:
    name, names = f"olora-order{order}", _rows.chosen(files.tasks or None, _olora.ORDERS[order])

    def make_stream(order_seed: int = 0) -> Stream:
        return _llm.stream(_olora.read(_llm.folder("olora", files), order, names), order_seed)

    def others(files: Files) -> Suite:
        return _order(order, files)

    tenths = sum(_olora.TASKS[task][1] // 10 for task in names)
    passes = tuple(2 if name == TWICE else 1 for name in names) if TWICE in names else ()
    return Suite(
        name=name,
        make_stream=make_stream,
        stream_name=f"O-LoRA order {order}",
        backbone=_llm.BACKBONE,
        recipe=RECIPE.model_copy(update={"task_epochs": passes}),
        transform=_llm.TRANSFORM,
        normalisation="none",
        contenders=_llm.contenders(tenths),
        settings=_llm.SETTINGS,
        notes=_llm.notes,
        score="strict",
        references=REFERENCES[name],
        files=files,
        reads=others,
    )


order1, order2, order3, order4, order5, order6 = map(_order, _olora.ORDERS)
