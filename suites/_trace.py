"""TRACE's files, and any folder laid out like them.

Source: Wang et al., TRACE (arXiv 2310.06762), github.com/BeyonderXX/TRACE, whose page links the data
(LLM-CL-Benchmark); the code is Apache-2.0, the eight sources have licences of their own. Layout:
`LLM-CL-Benchmark_{500,1000,5000}/<task>/{train,eval,test}.json`, each a list of `{"prompt", "answer"}`. Instruction
and answer cue are in the prompt already.

How `read` departs from the files: validation is eval.json without the rows that are test rows. In `_5000`, FOMC's
eval.json is its test.json in another order, so FOMC's validation is held out of its training rows there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.scoring.answers import KINDS
from clbench.suites import _rows
from clbench.suites._rows import Parts, Shape, Sizes, Source
from clbench.text import Row, TextTask

MATH = Shape("number", "Solve the following math problem.\nQuestion:\n", "\nAnswer:", 16)
TASKS = {
    "C-STANCE": Shape(
        "letter",
        "判断以下文本对指定对象的态度，选择一项：A.支持，B.反对，C.中立。输出A，B或者C。\n文本：\n",
        "\n态度：",
        8,
    ),
    "FOMC": Shape(
        "letter",
        "What is the monetary policy stance for the following text? A. dovish, B. hawkish, C. neutral. "
        "Choose one from A, B and C.\nText:\n",
        "\nStance:",
        8,
    ),
    "MeetingBank": Shape(
        "summary", "Write a summary of the following meeting transcripts.\nMeeting transcripts:\n", "\nSummary:", 512
    ),
    "Py150": Shape("code", "", " <EOL>", 64),
    "ScienceQA": Shape(
        "choice",
        "Choose an answer for the following question and give your reasons.\n\nQuestion:\n",
        "\n\nAnswer:",
        512,
    ),
    "NumGLUE-cm": MATH,
    "NumGLUE-ds": MATH,
    "20Minuten": Shape(
        "simplification",
        "Provide a simplified version of the following paragraph in German.\n\nParagraph:\n",
        "\n\nSimplification:",
        512,
    ),
}
"""In the official order."""
SIZES = {
    "500": {name: Sizes(500, 100, 100) for name in TASKS} | {"NumGLUE-cm": Sizes(500, 41, 81)},
    "1000": {
        "C-STANCE": Sizes(1000, 2000, 2000),
        "FOMC": Sizes(1000, 496, 496),
        "MeetingBank": Sizes(None, None, None),
        "Py150": Sizes(1000, None, None),
        "ScienceQA": Sizes(1000, 2000, 2000),
        "NumGLUE-cm": Sizes(1000, 41, 81),
        "NumGLUE-ds": Sizes(1000, 164, 325),
        "20Minuten": Sizes(1000, 200, 200),
    },
    "5000": {
        "C-STANCE": Sizes(5000, 2000, 2000),
        "FOMC": Sizes(5000, 496, 496),
        "MeetingBank": Sizes(5000, None, None),
        "Py150": Sizes(5000, None, None),
        "ScienceQA": Sizes(5000, 2000, 2000),
        "NumGLUE-cm": Sizes(5000, 41, 81),
        "NumGLUE-ds": Sizes(5000, 164, 325),
        "20Minuten": Sizes(5000, 200, 200),
    },
}
"""Rows of the published files, as far as they were counted."""
REPLAY_ONLY = "Lima"
"""A folder of the download that is no task: its test rows have no answers."""
ANSWER_TOKENS = {"letter": 8, "number": 16, "label": 50, "code": 64}
"""By kind, where a task does not say; other kinds have 512."""
FILES, NEEDED = ("train", "eval", "test"), ("train", "test")


def source(folder: Path, variant: str, names: Iterable[str]) -> Source:
    """The files that must be there; eval.json may be missing, as it is in a copy of 20Minuten."""
    release = f"LLM-CL-Benchmark_{variant}"
    return Source(
        f"TRACE's {release}",
        _rows.within(folder, release),
        tuple(names),
        NEEDED,
        f"github.com/BeyonderXX/TRACE links the data; unpack it so that '{release}' lies in the folder that --from "
        "names, or in 'trace' below $CLBENCH_DATA.",
    )


def read(folder: Path, variant: str, tasks: Sequence[str] | None = None) -> list[TextTask]:
    """TRACE's tasks, all or those named, in the official order.

    `folder` holds `LLM-CL-Benchmark_<variant>`, or is it; `variant` is 500, 1000 or 5000. Raises NotAvailable with all
    missing files, BadValue for a torn file or a malformed row, UnknownName for a variant or task.
    """
    if variant not in SIZES:
        raise UnknownName("variant of TRACE", variant, SIZES)
    names = _rows.chosen(tasks, list(TASKS))
    files = source(folder, variant, names)
    _rows.require(files)
    return [_task(files.folder / name, TASKS[name], SIZES[variant][name]) for name in names]


def read_folder(folder: Path, tasks: Sequence[str] | None = None) -> list[TextTask]:
    """The tasks of a folder in TRACE's layout: every sub-folder, or those named in `tasks`, in that order.

    Without `tasks`, sub-folders named as TRACE's tasks come first, in its order, then the others by name; hidden ones,
    those that begin with `_` and Lima are no tasks. A `task.json` beside the rows may say `kind`, `prefix`, `cue`
    and `answer_tokens`, and overrides what is known of TRACE's tasks. Of a task of one's own, without it,

    * the kind is guessed from the training answers where they leave no doubt: single letters, numbers, a letter with
      a reason below it, or at most twenty different lines, each five times on average. Else BadValue asks for it;
    * prefix and cue are the whole lines that all prompts begin and end with.
    """
    known = list(TASKS)
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [name for name in folders if name[0] not in "._" and name != REPLAY_ONLY]
    found.sort(key=lambda name: known.index(name) if name in known else len(known))
    if not found:
        raise NotAvailable(
            f"there is no task in '{folder}'; needed is a sub-folder for each, with train.json, test.json and, for "
            "validation, eval.json, each a list of objects with 'prompt' and 'answer'."
        )
    strange = next((name for name in found if _rows.SURROGATE.search(name)), None)
    if strange is not None:
        raise BadValue(f"the name of the task {strange!r} in '{folder}' is not UTF-8; rename the sub-folder.")
    names = sorted(_rows.chosen(tasks, found), key=list(tasks).index) if tasks else _rows.chosen(tasks, found)
    _rows.require(Source("the data set", folder, tuple(names), NEEDED, "Every task needs both files."))
    return [_own_task(folder / name) for name in names]


def _parts(folder: Path) -> Parts:
    """The rows of a task; no validation rows where there is no eval.json."""
    paths = [folder / f"{part}.json" for part in FILES]
    return Parts(
        *(
            [Row(*values) for values in _rows.records(path, "prompt", "answer")] if path.is_file() else []
            for path in paths
        )
    )


def _task(folder: Path, shape: Shape, published: Sizes | None = None) -> TextTask:
    """A task of TRACE; prompts that lack the published ends are noted, and the ends shortened to what all have."""
    parts = _parts(folder)
    notes: list[str] = []
    if published:
        notes += _rows.size_note(Sizes(*map(len, parts)), published)
    if not parts.validation:
        notes.append("There is no eval.json.")
    misfits = _misfits(shape, parts)
    if misfits:
        prefix, cue = _common_ends(parts, shape.prefix, shape.cue)
        shape = shape._replace(prefix=prefix, cue=cue)
        notes.append(f"Prompts without the published instruction or cue: {len(misfits)}, first {misfits[0]}.")
    return _rows.assemble(folder.name, shape, parts, notes)


class Card(BaseModel):
    """What a task.json may say; the words are those of `TextTask`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: str | None = None
    prefix: str | None = None
    cue: str | None = None
    answer_tokens: PositiveInt | None = None


