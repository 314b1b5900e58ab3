"""Marking: what each answer to a test example is worth, and in which order the examples are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clbench.answers import Answers
from clbench.errors import UnknownName
from clbench.scoring.answers import KINDS, VARIANTS, Kind, Variant
from clbench.stream import Stream, TextSet

SCORE = "score"
"""What the suite's own score is called among the scores of a pass."""


@dataclass(frozen=True)
class Marks:
    """What a pass over some examples gave, in the order of asking."""

    scores: dict[str, Tensor]
    """Name -> float `[asked]` in [0, 1]; a task's score is the mean."""
    facts: dict[str, Tensor]
    """What outcomes keep of each example: name -> `[asked]`."""


class Marker(Protocol):
    """Judges the answers of a suite."""

    def order(self, places: Tensor) -> Tensor:
        """The `places` of examples among those of all tasks, in the order in which to ask them."""
        ...

    def mark(self, answers: Answers, places: Tensor, targets: Tensor) -> Marks:
        """`answers` to the examples at `places`; `targets` as the model reads them."""
        ...

    def floors(self) -> dict[str, tuple[float, ...]]:
        """Scores that need no model, by name as in `Marks.scores`: for each task the most frequent answer's."""
        ...


class ClassMarker:
    """Right or wrong."""

    def order(self, places: Tensor) -> Tensor:
        """As they come."""
        return places

    def mark(self, answers: Answers, places: Tensor, targets: Tensor) -> Marks:
        """Whether each class is the right one; the classes themselves are kept."""
        right = (answers.predictions == targets).double()
        return Marks({SCORE: right}, {"round": answers.predictions.to(torch.int32)})

    def floors(self) -> dict[str, tuple[float, ...]]:
        """Chance differs from round to round; none is given."""
        return {}


class TextMarker:
    """Every variant of the score of written answers; `primary` is the suite's own."""

    def __init__(self, stream: Stream, primary: str) -> None:
        if primary not in VARIANTS:
            raise UnknownName("score of text", primary, VARIANTS)
        self.variants = sorted(VARIANTS, key=lambda variant: variant != primary)
        self.sets = [_text(task.test) for task in stream]
        self.training = [_text(task.train) for task in stream]
        sizes = torch.tensor([len(part) for part in self.sets])
        self.starts = (torch.cumsum(sizes, 0) - sizes).tolist()
        self.task_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def order(self, places: Tensor) -> Tensor:
        """Longest together, so that little is padded, among answers of one greatest length."""

        def cost(place: int) -> tuple[int, int]:
            task, row = self._find(place)
            return self.sets[task].task.answer_tokens, len(self.sets[task].rows[row].prompt)

        return torch.tensor(sorted(places.tolist(), key=cost, reverse=True), dtype=torch.int64)

    def mark(self, answers: Answers, places: Tensor, targets: Tensor) -> Marks:
        """Score of every variant, and whether the answer has not the form of one."""
        assert answers.words is not None
        names = [SCORE, *self.variants[1:], "invalid"]
        found = {name: torch.zeros(len(places), dtype=torch.float64) for name in names}
        for task in self.task_of[places].unique().tolist():
            mine = (self.task_of[places] == task).nonzero().flatten()
            rows = [self.sets[task].rows[self._find(int(place))[1]] for place in places[mine]]
            said, golds = [answers.words[i] for i in mine.tolist()], [row.answer for row in rows]
            kind, prompts = self._kind(task), [row.prompt for row in rows]
            for name, variant in zip(names, self.variants, strict=False):
                found[name][mine] = torch.from_numpy(kind.score(variant, said, golds, prompts))
            options = sorted({row.answer for row in self.training[task].rows})
            found["invalid"][mine] = torch.from_numpy(kind.invalid(said, options)).double()
        return Marks(found, {name: values.float() for name, values in found.items()})

    def floors(self) -> dict[str, tuple[float, ...]]:
        """What always giving the most frequent training answer scores, in every variant."""
        tasks = range(len(self.sets))
        names = zip([SCORE, *self.variants[1:]], self.variants, strict=True)
        return {name: tuple(self._floor(task, variant) for task in tasks) for name, variant in names}

    def _floor(self, task: int, variant: Variant) -> float:
        rows, usual = self.sets[task].rows, [row.answer for row in self.training[task].rows]
        golds, prompts = [row.answer for row in rows], [row.prompt for row in rows]
        return self._kind(task).floor(usual, golds, prompts, variant)

    def _kind(self, task: int) -> Kind:
        return KINDS[self.sets[task].task.kind]

    def _find(self, place: int) -> tuple[int, int]:
        """The task of the example at `place`, and its row there."""
        task = int(self.task_of[place])
        return task, place - self.starts[task]


def _text(examples: object) -> TextSet:
    assert isinstance(examples, TextSet)
    return examples
