"""Rows of text data sets: from JSON files, strictly, to tasks that say what is odd about them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.seeding import derive
from clbench.text import Row, TextTask

VALIDATION_SHARE, VALIDATION_ROWS = 0.1, 200
"""So much of the training rows is held out where no file of validation rows can be used, at most."""
SURROGATE = re.compile("[\ud800-\udfff]")
JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class Shape(NamedTuple):
    """What all rows of a task share; the words are those of `TextTask`."""

    kind: str
    prefix: str
    cue: str
    answer_tokens: int


class Parts(NamedTuple):
    """The rows of a task's files, in the files' order."""

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]


class Sizes(NamedTuple):
    """Numbers of rows; None where nobody has counted them."""

    train: int | None
    validation: int | None
    test: int | None

    def __str__(self) -> str:
        return "/".join("?" if count is None else str(count) for count in self)


@dataclass(frozen=True)
class Source:
    """Files that people fetch themselves: `<folder>/<task>/<part>.json`."""

    title: str
    folder: Path
    tasks: tuple[str, ...]
    """Relative to the folder, with slashes."""
    parts: tuple[str, ...]
    advice: str
    """A sentence: where they are had and where they go."""


def require(*sources: Source) -> None:
    """Raise NotAvailable, with every missing file of all the sources and what to do, unless all are there."""
    sentences = []
    for source in sources:
        lacking = {
            task: [
                f"{task}/{part}.json" for part in source.parts if not (source.folder / task / f"{part}.json").is_file()
            ]
            for task in source.tasks
        }
        if any(lacking.values()):
            whole = [Path(task).name for task, files in lacking.items() if not files]
            title = source.title[0].upper() + source.title[1:]
            sentences.append(
                f"{title} is not whole in '{source.folder}': missing {', '.join(chain(*lacking.values()))}. "
                + source.advice
                + (f" Whole tasks, which can be chosen: {', '.join(whole)}." if whole else "")
            )
    if sentences:
        raise NotAvailable(" ".join(sentences))


def within(folder: Path, name: str) -> Path:
    """The folder called `name`: the given one, or else the one in it."""
    return folder if folder.name == name else folder / name


def chosen(tasks: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The known tasks that are in `tasks`, in the order of `known`; all where it is None."""
    for name in tasks or ():
        if name not in known:
            raise UnknownName("task", name, known)
    if tasks is not None and not tasks:
        raise BadValue(f"no task is chosen; choose at least one of {', '.join(known)}.")
    return tuple(name for name in known if tasks is None or name in tasks)


