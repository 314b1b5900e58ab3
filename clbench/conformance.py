"""Conformance: the laws that every method must obey, tried on the tiny suites in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from clbench import checkpoint, runner
from clbench.errors import ClbenchError, LeakError
from clbench.exam import Outcomes
from clbench.method import Method
from clbench.padding import is_text
from clbench.stream import Examples, ImageSet, Stream, TextSet
from clbench.text import Row
from clbench.trial import DEVICE, FIELDS, Broken, Declined, Taught, Trial, answers

_LUCK = 2.33
"""Standard deviations above chance that guessing exceeds once in a hundred times."""


@dataclass(frozen=True)
class Verdict:
    """What one law says of a method."""

    law: str
    line: str
    """The law in words."""
    passed: bool | None
    """None: the law does not apply, or cannot be tried."""
    reason: str
    """Why not; empty where it passed."""


@dataclass(frozen=True)
class Law:
    """`judge` returns where the law is obeyed, and otherwise raises Broken or Declined."""

    name: str
    line: str
    judge: Callable[[Trial], None]


def _defaults(trial: Trial) -> None:
    try:
        method = trial.method_type()
        restored = trial.method_type.model_validate_json(method.model_dump_json())
    except Exception as error:  # whatever a method's validators may raise
        raise Broken(f"the default parameters do not build: {_words(error)}") from error
    if restored != method:
        raise Broken("the parameters are others after a way through JSON")


def _runs(trial: Trial) -> None:
    error = trial.attempt.error
    if isinstance(error, LeakError):
        raise Declined("stopped for a leak")
    if error is not None:
        raise Broken(_words(error))


def _deterministic(trial: Trial) -> None:
    first = trial.whole.result
    if trial.whole.running.resumable:
        record, _ = trial.resumed
        if (record.scores, record.weights_sha256) == first:
            return  # a run in pieces is a second one
    if trial.again.error is not None:
        raise Broken(f"a second equal run fails: {_words(trial.again.error)}")
    second = trial.again.result
    if first[0] != second[0]:
        raise Broken("the scores of two equal runs differ")
    if first[1] != second[1]:
        raise Broken("what two equal runs learned differs")


def _learns(trial: Trial) -> None:
    run = trial.whole
    if trial.method_type.schedule == "none" and run.running.exam.plain.is_text:
        raise Declined("it trains nothing, and the tiny language model's random weights know nothing")
    row, seen = next(
        (row, [j for j, score in enumerate(row) if score is not None])
        for row in run.facts["scores"]
        if any(score is not None for score in row)
    )
    tasks = [run.running.stream.tasks[j] for j in seen]
    sizes = [len(task.test) for task in tasks]
    samples = sum(sizes)
    right = sum(row[j] * size for j, size in zip(seen, sizes, strict=True)) / samples
    floors = run.facts["floors"]
    if floors:
        chance, rival = (
            sum(floors[j] * size for j, size in zip(seen, sizes, strict=True)) / samples,
            "a constant answer",
        )
    else:
        chance, rival = 1 / sum(len(task.classes) for task in tasks), "guessing"
    needed = chance + _LUCK * math.sqrt(chance * (1 - chance) / samples)
    if right < needed:
        raise Broken(f"{right:.0%} are right after the first lesson; {rival} reaches {needed:.0%} once in 100 times")


def _frozen(trial: Trial) -> None:
    run = trial.whole
    still = {name: pair for name, pair in run.frozen.items() if not pair[0].requires_grad}
    if not still:
        raise Declined("it trains the whole backbone")
    changed = [name for name, (weight, before) in still.items() if not torch.equal(weight, before)]
    if changed:
        raise Broken(f"{changed[0]} has changed though it is frozen")


def _independent_of_length(trial: Trial) -> None:
    if trial.method_type.schedule == "joint":
        raise Declined("it learns all tasks at once")
    long, short = trial.whole, trial.taught(trial.field.stream(1))
    if short.error is not None:
        raise Broken(f"a stream of one task fails: {_words(short.error)}")
    if not _alike(long.outcomes, short.outcomes, [name for name in short.outcomes if name.endswith("_1")]):
        trial.differ(f"the answers after the first task differ between streams of 1 and {trial.field.tasks} tasks")


def _alike(first: Outcomes, second: Outcomes, names: Iterable[str]) -> bool:
    """Whether what is kept under `names` is the same for all the examples that `second` has."""
    pairs = [(first[name][: len(second[name])], second[name]) for name in names]
    return all(np.array_equal(one, other, equal_nan=one.dtype.kind == "f") for one, other in pairs)


def _saved(trial: Trial) -> None:
    run = trial.whole
    _needs_state(run)
    fresh = runner.Run(run.running.cell, trial.field.stream(), DEVICE, runner.Silent())
    try:
        fresh.unpack(run.running.pack())
    except Exception as error:  # whatever a method's load_state may raise
        raise Broken(f"its state cannot be taken back: {_words(error)}") from error
    before, after = answers(run.running), answers(fresh)
    if not (torch.equal(before.predictions, after.predictions) and torch.equal(before.margins, after.margins)):
        raise Broken("a model that was saved and loaded answers otherwise; state() or a buffer is missing something")


def _resumes(trial: Trial) -> None:
    run = trial.whole
    _needs_state(run)
    record, outcomes = trial.resumed
    if record.status != "done":
        raise Broken(f"the resumed run fails: {record.reason}")
    scores, weights = run.result
    if record.scores != scores:
        trial.differ("the scores of a resumed run differ; state() is missing something")
    if not _alike(outcomes, run.outcomes, run.outcomes):
        trial.differ("the answers of a resumed run differ; state() is missing something")
    if record.weights_sha256 != weights:
        trial.differ("what a resumed run has learned differs; state() is missing something")


def _needs_state(run: Taught) -> None:
    if not run.running.resumable:
        raise Declined("a plugin of Avalanche's own cannot tell its state; an interrupted cell begins anew")


def _batches(trial: Trial) -> None:
    audit = trial.whole.facts["audit"]
    if audit.batch_flips:
        raise Broken(f"{audit.batch_flips} of {audit.samples} answers change when a sample is scored alone")


def _labels(trial: Trial) -> None:
    if trial.method.resources().task_id_at_test:
        raise Declined("it declares that it is told the task")
    audit = trial.whole.facts["audit"]
    if audit.label_flips:
        raise Broken(f"{audit.label_flips} of {audit.samples} answers change when the task labels are shuffled")


def _within_resources(trial: Trial) -> None:
    run = trial.attempt
    if isinstance(run.error, LeakError) and run.kept_too_much:
        raise Broken(str(run.error))
    declared, found = trial.method.resources().buffer_samples, _inputs_held(trial.whole.running)
    if found > declared:
        raise Broken(f"{found} inputs lie among what it keeps, by their shape, and it declared {declared} samples")


def _inputs_held(running: runner.Run) -> int:
    """How many inputs the tensors could be that a run keeps, by their shape; what is folded otherwise is missed.

    An image has channels, height and width; a row of text is two lines of whole numbers, of any length.
    """
    image = running.stream.tasks[0].train.batch(torch.zeros(1, dtype=torch.int64), DEVICE)[0][0]
    found = 0
    for tensor in checkpoint.tensors_of(running.learned()).values():
        if is_text(image[None]):
            alike = tensor.ndim == 3 and tensor.shape[1] == 2 and tensor.dtype == image.dtype
        else:
            alike = tensor.shape[-image.ndim :] == image.shape
        if alike:
            found += math.prod(tensor.shape[: -image.ndim])
    return found


def _test_data_untouched(trial: Trial) -> None:
    run = trial.attempt
    if isinstance(run.error, LeakError) and not run.kept_too_much:
        raise Broken(str(run.error))
    honest, other = trial.whole, trial.taught(_with_other_tests(trial.field.stream()))
    if other.error is not None or other.result[1] != honest.result[1]:
        trial.differ("what it learns depends on the test examples")


def _with_other_tests(stream: Stream) -> Stream:
    return Stream(tuple(replace(task, test=_others(task.test)) for task in stream))


def _others(tests: Examples) -> Examples:
    """As many test examples that ask and answer otherwise."""
    if isinstance(tests, TextSet):
        return TextSet([Row(row.prompt.swapcase(), row.answer.lower()) for row in tests.rows], tests.task)
    assert isinstance(tests, ImageSet)
    return ImageSet(255 - tests.images, tests.targets.flip(0))


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else "no message"
    return line if isinstance(error, ClbenchError) else f"{type(error).__name__}: {line}"


DEFAULTS = Law("defaults", "default parameters build and survive JSON", _defaults)
"""Tried once; the others on each of the fields."""
LAWS: tuple[Law, ...] = (
    Law("runs", "runs to its end", _runs),
    Law("deterministic", "same seed, same scores and same weights", _deterministic),
    Law("learns", "learns the first task better than guessing", _learns),
    Law("frozen", "frozen weights stay the same to the bit", _frozen),
    Law("first task", "the first task's answers do not depend on how many tasks follow", _independent_of_length),
    Law("save and load", "a saved and loaded model gives the same answers", _saved),
    Law("resume", "a killed and resumed run ends with the same scores, answers and weights", _resumes),
    Law("batches", "answers do not depend on the batch", _batches),
    Law("task labels", "answers do not depend on task labels, unless declared", _labels),
    Law("resources", "keeps no more than it declares", _within_resources),
    Law("test data", "test examples are not touched while learning", _test_data_untouched),
)


def check(method_type: type[Method], fingerprint: str = "") -> Iterator[Verdict]:
    """Try every law on a method, one verdict at a time; the runs take a few seconds in all.

    The names of laws that are tried on text begin with `text: `. Where the method declines a suite, one verdict
    says so in the place of the laws.
    """
    trials = [Trial(method_type, fingerprint, field) for field in FIELDS]
    yield _verdict(DEFAULTS, trials[0])
    for trial in trials:
        try:
            trial.cell(trial.field.stream())
        except Declined as declined:
            yield Verdict(f"{trial.field.name}runs", f"runs on {trial.field.model}", None, str(declined))
            continue
        except Exception:  # whatever a method may raise: the first law will say it
            pass
        for law in LAWS:
            yield _verdict(law, trial)


def _verdict(law: Law, trial: Trial) -> Verdict:
    name = law.name if law is DEFAULTS else f"{trial.field.name}{law.name}"
    try:
        law.judge(trial)
    except Broken as broken:
        return Verdict(name, law.line, False, str(broken))
    except Declined as declined:
        return Verdict(name, law.line, None, str(declined))
    return Verdict(name, law.line, True, "")
