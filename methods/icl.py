"""In-context learning: six examples of the task in front of each question, and nothing trained."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field

from clbench.backbones.language import LanguageModel
from clbench.backbones.reading import Lessons, Tokens
from clbench.errors import BadValue
from clbench.method import Method, Resources, Workbench
from clbench.methods._task_router import TaskRouter
from clbench.methods._untouched import untouched
from clbench.padding import IGNORED, NOTHING, PROMPT, join
from clbench.seeding import derive
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream
from clbench.terms import Schedule
from clbench.text import Row, TextTask

INTRODUCTION = (
    "We will give you several examples and you should follow them to accomplish the task.\n Examples:\n"  # TRACE's
)
CLASSES = ("letter", "label")
"""Kinds of answers of which some rows must differ and some may not."""
LEAST_FITTING = 0.5
"""Of a task's rows; where fewer are short enough, those that are would not be like the others."""


def instruction(task: TextTask) -> str:
    """What stands before the examples; what begins a piece of code is part of the code."""
    return "" if task.kind == "code" else task.prefix


def mark(task: TextTask) -> str:
    """What stands before each example and the question: pieces of code do not say what they are."""
    return "Code:\n" if task.kind == "code" else ""


def example(task: TextTask, row: Row) -> str:
    """A row as it stands among the examples."""
    return f"{mark(task)}{row.prompt[len(instruction(task)) :]}{row.answer}\n\n"