def _own_task(folder: Path) -> TextTask:
    """A task of a user's folder: as its task.json says, else as TRACE's task of that name, else as guessed."""
    path = folder / "task.json"
    if folder.name in TASKS and not path.is_file():
        return _task(folder, TASKS[folder.name])
    card = _card(path)
    parts = _parts(folder)
    usual = TASKS.get(folder.name)
    kind = card.kind or (usual.kind if usual else _guess(row.answer for row in parts.train))
    if kind is None:
        raise BadValue(
            f"the answers in '{folder}' do not show how they are to be scored; write "
            f"'{path}' with {{\"kind\": …}}, one of {', '.join(KINDS)}."
        )
    guessed = (usual.prefix, usual.cue) if usual else _whole_lines(*_common_ends(parts))
    shape = Shape(
        kind,
        guessed[0] if card.prefix is None else card.prefix,
        guessed[1] if card.cue is None else card.cue,
        card.answer_tokens or ANSWER_TOKENS.get(kind, 512),
    )
    misfits = _misfits(shape, parts)
    if misfits:
        raise BadValue(
            f"{len(misfits)} prompts in '{folder}', first {misfits[0]}, do not begin with {shape.prefix!r} and "
            f"end with {shape.cue!r}; mend prefix and cue in '{path}' or leave them out."
        )
    notes = [] if card.kind else [f"Scored as '{kind}', which its answers look like."]
    return _rows.assemble(folder.name, shape, parts, notes)


