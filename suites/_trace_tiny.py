"""Eight small text tasks in TRACE's row form, order and kinds of answer, generated from a small lexicon.

Source: made here, free to use; the twin of TRACE (Wang et al. 2023, arXiv:2310.06762) for a model that
reads bytes. Some tasks pull against each other on purpose: the same verbs ask for other letters in
`Stance` and in `Tone`, and one instruction stands before the sums and the differences.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clbench import words
from clbench.files import write_atomically
from clbench.text import Row, TextTask
from clbench.words import Draws, article

TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 500, 100, 100

Maker = Callable[[Draws, int], tuple[str, str]]
"""Gives a prompt's body and its answer; the number, modulo how many classes there are, says which class."""


@dataclass(frozen=True)
class _Form:
    """How the rows of one task are written."""

    name: str
    kind: str
    prefix: str
    cue: str
    answer_tokens: int
    make: Maker

    def rows(self) -> list[Row]:
        """Rows with different prompts, their classes taking turns."""
        draws, found = Draws("trace-tiny", self.name), dict[str, str]()
        while len(found) < TRAIN_ROWS + VALIDATION_ROWS + TEST_ROWS:
            body, answer = self.make(draws, len(found))
            found.setdefault(f"{self.prefix}{body}{self.cue}", answer)
        return [Row(prompt, answer) for prompt, answer in found.items()]

    def task(self) -> TextTask:
        """The rows in three parts, each as balanced as the whole."""
        rows, shuffle = self.rows(), Draws("trace-tiny", self.name, "order")
        starts = (0, TRAIN_ROWS, TRAIN_ROWS + VALIDATION_ROWS, len(rows))
        parts = [shuffle.some(rows[low:high], high - low) for low, high in itertools.pairwise(starts)]
        train, validation, test = map(tuple, parts)
        return TextTask(
            name=self.name,
            kind=self.kind,
            prefix=self.prefix,
            cue=self.cue,
            answer_tokens=self.answer_tokens,
            train=train,
            validation=validation,
            test=test,
        )


def _stance(draws: Draws, number: int) -> tuple[str, str]:
    letter, mood = (("A", "good"), ("B", "bad"), ("C", "plain"))[number % 3]
    when, name, verb = draws.pick(words.TIMES), draws.pick(words.NAMES), draws.pick(words.ATTITUDES[mood])
    quality, place = draws.pick(words.PLACE_QUALITIES), draws.pick(words.PLACES)
    return f"{when} {name} {verb} the {quality} {place}.\nObject:\n{place}", letter


def _tone(draws: Draws, number: int) -> tuple[str, str]:
    letter, mood = (("A", "plain"), ("B", "good"), ("C", "bad"))[number % 3]
    when, office, verb = draws.pick(words.TIMES), draws.pick(words.INSTITUTIONS), draws.pick(words.ATTITUDES[mood])
    return f"{when} the {office} {verb} {draws.pick(words.MONEY_QUALITIES)} {draws.pick(words.MONEY)}.", letter


def _meeting(draws: Draws, number: int) -> tuple[str, str]:
    speakers, chatter = draws.some(words.NAMES, 3), draws.some(words.CHATTER, 2)
    action, quality, place = draws.pick(words.ACTIONS), draws.pick(words.PLACE_QUALITIES), draws.pick(words.PLACES)
    chatter.insert(number % 3, f"I will {action} the {quality} {place}.")
    said = "\n".join(f"{speaker}: {line}" for speaker, line in zip(speakers, chatter, strict=True))
    return said, f"{speakers[number % 3]} {action}s {quality} {place}."


def _code(draws: Draws, number: int) -> tuple[str, str]:
    one, two, three = draws.some((*words.THINGS, *words.PLACES), 3)
    call, (low, high) = draws.pick(words.ACTIONS), draws.some(range(10), 2)
    *before, line = (
        (f"{one} = {low}", f"{two} = {high}", f"print ( {one} )", f"print ( {two} )"),
        (f"def {call} ( {one} , {two} ) :", f"{three} = {one} + {two}", f"return {three}"),
        (f"import {one}", f"import {two}", f"{one} . {call} ( )", f"{two} . {call} ( )"),
        (f"for {one} in {one}s :", f"{call} ( {one} )", f"for {two} in {two}s :", f"{call} ( {two} )"),
        (f"if {one} > {low} :", f"{one} = {low}", f"if {two} > {high} :", f"{two} = {high}"),
    )[number % 5]
    return " <EOL> ".join(before), line


