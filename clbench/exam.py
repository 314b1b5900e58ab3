"""Exam: what is asked after each lesson, and whether answers depend on what they must not depend on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clbench.answers import Answers
from clbench.marking import ClassMarker, Marker, TextMarker
from clbench.recall import Recall
from clbench.record import Audit
from clbench.seeding import generator
from clbench.strategy import Strategy
from clbench.stream import Examples, Stream, Task, Union, Vault

AUDIT_SAMPLES = 32
TIES = {"float32": 1e-4, "bfloat16": 0.5}
"""Two logits closer than this may swap by rounding; such a flip is no leak.

The numbers of bfloat16 lie 0.125 apart where the logits of language models are, from 16 to 32.
"""

Outcomes = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Round:
    """What one scoring pass over the tasks seen gave; examples in the tasks' order."""

    scores: dict[str, list[float]]
    """The suite's score, called `marking.SCORE`, and any others of the same answers: name -> one a task."""
    facts: dict[str, Tensor]
    """Facts of each example, `[examples]`: 'round', the class answered, or scores; 'inferred', the task.
    -1 or NaN where not asked. 'said': the answers' text as the bytes of a JSON list of those asked."""
    asked: int
    """How many examples were asked."""
    router_accuracy: float | None
    """The share of the examples asked whose task was inferred rightly; None where none was."""
    uncounted_seconds: float = 0.0
    """What the pass would have taken longer had it recalled nothing."""


class Exam:
    """The test examples of a stream, which only come out while an answer is asked for.

    `plain` is the stream as the suite made it, `stream` the same as the model reads it, behind `vault`.
    What `recall` knows of the examples is used to score them, never in an audit.
    """

    def __init__(
        self,
        plain: Stream,
        stream: Stream,
        vault: Vault,
        strategy: Strategy,
        score: str,
        recall: Recall | None = None,
    ) -> None:
        self.plain, self.stream, self.vault, self.strategy = plain, stream, vault, strategy
        self.recall = recall
        self.marker: Marker = TextMarker(plain, score) if plain.is_text else ClassMarker()

    def score(self, index: int, samples: int | None = None) -> Round:
        """One pass over the tasks up to `index`; with `samples` over so many examples of each, always the same.

        The examples come in an order that tells no batch the task, or, where answers are long, in one that
        wastes the least: what an answer depends on besides its question is audited at the end.
        """
        tasks = self.stream.tasks[: index + 1]
        recalling = contextlib.nullcontext() if self.recall is None else self.recall.answering()
        with self.vault.open(), recalling:
            union, task_of = Union([task.test for task in tasks]), _task_of(tasks)
            order = self._order(task_of, samples, index)
            answers = self._ask(_Picked(union, order, self.recall), task_of[order])
            marks = self.marker.mark(answers, order, union.targets[order])
        mine = [task_of[order] == j for j in range(len(tasks))]
        scores = {name: [float(values[m].mean()) for m in mine] for name, values in marks.scores.items()}
        facts = {name: _spread(values, order, len(union)) for name, values in marks.facts.items()}
        if answers.words is not None:
            facts["said"] = _text([answers.words[i] for i in order.argsort().tolist()])
        router = None
        if answers.tasks is not None:
            facts["inferred"] = _spread(answers.tasks.to(torch.int32), order, len(union))
            router = float((answers.tasks == task_of[order]).double().mean())
        return Round(scores, facts, len(order), router, 0.0 if self.recall is None else self.recall.settle())

    def _order(self, task_of: Tensor, samples: int | None, index: int) -> Tensor:
        """Places of the examples to ask, in the order of asking."""
        order = torch.randperm(len(task_of), generator=generator(0, "scoring", index))
        if samples is not None:
            order = torch.cat([self._sample(task_of, j, samples) for j in range(index + 1)])
        return self.marker.order(order)

    def _sample(self, task_of: Tensor, task: int, samples: int) -> Tensor:
        """The same examples of a task in every round."""
        places = (task_of == task).nonzero().flatten()
        return places[torch.randperm(len(places), generator=generator(0, "samples", task))[:samples]]

    def audit(self) -> Audit:
        """Ask some samples of all tasks again, alone and under shuffled task labels."""
        labels = _task_of(self.stream.tasks)
        picks = torch.randperm(len(labels), generator=generator(0, "audit"))[:AUDIT_SAMPLES]
        labels = labels[picks]
        shuffled = labels[torch.randperm(len(labels), generator=generator(0, "audit labels"))]
        with self.vault.open():
            sample = _Picked(Union([task.test for task in self.stream]), picks)
            together = self._ask(sample, labels)
            alone = self._ask(sample, labels, batch_size=1)
            mislabelled = self._ask(sample, shuffled)
        tie = TIES[self.strategy.recipe.precision]
        found = {"batch_flips": _flips(together, alone, tie), "label_flips": _flips(together, mislabelled, tie)}
        return Audit(samples=len(picks), **found)

    def _ask(self, examples: Examples, task_of: Tensor, batch_size: int | None = None) -> Answers:
        """The answers; afterwards no test example is left within a plugin's reach."""
        answers = self.strategy.answer(examples, task_of, batch_size)
        self.strategy.mbatch = []
        return answers

    def outcomes(self, rounds: Mapping[str, Tensor]) -> Outcomes:
        """Tasks, labels where there are classes, and what every round gave, one entry a test example.

        -1, or NaN for scores, where not asked. `rounds`: `Round.facts` of round i as `NAME_i`, of the tasks seen
        by then.
        """
        tasks = _task_of(self.stream.tasks)
        found: Outcomes = {"tasks": tasks.numpy().astype(np.int32)}
        if not self.plain.is_text:
            with self.vault.open():
                found["labels"] = torch.cat([task.test.targets for task in self.stream]).numpy().astype(np.int32)
        for name, values in rounds.items():
            whole = name.startswith("said_")
            found[name] = (values if whole else _spread(values, torch.arange(len(values)), len(tasks))).numpy()
        return found


