"""The files of the O-LoRA benchmark: fifteen text classification tasks, and TRACE's eight before seven of them.

Source: Wang et al., Orthogonal Subspace Learning (arXiv 2310.14152), github.com/cmnfriend/O-LoRA, MIT; layout
`CL_Benchmark/<group>/<dataset>/{train,test,labels}.json`. The prompts are that code's: instruction, options, text and
`Answer:`. Departures from it, with reasons:

* no `Task:… Dataset:…` line before the instruction, because it tells the task at test time;
* dev.json, which repeats test.json, is not read; validation is held out of the training rows;
* rows without a label (empty or `-`, as 131 test rows of MNLI) are left out, because no answer to them can be right;
* the text is joined on, never put through `str.format`, which fails on braces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from clbench.errors import BadValue, UnknownName
from clbench.suites import _rows, _trace
from clbench.suites._rows import Parts, Shape, Sizes, Source
from clbench.text import Row, TextTask

CHOOSE = " Choose one from the option.\n"
INSTRUCTIONS = {
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"?' + CHOOSE,
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning?' + CHOOSE,
    "SC": "What is the sentiment of the following paragraph?" + CHOOSE,
    "TC": "What is the topic of the following paragraph?" + CHOOSE,
    "BoolQA": "According to the following passage, is the question true or false?" + CHOOSE,
    "MultiRC": "According to the following passage and question, is the candidate answer true or false?" + CHOOSE,
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence?" + CHOOSE,
}
"""By group; COPA's texts hold question and options themselves."""
CUE, ANSWER_TOKENS = "\nAnswer:", 50
UNLABELLED = "", "-"
TASKS = {
    "dbpedia": ("TC", 14000, 7600),
    "amazon": ("SC", 5000, 7600),
    "yahoo": ("TC", 10000, 7600),
    "agnews": ("TC", 4000, 7600),
    "yelp": ("SC", 5000, 7600),
    "MNLI": ("NLI", 3000, 7600),
    "CB": ("NLI", 250, 56),
    "WiC": ("WiC", 2000, 638),
    "COPA": ("COPA", 400, 100),
    "QQP": ("QQP", 2000, 7600),
    "BoolQA": ("BoolQA", 2000, 3270),
    "RTE": ("NLI", 2000, 277),
    "IMDB": ("SC", 2000, 7600),
    "SST-2": ("SC", 2000, 872),
    "MultiRC": ("MultiRC", 2000, 4848),
}
"""Group, training and test rows of the published files."""
ORDERS = {
    order: tuple(names.split())
    for order, names in {
        1: "dbpedia amazon yahoo agnews",
        2: "dbpedia amazon agnews yahoo",
        3: "yahoo amazon agnews dbpedia",
        4: "MNLI CB WiC COPA QQP BoolQA RTE IMDB yelp amazon SST-2 dbpedia agnews MultiRC yahoo",
        5: "MultiRC BoolQA WiC MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yelp amazon yahoo",
        6: "yelp amazon MNLI CB COPA QQP RTE IMDB SST-2 dbpedia agnews yahoo MultiRC BoolQA WiC",
    }.items()
}
AFTER_TRACE = ("dbpedia", "amazon", "yahoo", "agnews", "yelp", "BoolQA", "QQP")
"""What the fifteen-task stream of the TreeLoRA paper (arXiv 2506.10355) adds to TRACE's eight."""


def source(folder: Path, names: Iterable[str]) -> Source:
    """The files that must be there."""
    return Source(
        "the O-LoRA benchmark",
        _rows.within(folder, "CL_Benchmark"),
        tuple(f"{TASKS[name][0]}/{name}" for name in names),
        ("train", "test", "labels"),
        "github.com/cmnfriend/O-LoRA holds it; put its 'CL_Benchmark' into the folder that --from names, or into "
        "'olora' below $CLBENCH_DATA.",
    )


def read(
    folder: Path, order: int, tasks: Sequence[str] | None = None, most: tuple[int, int] | None = None
) -> list[TextTask]:
    """The tasks of one of the published orders 1 to 6, all or those named, in that order.

    `folder` holds `CL_Benchmark`, or is it. `most` is how many training and test rows to draw at most. Raises
    NotAvailable with all missing files, BadValue for a torn file, a malformed row or a label that labels.json lacks,
    UnknownName for an order or task.
    """
    if order not in ORDERS:
        raise UnknownName("order of the O-LoRA benchmark", str(order), map(str, ORDERS))
    names = _rows.chosen(tasks, ORDERS[order])
    files = source(folder, names)
    _rows.require(files)
    return [_task(files.folder, name, most) for name in names]


def read_after_trace(trace: Path, olora: Path, variant: str, tasks: Sequence[str] | None = None) -> list[TextTask]:
    """TRACE's eight tasks, then seven of this benchmark: the fifteen-task stream of the TreeLoRA paper.

    With TRACE's 500 rows a task, at most 500 training and 100 test rows of the seven are drawn, as in that paper's
    code; with another variant they are whole. The folders and errors are those of `_trace.read` and `read`.
    """
    if variant not in _trace.SIZES:
        raise UnknownName("variant of TRACE", variant, _trace.SIZES)
    names = _rows.chosen(tasks, [*_trace.TASKS, *AFTER_TRACE])
    first = [name for name in names if name in _trace.TASKS]
    then = [name for name in names if name in AFTER_TRACE]
    files = source(olora, then)
    _rows.require(_trace.source(trace, variant, first), files)
    most = (500, 100) if variant == "500" else None
    return [
        *(_trace.read(trace, variant, first) if first else ()),
        *(_task(files.folder, name, most) for name in then),
    ]


def _task(folder: Path, name: str, most: tuple[int, int] | None) -> TextTask:
    group, train_rows, test_rows = TASKS[name]
    labels = _labels(folder / group / name / "labels.json")
    prefix = f"{INSTRUCTIONS[group]}Option: {', '.join(labels)} \n" if group in INSTRUCTIONS else ""
    found = [_rows_of(folder / group / name / f"{part}.json", prefix, labels) for part in ("train", "test")]
    notes = list(_rows.size_note(Sizes(len(found[0]), None, len(found[1])), Sizes(train_rows, None, test_rows)))
    train, test = ([row for row in rows if row.answer not in UNLABELLED] for rows in found)
    for part, rows, labelled in (("training", found[0], train), ("test", found[1], test)):
        if len(labelled) < len(rows):
            notes.append(f"{len(rows) - len(labelled)} of {len(rows)} {part} rows have no label and were left out.")
    shape = Shape("label", prefix, CUE, ANSWER_TOKENS)
    return _rows.assemble(name, shape, Parts(train, (), test), notes, most)


def _rows_of(path: Path, prefix: str, labels: Sequence[str]) -> list[Row]:
    """Every row of a file, also those without a label; BadValue for a label that is not in `labels`."""
    pairs = _rows.records(path, "sentence", "label")
    known = {*labels, *UNLABELLED}
    _rows.refuse(
        path,
        (
            (index, None if label in known else f"its label '{label}' is not in labels.json ({', '.join(labels)})")
            for index, (_, label) in enumerate(pairs)
        ),
    )
    return [Row(prefix + sentence + CUE, label) for sentence, label in pairs]


def _labels(path: Path) -> list[str]:
    """The options, in the order in which the prompt names them."""
    labels = _rows.load(path)
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise BadValue(f'\'{path}\' does not hold a list of labels; needed is one such as ["True", "False"].')
    if len(set(labels)) < max(2, len(labels)):
        raise BadValue(f"'{path}' holds {', '.join(labels) or 'nothing'}; needed are two different labels or more.")
    return labels