def load(path: Path) -> object:
    """The content of a UTF-8 JSON file, with or without a byte-order mark; BadValue names a torn one."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise NotAvailable(
            f"'{path}' cannot be read ({error.strerror}); check the file and its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise BadValue(f"'{path}' is not UTF-8 (byte {error.start}); save it as UTF-8 or fetch it again.") from error
    except ValueError as error:
        raise BadValue(f"'{path}' is not whole JSON ({error}); unpack or fetch it again.") from error
    except RecursionError as error:
        raise BadValue(f"'{path}' is nested too deep for rows; unpack or fetch it again.") from error


def records(path: Path, *fields: str) -> list[tuple[str, ...]]:
    """The fields of every row of a file, which must be a list of objects with strings.

    Raises BadValue naming the file and the index, from 0, of the first row that is not, and how many more there are.
    """
    rows = load(path)
    if not isinstance(rows, list) or not rows:
        came = "an empty list" if rows == [] else JSON_NAMES[type(rows)]
        raise BadValue(f"'{path}' holds {came}; needed is a list of objects with {_quoted(fields)}.")
    refuse(path, ((index, _fault(row, fields)) for index, row in enumerate(rows)))
    return [tuple(row[field] for field in fields) for row in rows]


def refuse(path: Path, faults: Iterable[tuple[int, str | None]]) -> None:
    """Raise BadValue for the first row with a fault, if there is one."""
    found = [(index, fault) for index, fault in faults if fault]
    if found:
        index, fault = found[0]
        more = f"; {len(found) - 1} more malformed" if found[1:] else ""
        raise BadValue(f"'{path}', row {index} (counted from 0): {fault}{more}. Mend the file or fetch it again.")


def _fault(row: object, fields: Sequence[str]) -> str | None:
    if not isinstance(row, dict):
        return f"is {JSON_NAMES[type(row)]}, not an object with {_quoted(fields)}"
    for field in fields:
        if field not in row:
            return f"has no '{field}', only {_quoted(row) or 'nothing'}"
        if not isinstance(row[field], str):
            return f"'{field}' is {JSON_NAMES[type(row[field])]}, not a string"
        if SURROGATE.search(row[field]):
            return f"'{field}' holds half a surrogate pair, which is no character"
    return None


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def assemble(
    name: str, shape: Shape, parts: Parts, notes: Iterable[str] = (), most: tuple[int, int] | None = None
) -> TextTask:
    """A task of the rows of its files, with a note on whatever a reader of its scores should know.

    * A training row with an empty or blank answer is left out: it would teach silence. In the other parts such rows
      are kept and scored.
    * A validation row whose prompt is a test row's is left out: tuning must not see the test. If none stays, or there
      was none, validation is held out of the training rows.
    * A training row whose prompt is a test row's stays, because published numbers were made with it.
    * `most` is how many training and test rows to draw at most, with a fixed seed.

    Raises BadValue where no row is left to learn from, to be tested by, or to hold out.
    """
    test = parts.test
    asked = {row.prompt for row in test}
    train = [row for row in parts.train if row.answer.strip()]
    if not train or not test:
        part = "training" if test else "test"
        raise BadValue(f"no {part} row of task '{name}' has an answer; give it some, or leave the task out.")
    validation = [row for row in parts.validation if row.prompt not in asked]
    said = [*notes, *_oddities(shape, parts, len(validation))]
    if not validation:
        rows = len(train)
        train, validation = hold_out(name, train, asked)
        said.append(f"Validation is {len(validation)} of the {rows} training rows, held out with a fixed seed.")
    if most:
        said += [
            f"{count} of {len(rows)} {part} rows were drawn, with a fixed seed."
            for count, rows, part in ((most[0], train, "training"), (most[1], test, "test"))
            if count < len(rows)
        ]
        train, test = draw(train, most[0], name, "train"), draw(test, most[1], name, "test")
    return TextTask(
        name=name,
        kind=shape.kind,
        prefix=shape.prefix,
        cue=shape.cue,
        answer_tokens=shape.answer_tokens,
        train=tuple(train),
        validation=tuple(validation),
        test=tuple(test),
        notes=(*said, *repetitions(train, test)),
    )


def _oddities(shape: Shape, parts: Parts, validation_kept: int) -> Iterable[str]:
    """Sentences on empty answers, empty bodies and validation rows that are test rows."""
    dropped = sum(not row.answer.strip() for row in parts.train)
    if dropped:
        yield f"{dropped} of {len(parts.train)} training rows have no answer and were left out."
    silent = sum(not row.answer.strip() for row in parts.test)
    if silent:
        yield f"{silent} of {len(parts.test)} test rows have no answer; they are asked and scored all the same."
    ends = len(shape.prefix), len(shape.cue)
    bare = [sum(not row.prompt[ends[0] : len(row.prompt) - ends[1]].strip() for row in part) for part in parts]
    if any(bare):
        counts = "/".join(map(str, bare))
        yield f"{counts} rows (train/validation/test) have nothing between instruction and cue; they stay."
    shared = len(parts.validation) - validation_kept
    if shared:
        yield f"{shared} of {len(parts.validation)} validation rows ask what a test row asks and were left out."


def repetitions(train: Sequence[Row], test: Sequence[Row]) -> Iterable[str]:
    """Sentences on prompts that occur more than once in a part, and on test prompts among the training rows."""
    prompts = {row.prompt for row in train}
    for part, rows, different in (("training", train, prompts), ("test", test, {row.prompt for row in test})):
        if len(different) < len(rows):
            yield f"The {len(rows)} {part} rows hold {len(different)} different prompts."
    shared = [row.prompt for row in test if row.prompt in prompts]
    if shared:
        yield (
            f"{len(shared)} of {len(test)} test rows (different prompts: {len(set(shared))}) ask what a training row "
            "asks; both stay."
        )


def hold_out(name: str, train: Sequence[Row], asked: set[str]) -> tuple[list[Row], list[Row]]:
    """Split into training and validation rows: a tenth, at most 200 rows, the same ones whatever else is chosen.

    Rows of equal prompt stay together, so that no validation row was learned by heart, and no prompt in `asked` (the
    test's) is held out. The draw is by a hash of the prompt, so it depends on no library and not on the rows' order.
    """
    copies = Counter(row.prompt for row in train)
    candidates = sorted(copies.keys() - asked, key=lambda prompt: derive(0, "validation", name, prompt))
    wanted = max(1, min(round(VALIDATION_SHARE * len(train)), VALIDATION_ROWS))
    held: set[str] = set()
    for prompt in candidates:
        if wanted <= 0:
            break
        held.add(prompt)
        wanted -= copies[prompt]
    kept, validation = ([row for row in train if (row.prompt in held) is inside] for inside in (False, True))
    if not kept or not validation:
        raise BadValue(
            f"task '{name}' has too few different training prompts to hold out validation rows; "
            "give it more rows or an eval.json with prompts of its own."
        )
    return kept, validation


def draw(rows: Sequence[Row], most: int, *words: str) -> list[Row]:
    """At most so many rows, drawn by a hash of their place, in their order."""
    places = sorted(range(len(rows)), key=lambda place: derive(0, "draw", *words, place))
    return [rows[place] for place in sorted(places[:most])]


def size_note(found: Sizes, published: Sizes) -> Iterable[str]:
    """A sentence if the files do not have the published numbers of rows: then they are someone's own copy."""
    if any(count is not None and count != here for here, count in zip(found, published, strict=True)):
        yield f"The files hold {found} rows (train/validation/test), the published ones {published}."
