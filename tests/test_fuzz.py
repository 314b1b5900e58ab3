"""Words and files of every kind, drawn with a seed: each ends in success or in a sentence, never in a traceback.

`CLBENCH_FUZZ=10000 python -m pytest tests/test_fuzz.py` tries so many inputs; the number of one that failed stands in
the message, and `CLBENCH_FUZZ_ONLY=words:17` with `-k words` tries it alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from clbench import backbones, catalog
from clbench.cli import app
from clbench.errors import ClbenchError
from clbench.imports.records import imported
from clbench.recipe import Recipe
from clbench.record import Record
from clbench.report.grid import clean
from clbench.suite import Files

INPUTS = int(os.environ.get("CLBENCH_FUZZ", "300"))
ONLY = os.environ.get("CLBENCH_FUZZ_ONLY", "")
SHARES = {"words": 0.25, "folders": 0.6, "results": 0.15}
MANY = 2000
"""So many beyond the usual ones are tried by the slow test."""


def numbers(kind: str, first: int, inputs: int) -> Iterator[tuple[str, random.Random]]:
    """The inputs of a kind from number `first` on: how each is called, and what it is drawn with."""
    for number in range(first, first + round(SHARES[kind] * inputs)) if not ONLY else [int(ONLY.partition(":")[2])]:
        yield f"{kind}:{number}", random.Random(f"clbench fuzz {kind} {number}")


def a_sentence(text: str) -> bool:
    """One line that a person can read and that ends."""
    line = text.removesuffix("\n")
    return line.isprintable() and line.endswith((".", "?")) and "Traceback" not in line


# words on the command line

JUNK = (
    *("", " ", ".", "..", "/", "=", "==", ",", ":", "@", "-", "--", "~", "*", "%s", "{}", "{0.__class__}", "\\", "'"),
    *("\x1b[31m", "\x07", "\x9b", "[bold]", "[/]", "\u202e", "\u2028", "é", "e\u0301", "𝔸", "\ufeff", "\n", "\r", "\t"),
    *("nan", "inf", "-inf", "1e999", "-1", "0", "9" * 400, "1_0", "0x10", "٣", "1e-400", "none", "null", "true", "[]"),
    *("a" * 300, "b/" * 200, "x" * 5000, "../../etc/passwd", "con", "__class__", "model_fields", ".py", ".py:", "py:X"),
)
SUITES = (
    "tiny",
    "tiny",
    "tiny",
    "tiny",
    "tiny-text",
    "trace",
    "trace-tiny",
    "olora",
    "imagenet-r",
    "cifar100",
    "tinny",
)
CHOICES = ["order", "sizes", "transform", "normalisation"]
BACKBONES = ("tiny-vit", "nano-lm", "glyph-vit", "cifar-vit@x", "hf:a/b", "hf:@", "timm:vit", "ibot:a", "hf:x@y", "@")


def mutated(draws: random.Random, word: str) -> str:
    """The word with a few changes, or another."""
    if draws.random() < 0.7:
        return word
    for _ in range(draws.randint(1, 3)):
        place, end = sorted((draws.randint(0, len(word)), draws.randint(0, len(word))))
        junk = draws.choice(JUNK) if draws.random() < 0.6 else chr(draws.randint(1, 0xD7FF))
        changed = (word[:place] + junk + word[place:], word[:place] + word[end:], word[:place] + junk + word[end:])
        word = draws.choice([*changed, word[::-1], word.upper(), word + word, junk])
    return word.replace("\0", "")


def asked(draws: random.Random) -> list[str]:
    """The words of a `clbench run` that starts nothing, or of a `clbench show`."""
    methods = list(catalog.methods())

    def some(word: str) -> str:
        return mutated(draws, word)

    def setting() -> str:
        owner = draws.choice([draws.choice(methods), "recipe", "recipe", "suite", ""])
        known = ["epochs", "learning_rate", "head_masking"]
        known = {"recipe": list(Recipe.model_fields), "suite": CHOICES}.get(owner, known)
        value = draws.choice(["1", "0.5", "seen", "sgd", "1,2", "true", "none", "coda", "pilot@9", draws.choice(JUNK)])
        return some(f"{owner}.{draws.choice(known)}={value}".removeprefix("."))

    if draws.random() < 0.1:
        return ["show", some(draws.choice([*methods, *catalog.suites(), *BACKBONES]))]
    words = ["run", "--dry-run", "--device", "cpu", "--store", "absent", some(draws.choice(SUITES))]
    options: dict[str, Callable[[], str]] = {
        "--method": lambda: some(draws.choice([*methods, "mine.py:Mine", "mine.py"])),
        "--set": setting,
        "--seed": lambda: some(str(draws.randint(0, 9))),
        "--order-seed": lambda: some("1"),
        "--backbone": lambda: some(draws.choice(BACKBONES)),
        "--weights": lambda: some("random"),
        "--from": lambda: some("folder"),
        "--task": lambda: some("FOMC"),
        "--eval-samples": lambda: some("5"),
    }
    for option in draws.choices(list(options), weights=(6, 8, 1, 1, 1, 1, 1, 1, 1), k=draws.randint(1, 4)):
        words += [option, options[option]()]
    return words


Tried = tuple[dict[str, int], list[str]]
"""What became of the inputs -> how often; what is wrong."""


def count(ends: dict[str, int], end: str) -> None:
    ends[end] = ends.get(end, 0) + 1


COMMAND = get_command(app)


def ask(words: list[str]) -> tuple[object, str]:
    """The exit code, or what was raised in its place, and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(printed):
        try:
            COMMAND(words, prog_name="clbench")
        except SystemExit as end:
            return end.code, printed.getvalue()
        except BaseException as error:
            return error, printed.getvalue()
    raise AssertionError("a command ends with SystemExit")


