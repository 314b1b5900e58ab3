"""trace: TRACE's eight tasks for language models, as published or in any folder laid out like it.

Source and licence: see `_trace`; the files go into `trace` below $CLBENCH_DATA, or into the folder that --from names.
Command: `clbench run trace`; it needs a GPU. Minutes and scores were not measured here.

`trace-500` has 500 training rows a task, and `trace-15` adds seven tasks of the O-LoRA benchmark to those. A folder
without TRACE's own release in it is a data set of one's own, whose tasks get five passes each:
`clbench run trace --from ./my_tasks`.

`trace-compat` and `trace-500-compat` do what the code of TRACE and that of TreeLoRA do: a long question loses its
beginning, answers are sampled at temperature 0.1, one optimiser goes through the stream, and answers are scored by
their rules. In any suite of text the first three are
`--set recipe.truncation=left --set recipe.temperature=0.1 --set recipe.carry_optimizer=true`. The step size is constant
in all suites. Code may have 512 tokens instead of 64, for what comes after the line asked for lowers its score there;
the shorter limits of letters and numbers stay, for they change no score. Two things are not as there: tokens are drawn
from the whole vocabulary, not from a model's own `top_k` and `top_p`, which at 0.1 leave out next to nothing; and the
draws are seeded for each task of a run.
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
OWN_TENTHS = 4000
"""Rows that TRACE's replay may keep of a data set of one's own: as many as of `trace`."""
AFTERWARDS = 1
"""Passes over a task of the O-LoRA benchmark."""
MEAN_EPOCHS = 5
COMPAT = {"truncation": "left", "temperature": 0.1, "carry_optimizer": True}
LONGEST = 512
"""Tokens that an answer to any task may have in the code of others."""


def _passes(names: Sequence[str], epochs: dict[str, int]) -> tuple[int, ...]:
    return tuple(epochs.get(name, AFTERWARDS) for name in names)


def _suite(name: str, names: Sequence[str], make: Any, rows: int, **fields: Any) -> Suite:
    """A suite of the tasks called `names`, which `make()` reads, each of so many training rows.

    `fields` are further ones of `Suite`.
    """
    settings: dict[str, Any] = {
        "recipe": _llm.RECIPE.model_copy(update={"epochs": MEAN_EPOCHS, "task_epochs": _passes(names, EPOCHS)}),
        "contenders": _llm.contenders(len(names) * rows // 10, _passes(names, FEWER_EPOCHS)),
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
    return _suite(name, names, make, int(variant), stream_name=f"TRACE {variant}", files=files, reads=others)


def _holds_a_release(files: Files) -> bool:
    folder, begins = _llm.folder("trace", files), "LLM-CL-Benchmark_"
    return folder.name in (f"{begins}{variant}" for variant in _trace.SIZES) or any(folder.glob(f"{begins}*"))


def _own(name: str, files: Files, others: Any) -> Suite:
    def make() -> list[TextTask]:
        return _trace.read_folder(_llm.folder("trace", files), files.tasks or None)

    recipe = _llm.RECIPE.model_copy(update={"epochs": MEAN_EPOCHS})
    fields = {"recipe": recipe, "contenders": _llm.contenders(OWN_TENTHS), "references": ()}
    return _suite(name, (), make, 0, stream_name="tasks of one's own", files=files, reads=others, **fields)


def _fifteen(files: Files = USUAL) -> Suite:
    """The fifteen-task stream of the TreeLoRA paper; both data sets lie in one folder, or each in its usual place."""
    names = _rows.chosen(files.tasks or None, [*_trace.TASKS, *_olora.AFTER_TRACE])

    def make() -> list[TextTask]:
        return _olora.read_after_trace(_llm.folder("trace", files), _llm.folder("olora", files), "500", names)

    stream_name = "TRACE 500 and 7 of O-LoRA's"
    return _suite("trace-15", names, make, 500, stream_name=stream_name, files=files, reads=_fifteen)


def _compat(suite: Suite, name: str, score: str) -> Suite:
    """What the code of others does otherwise than we, scored as they do."""

    def others(files: Files) -> Suite:
        return _compat(suite.of(files), name, score)

    def make_stream(order_seed: int = 0) -> Stream:
        tasks = _llm.tasks(suite.stream(order_seed))
        return _llm.stream(replace(task, answer_tokens=LONGEST) if task.kind == "code" else task for task in tasks)

    recipe = suite.recipe.model_copy(update=COMPAT)
    references = REFERENCES[name] if suite.references else ()
    changed: dict[str, Any] = {"name": name, "recipe": recipe, "references": references, "reads": others}
    return replace(suite, make_stream=make_stream, score=score, **changed)


trace = _of_variant("trace", "5000")
trace_500 = _of_variant("trace-500", "500")
trace_15 = _fifteen()
trace_compat = _compat(trace, "trace-compat", "trace")
trace_500_compat = _compat(trace_500, "trace-500-compat", "lenient")