def stop(task: TextTask) -> str:
    """Where an answer ends that goes on with a next example: TRACE's words for its tasks, by what they have in common.

    >>> stop(TextTask(name="", kind="choice", prefix="Choose.\\nQuestion:\\n", cue="", answer_tokens=1, train=(),
    ...               validation=(), test=()))
    'Question:'
    """
    if task.kind in ("number", "label"):
        return "\n"
    return "<EOL>" if task.kind == "code" else (task.prefix.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class Shown:
    """What a question of one task is given, and where its answer is cut."""

    rows: list[int]
    """The training rows that are its examples."""
    opening: Tokens
    """The instruction."""
    examples: Tokens
    """What comes behind it; nothing where there are no rows."""
    budget: int
    """How many tokens a question with its examples may have."""
    stop: str
    only_first: bool
    """Whether an answer's first token is all of it."""

    def before(self, question: Tokens) -> Tokens:
        """The question with the examples behind its instruction; above the budget its body loses from the front."""
        pairs = zip(question, self.opening, strict=False)
        kept = next((place for place, (own, other) in enumerate(pairs) if own != other), len(self.opening))
        head = question[:kept] + self.examples
        return head + question[kept:][len(head) - self.budget :]


class _Demonstrations(Plugin):
    def __init__(self, method: ICL, bench: Workbench) -> None:
        super().__init__()
        assert isinstance(bench.model, LanguageModel)
        self.method, self.bench, self.tokenizer = method, bench, bench.model.tokenizer
        config = bench.model.body.config.get_text_config()
        self.context = getattr(config, "max_position_embeddings", method.budget_tokens)
        self.router = TaskRouter(bench.model.width, bench.device)
        self.shown: list[Shown] = []

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Draw the task's examples, and note where its questions lie."""
        lessons, number = strategy.examples, strategy.task_index
        assert isinstance(lessons, Lessons)
        draws = self.bench.generator("examples", number)
        order = torch.randperm(len(lessons), generator=draws)
        self.shown.append(self._drawn(lessons, order.tolist()))
        strategy.model.eval()
        looked_at = order[: self.method.router_samples].split(strategy.recipe.eval_batch_size)
        batches = (lessons.batch(indices, strategy.device)[0] for indices in looked_at)
        features = torch.cat([untouched(strategy, inputs) for inputs in batches])
        self.router.add(features, derive(self.bench.seed, "router", number))

    def _drawn(self, lessons: Lessons, order: list[int]) -> Shown:
        """The first rows in this order that may stand together."""
        task, rows, shots = lessons.source.task, lessons.source.rows, self.method.shots
        prefix, budget = instruction(task), min(self.method.budget_tokens, self.context - task.answer_tokens)
        opening = self._split(rows[0].prompt, len(prefix))[0]
        if len(opening) >= budget:
            raise BadValue(
                f"the instruction of task '{task.name}' has {len(opening)} tokens and a question with its examples may "
                f"have {budget}; raise {self.method.name}.budget_tokens, or take a model of longer context."
            )
        room = (budget - len(opening) - len(self._split(INTRODUCTION, 0)[1])) / (2 * max(1, shots))
        short = [len(prompt) - len(opening) + len(answer) <= room for prompt, answer in lessons.pairs]
        chosen: list[int] = []
        if sum(short) >= LEAST_FITTING * len(short):
            chosen = self._chosen(task, rows, [place for place in order if short[place]], room)
        text = "".join([prefix, INTRODUCTION, *(example(task, rows[place]) for place in chosen), mark(task)])
        examples = self._split(text, len(prefix))[1] if chosen else []
        return Shown(chosen, opening, examples, budget, stop(task), task.kind == "letter")

    def _chosen(self, task: TextTask, rows: Sequence[Row], places: list[int], room: float) -> list[int]:
        most = self.method.most_per_label if task.kind in CLASSES else 1
        chosen: list[int] = []
        answers: Counter[str] = Counter()
        for place in places:
            row, taken = rows[place], {rows[other].prompt for other in chosen}
            if len(chosen) == self.method.shots:
                break
            if answers[row.answer] == most or row.prompt in taken:
                continue
            if len(self._split(example(task, row), 0)[1]) <= room:
                chosen.append(place)
                answers[row.answer] += 1
        return chosen

    def _split(self, text: str, end: int) -> tuple[Tokens, Tokens]:
        """The tokens of `text` that lie before character `end`, any opening ones too, and the others."""
        ((tokens, ends),) = self.tokenizer.encode([text])
        count = sum(place <= end for place in ends)
        return tokens[:count], tokens[count:]

    @torch.no_grad()
    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Infer the task of each question and put that task's examples into it."""
        inputs = strategy.mb_x
        strategy.inferred = self.router.tasks(untouched(strategy, inputs))
        self.asked = [self.shown[task] for task in strategy.inferred.tolist()]
        widened = []
        for (tokens, roles), shown in zip(inputs.cpu(), self.asked, strict=True):
            question = shown.before(tokens[roles != NOTHING].tolist())
            widened.append(torch.tensor([[question, [PROMPT] * len(question)]]))
        strategy.mbatch = [join(widened).to(strategy.device), *strategy.mbatch[1:]]

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Cut the answers where the next example would begin."""
        if not self.method.cut_answers:
            return
        said, margins = strategy.mb_output
        ends = [self._end(row, shown) for row, shown in zip(said.tolist(), self.asked, strict=True)]
        behind = torch.arange(said.shape[1]) >= torch.tensor(ends)[:, None]
        reply: Any = said.masked_fill(behind.to(said.device), IGNORED), margins
        strategy.mb_output = reply

    def _end(self, row: Tokens, shown: Shown) -> int:
        """How many tokens of an answer stay."""
        if shown.only_first:
            return 1
        tokens = [token for token in row if token != IGNORED]
        found = self.tokenizer.decode(tokens).find(shown.stop) if shown.stop else -1
        if found < 0:
            return len(tokens)
        lengths = range(len(tokens) + 1)
        return bisect.bisect_right(lengths, found, key=lambda count: len(self.tokenizer.decode(tokens[:count]))) - 1

    def kept_samples(self) -> int:
        """The examples."""
        return sum(len(shown.rows) for shown in self.shown)

    def state(self) -> dict[str, Any]:
        """The examples and the router."""
        return {"shown": [asdict(shown) for shown in self.shown], "router": self.router.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.shown = [Shown(**fields) for fields in state["shown"]]
        self.router.load_state(state["router"])

    def notes(self) -> dict[str, Any]:
        """Which training rows each task's questions are given."""
        return {"examples": [shown.rows for shown in self.shown]}

    def marks(self) -> list[str]:
        """That answers are cut."""
        return ["answers are cut where a next example would begin"] if self.method.cut_answers else []


class ICL(Method):
    """Brown et al., NeurIPS 2020, as Wang et al. 2023 (TRACE) and Qian et al. 2025 (there "FIX") compare with it.

    A question is asked behind `shots` training rows of its task, drawn once, with `bench.seed`, and the same for
    all its questions: instruction, "We will give you several examples …", the rows' bodies with their answers,
    and the question's body. Pieces of code have "Code:" before each and no instruction. An example may have
    (budget - instruction) / (2 `shots`) tokens, the budget being `budget_tokens` or what the model's context
    leaves beside the answer; where most rows of a task are longer (MeetingBank), there
    is none. Of classes at most `most_per_label` examples each, otherwise all answers differ.

    Departures: TRACE draws from the test rows, so that an example can be the question; here from the training
    rows. It knows the task of each question; here it is inferred from the frozen model's features, by the
    Gaussian router of hidelora, and the record has the router's accuracy. A row comes only once. Answers are cut
    as TRACE cuts them, by kind: letters after the first token, numbers and labels after the first line, code at
    <EOL>, the others where the last line of the instruction comes again; a token across the cut is dropped.
    TreeLoRA's FIX does not cut (`cut_answers=False`).
    """

    name = "icl"
    paper = "Brown et al. 2020"
    schedule: ClassVar[Schedule] = "none"

    shots: int = Field(default=6, ge=0, description="examples before a question")
    most_per_label: int = Field(default=2, ge=1, description="examples with the same answer, of letters and labels")
    budget_tokens: int = Field(default=3584, ge=16, description="longest question with its examples")
    cut_answers: bool = Field(default=True, description="cut answers where a next example would begin")
    router_samples: int = Field(default=500, ge=1, description="training questions a task that the router looks at")
    buffer_samples: int = Field(default=96, ge=0, description="most examples kept, of all tasks together")

    def resources(self) -> Resources:
        """The examples are training samples that are kept; where a task's questions lie is kept as well."""
        return Resources(buffer_samples=self.buffer_samples, class_statistics=True, stored_mib_per_task=8.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Images."""
        return None if stream.is_text else "its examples stand in the question, and images have no text to stand in"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """Nothing is attached."""
        return [_Demonstrations(self, bench)]