def fine(code: object, said: str) -> bool:
    """Whether a command ended well, or badly with a sentence of ours or of typer's."""
    refused = said.startswith("clbench: ") and a_sentence(said)
    used = said.startswith("Usage: clbench ") and "Error: " in said and "Traceback" not in said
    return code == 0 or (code == 2 and (refused or used))


def try_words(place: Path, first: int, inputs: int) -> Tried:
    """Ends are exit codes."""
    ends: dict[str, int] = {}
    faults: list[str] = []
    for name, draws in numbers("words", first, inputs):
        words = asked(draws)
        code, said = ask(words)
        if not fine(code, said):
            faults.append(f"{name}: {[word[:60] for word in words]}: {code!r} {said[-300:]!r}")
        count(ends, str(code))
    return ends, faults


def end_of(name: str, act: Callable[[], object], faults: list[str]) -> str:
    """`read`, or the name of what was raised; a fault where that is no sentence."""
    try:
        act()
    except ClbenchError as error:
        if not a_sentence(clean(str(error))):
            faults.append(f"{name}: {error}")
        return type(error).__name__
    except Exception as error:
        faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        return "fault"
    return "read"


# folders in TRACE's layout

VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 10**400, float("nan"), float("inf"), "", " ", "\ud800", "a\ud83d", "\0", "\u2028"),
    *([], {}, [[]], [{}], [None], {"prompt": "a"}, {"prompt": {}, "answer": []}, "x" * 20_000, "\x1b[31m", "𝔸" * 50),
)
CARD_WORDS = ("kind", "prefix", "cue", "answer_tokens", "other")
KINDS = ("letter", "number", "label", "choice", "summary", "code", "simplification", "lettre", "")