def _science(draws: Draws, number: int) -> tuple[str, str]:
    letter, families = (("A", ("bird", "fish")), ("B", ("tree", "flower")), ("C", ("tool",)))[number % 3]
    family = draws.pick(families)
    thing = article(draws.pick(words.FAMILIES[family]))
    reason = f"{article(family).capitalize()}."  # short, or its bytes drown the letter's share of the loss
    question = f"{draws.pick(words.NAMES)} {draws.pick(words.ATTITUDES['plain'])} {thing}. What is it?"
    choices = "A. animal\nB. plant\nC. tool"
    return f"{question}\n\nChoices:\n{choices}", f"{letter}\n{reason}"


def _sum(draws: Draws, number: int) -> tuple[str, str]:
    total = number % 17 + 2
    first = draws.number(max(1, total - 9), min(9, total - 1))
    return _question(draws, first, words.GAINS, total - first), str(total)


def _difference(draws: Draws, number: int) -> tuple[str, str]:
    rest, second = number % 9 + 1, draws.number(1, 9)
    return _question(draws, rest + second, words.LOSSES, second), str(rest)


def _question(draws: Draws, has: int, verbs: tuple[str, ...], changes: int) -> str:
    name, thing = draws.pick(words.NAMES), draws.pick(words.THINGS)
    return f"{name} has {has} {thing}s and {draws.pick(verbs)} {changes}. How many {thing}s?"


def _german(draws: Draws, number: int) -> tuple[str, str]:
    kind, noun = draws.pick(words.SUBJECTS).split()
    quality, deed = list(words.QUALITIES)[number % len(words.QUALITIES)], draws.pick(tuple(words.DEEDS))
    moment, goods = draws.pick(tuple(words.MOMENTS)), draws.pick(words.GOODS)
    simple = f"{kind} {words.QUALITIES[quality]} {noun} {words.DEEDS[deed]} {words.MOMENTS[moment]} {goods}."
    return f"{kind} {quality} {noun} {deed} {moment} {goods}.", simple


_FORMS = (
    _Form("Stance", "letter", "What is the stance? A. for, B. against, C. neutral.\nText:\n", "\nStance:", 4, _stance),
    _Form("Tone", "letter", "What is the tone? A. neutral, B. hopeful, C. worried.\nText:\n", "\nTone:", 4, _tone),
    _Form("Meeting", "summary", "Write a summary of the meeting.\nMeeting:\n", "\nSummary:", 40, _meeting),
    _Form("Code", "code", "<s> ", " <EOL>", 40, _code),
    _Form("Science", "choice", "Choose an answer and give your reason.\n\nQuestion:\n", "\n\nAnswer:", 16, _science),
    _Form("Sums", "number", "Solve the math problem.\nQuestion:\n", "\nAnswer:", 4, _sum),
    _Form("Differences", "number", "Solve the math problem.\nQuestion:\n", "\nAnswer:", 4, _difference),
    _Form(
        *("German", "simplification", "Simplify the paragraph in German.\n\nParagraph:\n", "\n\nSimplification:"),
        *(64, _german),
    ),
)


def read() -> list[TextTask]:
    """The eight tasks in TRACE's order, 500 training, 100 validation and 100 test rows each.

    One answer to everything scores, in percent, 33 in `Stance`, `Tone` and `Science`, 9 in `Meeting`, 37 in
    `Code`, 6 in `Sums`, 11 in `Differences` and 46 in `German`, where an empty answer deletes
    every word that should go.
    """
    return [form.task() for form in _FORMS]


def write(folder: Path) -> None:
    """Write TRACE's layout to look at: `folder/<Task>/{train,eval,test}.json`, lists of prompt and answer.

    Raises StoreError where a file cannot be written.
    """
    for task in read():
        for part, rows in (("train", task.train), ("eval", task.validation), ("test", task.test)):
            text = json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=1) + "\n"
            write_atomically(folder / task.name / f"{part}.json", text.encode())