def _card(path: Path) -> Card:
    if not path.is_file():
        return Card()
    try:
        card = Card.model_validate(_rows.load(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        known = ", ".join(Card.model_fields)
        raise BadValue(f"'{path}': {where}: {first['msg']}; it is an object that may hold {known}.") from error
    if card.kind is not None and card.kind not in KINDS:
        raise UnknownName("kind of answer", card.kind, KINDS)
    return card


def _misfits(shape: Shape, parts: Parts) -> list[str]:
    """The rows whose prompt is not prefix + body + cue, as 'train.json row 3', counted from 0."""
    ends = len(shape.prefix) + len(shape.cue)
    return [
        f"{file}.json row {index}"
        for file, rows in zip(FILES, parts, strict=True)
        for index, (prompt, _) in enumerate(rows)
        if len(prompt) < ends or not (prompt.startswith(shape.prefix) and prompt.endswith(shape.cue))
    ]


def _common_ends(parts: Parts, prefix: str | None = None, cue: str | None = None) -> tuple[str, str]:
    """The longest beginning and end of all prompts; of `prefix` and `cue` too, where given."""
    prompts = [row.prompt for row in chain(*parts)]
    first = _common_start(prompts if prefix is None else [prefix, *prompts])
    rests = [prompt[len(first) :][::-1] for prompt in prompts]
    return first, _common_start(rests if cue is None else [cue[::-1], *rests])[::-1]


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with: what the first and the last by alphabet have in common.

    >>> _common_start(["state", "stance", "stay"])
    'sta'
    """
    low, high = min(texts), max(texts)
    return low[
        : next((place for place, pair in enumerate(zip(low, high, strict=False)) if len(set(pair)) > 1), len(low))
    ]


def _whole_lines(prefix: str, cue: str) -> tuple[str, str]:
    """Without the words that happen to stand in every body.

    >>> _whole_lines("Add.\\nQuestion:\\nHow ", "?\\nAnswer:")
    ('Add.\\nQuestion:\\n', '\\nAnswer:')
    """
    return prefix[: prefix.rfind("\n") + 1], cue[cue.find("\n") :] if "\n" in cue else ""


def _guess(answers: Iterable[str]) -> str | None:
    """The kind of answers that leave no doubt, else None."""
    spoken = [answer.strip() for answer in answers if answer.strip()]
    for kind, pattern in (("letter", r"[A-Z]"), ("number", r"[-+]?\d+([.,]\d+)*"), ("choice", r"[A-Z]\n.+")):
        if spoken and all(re.fullmatch(pattern, answer, re.DOTALL) for answer in spoken):
            return kind
    different = set(spoken)
    if 0 < len(different) <= 20 and 5 * len(different) <= len(spoken) and not any("\n" in it for it in different):
        return "label"
    return None
