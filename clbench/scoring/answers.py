"""How the answers to each kind of text task are judged.

Every answer is marked in three variants, all recorded; `PRIMARY` is the one that tables show first.

`trace`    as TRACE's published code marks it (and O-LoRA's, for the tasks of kind `label`).
`lenient`  as TreeLoRA's published code marks it: a short answer need only begin with the gold text, so that "18"
           passes for "1". Figures of that paper compare with this variant alone.
`strict`   the answer is read before it is compared, so that neither a trailing line nor a lucky prefix counts:
           `letter`, `choice`  a capital letter that opens the answer and that no Latin letter follows. "B. Hawkish" is
                               B; "Answer: B", "b" and "Because" are no letter. Full-width letters are plain ones.
           `number`            the first number of the answer, by value: "18 apples" and "18.0" are 18, "1,234" is
                               1234, "-3" is -3; of "3 or 4" it is 3. A digit inside a word ("x1") is no number. Some
                               of NumGLUE's answers are words ("Friday"); those are read like labels.
           `label`             the first line, without case and punctuation.
           the long texts      as `trace`, with the white space around both texts cut off.

A task's score is the mean over its examples; this holds for TRACE's own code in every kind, SARI included.

Beyond its eight tasks, TRACE reports differences in general ability, instruction following and safety. clbench
declines them: they need half a dozen further data sets and a judge model behind a paid interface, whose verdicts change
with its versions. And they say how far a model drifted from its chat tuning, not what it remembers of the stream.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clbench.scoring.text import edit_similarity, exact_match, normalise, rouge_l, sari

Variant = Literal["trace", "lenient", "strict"]
VARIANTS: tuple[Variant, ...] = ("trace", "lenient", "strict")
PRIMARY: Variant = "strict"

Scorer = Callable[[str, str, str], float]
"""Prediction, gold text and prompt to a score in [0, 1]."""

LATIN = "A-Za-zÀ-ɏḀ-ỿ"  # Chinese has no spaces between words: "A支持" and "答案18" hold a bare letter, a bare number
LETTER = re.compile(rf"[A-Z](?![{LATIN}])")
NUMBER = re.compile(
    rf"(?<![{LATIN}\d_])(?<!\d\.)"  # not inside a word or a version number
    r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of text task."""

    trace: Scorer
    lenient: Scorer
    read: Callable[[str], str | Decimal | None]
    """What an answer says; None where it has not the form of one."""
    long: bool = False
    """Whether any text is an answer, better or worse, rather than right or wrong."""

    def strict(self, prediction: str, gold: str, prompt: str) -> float:
        """The mark of one answer in the variant `strict`."""
        if self.long:
            return self.trace(prediction.strip(), gold.strip(), prompt)
        answer = self.read(prediction)
        return float(answer is not None and answer == self.read(gold))

    def score(
        self, variant: Variant, predictions: Sequence[str], golds: Sequence[str], prompts: Sequence[str]
    ) -> NDArray[np.float64]:
        """The marks of a task's answers, [n], in [0, 1]; the task's score is their mean.

        Args:
            variant: One of `VARIANTS`.
            predictions: What the model wrote, without the prompt and uncut, [n].
            golds: The right answers, [n].
            prompts: The whole prompts, [n]; SARI compares with them.

        Raises:
            ValueError: The three are not of one length.
        """
        scorer = {"trace": self.trace, "lenient": self.lenient, "strict": self.strict}[variant]
        marks = [scorer(*example) for example in zip(predictions, golds, prompts, strict=True)]
        return np.array(marks, dtype=np.float64)

    def invalid(self, predictions: Sequence[str], options: Iterable[str]) -> NDArray[np.bool_]:
        """Which answers have not the task's form, [n].

        No letter or label among the options; no number nor a word among the options; for long texts, nothing at all.

        Args:
            predictions: What the model wrote, [n].
            options: The task's training answers, or the distinct ones. A gold answer can be invalid if training never
                showed its like, as one of NumGLUE-cm's 81 ("October") in the form of 500 training rows.
        """
        known = {self.read(option) for option in options}

        def valid(answer: str | Decimal | None) -> bool:
            return answer is not None and (self.long or isinstance(answer, Decimal) or answer in known)

        return np.array([not valid(self.read(prediction)) for prediction in predictions], dtype=np.bool_)

    def floor(
        self, train_answers: Sequence[str], golds: Sequence[str], prompts: Sequence[str], variant: Variant
    ) -> float:
        """The score of a model that never looks at the question, in [0, 1].

        It always gives the most frequent training answer: the majority class, where answers are classes. For long
        texts, the better of that and of the empty answer, which scores where words are to be deleted. Equally frequent
        answers are told apart by their text; without training answers, it is the empty answer.

        Raises:
            ValueError: There are no gold answers.
        """
        if not golds:
            raise ValueError("the floor of no examples is undefined")
        constants = {self._most_frequent(train_answers), ""} if self.long else {self._most_frequent(train_answers)}
        return max(float(self.score(variant, [text] * len(golds), golds, prompts).mean()) for text in constants)

    def _most_frequent(self, answers: Sequence[str]) -> str:
        """An answer that says what most say: "B\\nIt rains." where most choose B for one reason or another."""
        texts = Counter(answers)
        said = Counter(map(self.read, answers))
        return max(texts, key=lambda text: (said[self.read(text)], texts[text], text), default="")