def _flips(first: Answers, second: Answers, tie: float) -> int:
    """How many predictions differ though both were clearer than a `tie`."""
    clear = torch.minimum(first.margins, second.margins) > tie
    if first.words is not None and second.words is not None:
        differ = torch.tensor([a != b for a, b in zip(first.words, second.words, strict=True)])
    else:
        differ = first.predictions != second.predictions
    return int((differ & clear).sum())


def _text(words: Sequence[str]) -> Tensor:
    """Texts as the bytes of a JSON list, uint8."""
    return torch.frombuffer(bytearray(json.dumps(words, ensure_ascii=False).encode()), dtype=torch.uint8)


def _spread(values: Tensor, places: Tensor, count: int) -> Tensor:
    """`values` at their `places` among `count` examples; -1 or NaN elsewhere."""
    whole = torch.full((count,), float("nan") if values.is_floating_point() else -1, dtype=values.dtype)
    whole[places] = values
    return whole


def _task_of(tasks: Sequence[Task]) -> Tensor:
    """The index of each test example's task, `[examples]`."""
    return torch.cat([torch.full((len(task.test),), j) for j, task in enumerate(tasks)])


class _Picked(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The examples of a set at the given places, in that order; `recall` is told of each batch."""

    def __init__(self, examples: Examples, places: Tensor, recall: Recall | None = None) -> None:
        self._examples, self._places, self._recall = examples, places, recall

    @property
    def targets(self) -> Tensor:
        return self._examples.targets[self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._examples[int(self._places[index])]

    def batch(
        self, indices: Tensor, device: torch.device, draws: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs, targets = self._examples.batch(self._places[indices], device, draws)
        if self._recall is not None:
            self._recall.note(inputs, self._places[indices])
        return inputs, targets

    def sha256(self) -> str:
        return self._examples.sha256()