def rows(part: str, count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Do it.\nText:\n{part} {i}\nAnswer:", "answer": "AB"[i % 2]} for i in range(count)]


PARTS = {part: rows(part, count) for part, count in (("train", 12), ("eval", 3), ("test", 5))}
CONTENT = {part: json.dumps(content).encode() for part, content in PARTS.items()}


def twisted(draws: random.Random, value: Any) -> Any:
    """The value with one place in it replaced, removed, doubled or renamed."""
    if isinstance(value, list) and value and draws.random() < 0.8:
        place = draws.randrange(len(value))
        other = twisted(draws, value[place])
        return draws.choice([[*value[:place], other, *value[place + 1 :]], value[place:], value * 2, [value], [other]])
    if isinstance(value, dict) and value and draws.random() < 0.8:
        key = draws.choice(list(value))
        rest = {name: own for name, own in value.items() if name != key}
        other = twisted(draws, value[key])
        return draws.choice([{**value, key: other}, rest, {**rest, key.upper(): other}, {**value, "": other}])
    if isinstance(value, str) and draws.random() < 0.3:
        return mutated(draws, value)
    return draws.choice(VALUES)


def spoiled(draws: random.Random, content: bytes) -> bytes:
    """Bytes that are no longer what was written."""
    place = draws.randint(0, len(content))
    noise = bytes(draws.randrange(256) for _ in range(draws.randint(1, 6)))
    deep = draws.choice([50, 900, 5_000])
    doubled = content.replace(b'"answer": "A"', b'"answer": "A", "answer": 1')
    return draws.choice(
        [
            *(content[:place], content[:place] + noise + content[place:], noise, b"", b" ", b"null", b"[]"),
            *(content[:place] + noise + content[place + len(noise) :], content.decode("latin1").encode("utf-16")),
            *(b"\xef\xbb\xbf" + content, b"\xff\xfe" + content, doubled, content + content, b"\0" * 50, b"[1e999]"),
            *(b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"9" * 6000),
            *(content.replace(b'"A"', b"1" + b"0" * 400), content.replace(b'"A"', b"NaN")),
            *(content.replace(b'"A"', b'"\\ud800"'), content.replace(b'"B"', b'"\\u0000"')),
        ]
    )


def lay(draws: random.Random, folder: Path) -> None:
    """One task whose files are whole, with one to three of them spoiled in one way or another."""
    files = dict(CONTENT)
    if draws.random() < 0.4:
        card = {draws.choice(CARD_WORDS): draws.choice([*KINDS, *VALUES[:14], 5]) for _ in range(draws.randint(1, 3))}
        files["task"] = json.dumps(card).encode()
    for part in draws.choices(list(files), k=draws.randint(1, 3)):
        if draws.random() < 0.6 and part in PARTS:
            files[part] = json.dumps(twisted(draws, PARTS[part]), ensure_ascii=draws.random() < 0.8).encode(
                "utf-8", "surrogatepass"
            )
        elif draws.random() < 0.9:
            files[part] = spoiled(draws, files[part])
        else:
            del files[part]
            break
    folder.mkdir(parents=True)
    for part, content in files.items():
        (folder / f"{part}.json").write_bytes(content)
    if draws.random() < 0.03:
        strange = folder / f"{draws.choice(list(CONTENT))}.json"
        strange.unlink(missing_ok=True)
        target = draws.choice([None, strange, "/dev/zero"])
        strange.mkdir() if target is None else strange.symlink_to(target)


NAMES = ("one", "one", "FOMC", "ScienceQA", "C-STANCE", "Lima", "_a", "é", "a b", "[red]", "line\nfeed", "\udcff")


def read_folder(folder: Path, model: Any) -> None:
    """Everything that is done with a folder before a model learns from it."""
    suite = catalog.suite("trace", files=Files(folder=folder), backbone="nano-lm")
    stream = suite.stream()
    card = suite.protocol(stream, 0)
    assert type(card).model_validate_json(card.model_dump_json()) == card
    assert len(model.read(stream, suite.recipe)) == len(stream)


def try_folders(place: Path, first: int, inputs: int) -> Tried:
    """Every twenty-fifth is asked for on the command line, too."""
    ends: dict[str, int] = {}
    faults: list[str] = []
    model = backbones.build("nano-lm", 0, 0)
    for number, (name, draws) in enumerate(numbers("folders", first, inputs)):
        folder = place / f"folders-{first}-{number}"
        lay(draws, folder / draws.choice(NAMES))
        end = end_of(name, lambda folder=folder: read_folder(folder, model), faults)
        count(ends, end)
        if number % 25 == 0:
            words = ["run", "--dry-run", "trace", "--from", str(folder), "--backbone", "nano-lm", "--method", "icl"]
            code, said = ask([*words, "--device", "cpu", "--store", str(place / "absent")])
            if not fine(code, said) or (end == "read" and code != 0):  # a plan reads no tokens
                faults.append(f"{name}: {end}: {code!r} {said[-300:]!r}")
    return ends, faults


# TRACE's results

RESULT = {"eval": {"accuracy": 0.5}, "prompts": ["a", "b"], "results": ["A", "B"], "labels": ["A", "A"]}


def lay_results(draws: random.Random, folder: Path) -> None:
    """Three files of predictions, some of them twisted, spoiled or called otherwise."""
    folder.mkdir(parents=True)
    for after, task in ((0, 0), (1, 0), (1, 1)):
        content = json.dumps(RESULT).encode()
        if draws.random() < 0.4:
            text = json.dumps(twisted(draws, RESULT), ensure_ascii=draws.random() < 0.8)
            content = text.encode("utf-8", "surrogatepass")
        elif draws.random() < 0.3:
            content = spoiled(draws, content)
        called = f"results-{after}-{task}-{'AB'[task]}.json"
        called = mutated(draws, called).replace("/", "")[:80] if draws.random() < 0.2 else called
        (folder / (called if called not in ("", ".", "..") else "x")).write_bytes(content)


def import_results(folder: Path, words: dict[str, str]) -> None:
    for record in imported("trace", folder, seed=0, **words):  # type: ignore[arg-type]
        assert Record.model_validate_json(record.model_dump_json()) == record


def try_results(place: Path, first: int, inputs: int) -> Tried:
    """Folders of TRACE's predictions, imported."""
    ends: dict[str, int] = {}
    faults: list[str] = []
    for number, (name, draws) in enumerate(numbers("results", first, inputs)):
        folder = place / f"results-{first}-{number}"
        lay_results(draws, folder)
        renamed = draws.random() < 0.3
        words = {"suite": mutated(draws, "s"), "method": mutated(draws, "m")} if renamed else {"method": "m"}
        count(ends, end_of(name, lambda folder=folder, words=words: import_results(folder, words), faults))
    return ends, faults


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file that a mutated word could mean, and no data set."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path / "data"))


KINDS_OF_INPUT: dict[str, tuple[Callable[[Path, int, int], Tried], set[str]]] = {
    "words": (try_words, {"0", "2"}),
    "folders": (try_folders, {"read", "BadValue", "NotAvailable"}),
    "results": (try_results, {"read", "ClbenchError"}),
}


@pytest.mark.parametrize("kind", KINDS_OF_INPUT)
def test_every_input_ends_in_success_or_a_sentence(kind: str, tmp_path: Path) -> None:
    try_, expected = KINDS_OF_INPUT[kind]
    ends, faults = try_(tmp_path, 0, INPUTS)
    print(f"{sum(ends.values())} {kind}: {ends}")  # seen with -s
    assert faults == []
    assert ONLY or expected <= set(ends)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_INPUT)
def test_so_do_many_more(kind: str, tmp_path: Path) -> None:
    ends, faults = KINDS_OF_INPUT[kind][0](tmp_path, INPUTS, MANY)
    assert faults == []
    assert ends