def read_letter(answer: str) -> str | None:
    """The capital letter that opens an answer and stands alone.

    >>> read_letter(" B. Hawkish"), read_letter("Ａ：支持"), read_letter("Because")
    ('B', 'A', None)
    """
    # An accent belongs to its letter, and a full-width letter is a letter; a few characters decide.
    found = LETTER.match(unicodedata.normalize("NFKC", answer.strip()[:8]))
    return found.group() if found else None


def read_label(answer: str) -> str | None:
    """The first line of an answer, normalised.

    >>> read_label("Very negative.\\nText: ..."), read_label(" ?! ")
    ('very negative', None)
    """
    lines = answer.strip().splitlines()
    return normalise(lines[0]) or None if lines else None


def read_number(answer: str) -> Decimal | str | None:
    """The first number of an answer, by value; without one, its label.

    >>> read_number("$1,234.50, or less"), read_number("18 apples") == read_number("18.0"), read_number("Friday.")
    (Decimal('1234.50'), True, 'friday')
    """
    found = NUMBER.search(answer)
    return Decimal(found.group().replace(",", "").replace("−", "-")) if found else read_label(answer)


def read_text(answer: str) -> str | None:
    """A text without the white space around it; None where nothing is left."""
    return answer.strip() or None


def _equal(prediction: str, gold: str, _prompt: str) -> float:
    return float(prediction == gold != "")


def _first_character(prediction: str, gold: str, _prompt: str) -> float:
    return float(prediction[:1] == gold[:1] != "")  # of an empty prediction TRACE's code has no first character


def _first_character_stripped(prediction: str, gold: str, prompt: str) -> float:
    return _first_character(prediction.strip(), gold.strip(), prompt)


def _begins_with(prediction: str, gold: str, _prompt: str) -> float:
    return float(gold != "" and prediction.strip().startswith(gold))


def _exact_match(prediction: str, gold: str, _prompt: str) -> float:
    return exact_match(prediction, gold)


def _rouge_l(prediction: str, gold: str, _prompt: str) -> float:
    return rouge_l(prediction, gold)


def _rouge_l_newline(prediction: str, gold: str, _prompt: str) -> float:
    """After a full stop, the line break that is added makes one more word, which is empty."""
    return rouge_l(prediction if "\n" in prediction or not prediction else f"{prediction}\n", gold)


def _edit_similarity(prediction: str, gold: str, _prompt: str) -> float:
    return edit_similarity(prediction, gold)


KINDS: Mapping[str, Kind] = {
    "letter": Kind(trace=_equal, lenient=_begins_with, read=read_letter),
    "choice": Kind(trace=_first_character, lenient=_first_character_stripped, read=read_letter),
    "number": Kind(trace=_equal, lenient=_begins_with, read=read_number),
    "label": Kind(trace=_exact_match, lenient=_begins_with, read=read_label),
    "summary": Kind(trace=_rouge_l, lenient=_rouge_l_newline, read=read_text, long=True),
    "code": Kind(trace=_edit_similarity, lenient=_edit_similarity, read=read_text, long=True),
    "simplification": Kind(trace=sari, lenient=sari, read=read_text, long=True),
}
"""The kinds that a `TextTask` can have.

C-STANCE and FOMC are `letter`, ScienceQA is `choice` (a letter, a line break, a reason), NumGLUE is `number`, O-LoRA's
tasks are `label`, MeetingBank is `summary`, Py150 `code`, 20Minuten `simplification`.
"""
