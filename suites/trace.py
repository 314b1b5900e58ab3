"""trace: TRACE's eight tasks for language models, as published or in any folder laid out like it.

Source and licence: see `_trace`; the files go into `trace` below $CLBENCH_DATA, or into the folder that --from names.
Command: `clbench run trace`; it needs a GPU. Minutes and scores were not measured here.

`trace-500` has 500 training rows a task, and `trace-15` adds seven tasks of the O-LoRA benchmark to those. A folder
without TRACE's own release in it is a data set of one's own, whose tasks get five passes each:
`clbench run trace --from ./my_tasks`.

`trace-compat` and `trace-500-compat` do what the code of TRACE and that of TreeLoRA do: a long question loses its
beginning, answers are sampled at temperature 0.1, one optimiser goes through the stream, and answers are scored by
their rules. In any suite of text the first three are
`--set recipe.truncation=left --set recipe.temperature=0.1 --set recipe.carry_optimizer=true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clbench.suite import USUAL, Files, Suite
from clbench.suites import _llm, _olora, _rows, _trace
from clbench.suites._references_text import REFERENCES

if TYPE_CHECKING:
    from clbench.stream import Stream
    from clbench.text import TextTask

# TRACE's scripts, for every method.
EPOCHS = dict(zip(_trace.TASKS, (5, 3, 7, 5, 3, 5, 5, 7), strict=True))
# TreeLoRA's scripts, for TreeLoRA alone: 2.5 times fewer steps than the methods it is compared with.
FEWER_EPOCHS = dict(zip(_trace.TASKS, (2, 1, 3, 2, 1, 2, 2, 3), strict=True))
AFTERWARDS = 1
"""Passes over a task of the O-LoRA benchmark."""
MEAN_EPOCHS = 5
COMPAT = {"truncation": "left", "temperature": 0.1, "carry_optimizer": True}


def _passes(names: Sequence[str], epochs: dict[str, int]) -> tuple[int, ...]:
    return tuple(epochs.get(name, AFTERWARDS) for name in names)


def _suite(name: str, names: Sequence[str], make: Any, **fields: Any) -> Suite:
    """A suite of the tasks called `names`, which `make()` reads; `fields` are further ones of `Suite`."""
    settings: dict[str, Any] = {
        "recipe": _llm.RECIPE.model_copy(update={"epochs": MEAN_EPOCHS, "task_epochs": _passes(names, EPOCHS)}),
        "contenders": _llm.contenders(_passes(names, FEWER_EPOCHS)),
        "references": REFERENCES[name],
    }

    def make_stream(order_seed: int = 0) -> Stream:
        return _llm.stream(make(), order_seed)

    return Suite(
        name=name,
        make_stream=make_stream,
        backbone=_llm.BACKBONE,
        transform=_llm.TRANSFORM,
        normalisation="none",
        settings=_llm.SETTINGS,
        notes=_llm.notes,
        **{"score": "strict", **settings, **fields},
    )


def _of_variant(name: str, variant: str, files: Files = USUAL) -> Suite:
    """TRACE in one of its sizes, or the tasks of a folder that does not hold TRACE's release."""

    def others(files: Files) -> Suite:
        return _of_variant(name, variant, files)

    if files.folder is not None and not _holds_a_release(files):
        return _own(name, files, others)

    def make() -> list[TextTask]:
        return _trace.read(_llm.folder("trace", files), variant, files.tasks or None)

    names = _rows.chosen(files.tasks or None, list(_trace.TASKS))
    return _suite(name, names, make, stream_name=f"TRACE {variant}", files=files, reads=others)


def _holds_a_release(files: Files) -> bool:
    folder = _llm.folder("trace", files)
    return folder.name.startswith("LLM-CL-Benchmark_") or any(folder.glob("LLM-CL-Benchmark_*"))


def _own(name: str, files: Files, others: Any) -> Suite:
    def make() -> list[TextTask]:
        return _trace.read_folder(_llm.folder("trace", files), files.tasks or None)

    recipe = _llm.RECIPE.model_copy(update={"epochs": MEAN_EPOCHS})
    fields = {"recipe": recipe, "contenders": _llm.contenders(), "references": ()}
    return _suite(name, (), make, stream_name="tasks of one's own", files=files, reads=others, **fields)


def _fifteen(files: Files = USUAL) -> Suite:
    """The fifteen-task stream of the TreeLoRA paper; both data sets lie in one folder, or each in its usual place."""
    names = _rows.chosen(files.tasks or None, [*_trace.TASKS, *_olora.AFTER_TRACE])

    def make() -> list[TextTask]:
        return _olora.read_after_trace(_llm.folder("trace", files), _llm.folder("olora", files), "500", names)

    return _suite("trace-15", names, make, stream_name="TRACE 500 and 7 of O-LoRA's", files=files, reads=_fifteen)


def _compat(suite: Suite, name: str, score: str) -> Suite:
    """What the code of others does otherwise than we, scored as they do."""

    def others(files: Files) -> Suite:
        return _compat(suite.of(files), name, score)

    recipe = suite.recipe.model_copy(update=COMPAT)
    references = REFERENCES[name] if suite.references else ()
    return replace(suite, name=name, recipe=recipe, score=score, references=references, reads=others)


trace = _of_variant("trace", "5000")
trace_500 = _of_variant("trace-500", "500")
trace_15 = _fifteen()
trace_compat = _compat(trace, "trace-compat", "trace")
trace_500_compat = _compat(trace_500, "trace-500-compat", "lenient")
