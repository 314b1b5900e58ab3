"""Marks of one text answer against one gold text: pure functions, each in [0, 1].

None of them cuts a long answer: 20,000 characters take a fraction of a second.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

PUNCTUATION = str.maketrans("", "", string.punctuation)
LITERAL = re.compile(r"<(STR|NUM|CHAR)_LIT:([^>]*+)>")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, white space collapsed: how O-LoRA compares answers.

    >>> normalise(" Science or\\tTechnology. ")
    'science or technology'
    """
    return " ".join(text.lower().translate(PUNCTUATION).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 where both texts are equal once normalised.

    Source: Wang et al., O-LoRA, EMNLP Findings 2023, its published code. Two texts of punctuation alone are equal
    there, and so they are here.

    >>> exact_match("good!", "Good")
    1.0
    """
    return float(normalise(prediction) == normalise(gold))


def rouge_l(prediction: str, gold: str) -> float:
    """ROUGE-L F1 at summary level, over distinct words, as the package `rouge` 1.0.1 computes it for TRACE.

    Sentences end at full stops, words at white space; case and the other punctuation stay. Of every pair of
    sentences, the words of one longest common subsequence are taken; the union of all is shared out over the distinct
    words of the prediction (precision) and of the gold text (recall). Source: Lin, ROUGE, 2004, section 3.2.

    Two departures. Where one of the texts has no sentence (it is empty, or full stops alone), the package raises,
    and the score here is 0. And the package recurses once a word, so that it fails on a sentence of some thousand
    words; here nothing recurses.

    >>> round(rouge_l("the cat sat", "the cat lay down"), 6)  # 2 of 3 words, 2 of 4
    0.571429
    """
    predicted, golden = _sentences(prediction), _sentences(gold)
    if not predicted or not golden:
        return 0.0
    common = set[str]().union(*(_common_words(ours, theirs) for ours in predicted for theirs in golden))
    precision = len(common) / len(set().union(*predicted))
    recall = len(common) / len(set().union(*golden))
    return 2 * (precision * recall / (precision + recall + 1e-8))  # the package's way round 0 / 0


def _sentences(text: str) -> set[tuple[str, ...]]:
    """The distinct sentences; one of white space alone is the empty word, which the package counts."""
    return {tuple(part.split()) or ("",) for part in text.split(".") if part}


def _common_words(predicted: tuple[str, ...], golden: tuple[str, ...]) -> set[str]:
    """The words of a longest common subsequence: of several, the one that the package finds."""
    shared = set(predicted) & set(golden)
    if len(shared) < 2:
        return shared
    # Rows are computed one by one, so they are made of the shorter sentence.
    lengths = _lengths(golden, predicted) if len(golden) < len(predicted) else _lengths(predicted, golden).T
    words, row, column = set[str](), len(golden), len(predicted)
    while row and column:
        if golden[row - 1] == predicted[column - 1]:
            row, column = row - 1, column - 1
            words.add(golden[row])
        elif lengths[row, column - 1] > lengths[row - 1, column]:
            column -= 1
        else:
            row -= 1
    return words


def _lengths(rows: tuple[str, ...], columns: tuple[str, ...]) -> NDArray[np.int32]:
    """How long the longest common subsequence of every two prefixes is, [rows + 1, columns + 1]."""
    number = {word: index for index, word in enumerate(columns)}
    numbers = np.array([number[word] for word in columns])
    lengths = np.zeros((len(rows) + 1, len(columns) + 1), dtype=np.int32)
    for row, word in enumerate(rows):
        longest = np.where(numbers == number.get(word, -1), lengths[row, :-1] + 1, lengths[row, 1:])
        np.maximum.accumulate(longest, out=lengths[row + 1, 1:])
    return lengths


def unmask(code: str) -> str:
    """Py150's code with its masked literals written out, as in TRACE.

    >>> unmask("f ( <NUM_LIT> , <NUM_LIT:2> , '<STR_LIT>' , '<STR_LIT:b>' )")
    "f ( 0 , 2 , '' , 'b' )"
    """
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    for kind, literal in LITERAL.findall(code):
        code = code.replace(f"<{kind}_LIT:{literal}>", literal)
    return code


def edit_similarity(prediction: str, gold: str) -> float:
    """Similarity of two pieces of code by insertions and deletions of characters, their literals unmasked.

    `1 - edits / (sum of the lengths)` in whole per cent, as `fuzzywuzzy.fuzz.ratio` returns it with
    python-Levenshtein; 0 where one of the texts is empty. Source: TRACE, task Py150.

    >>> edit_similarity("return a", "return b")  # 2 edits of 16 characters: 87.5, and a half goes to the even number
    0.88
    """
    from rapidfuzz import fuzz

    ours, theirs = unmask(prediction), unmask(gold)
    return round(fuzz.ratio(ours, theirs)) / 100 if ours and theirs else 0.0


def sari(prediction: str, gold: str, source: str) -> float:
    """SARI with one reference: the mean over n = 1…4 of keep F1, deletion precision and addition F1 of the n-grams.

    Lower case, tokens of sacrebleu's `13a`, 0 / 0 = 1, keep recall over counts: as `sari` of Hugging Face's
    `evaluate` (TRACE's task 20Minuten, whose source is the whole prompt). Source: Xu et al., TACL 2016. A gold text
    need not score 1 against itself: a word that the source has three times and the gold text once is deleted twice,
    and this form calls only one of the two deletions good.
    """
    tokens = [_tokenizer()(text.lower()).split(" ") for text in (source, prediction, gold)]
    parts = [_keep_delete_add(*(_ngrams(text, n) for text in tokens)) for n in (1, 2, 3, 4)]
    return sum(map(sum, parts)) / 12


@cache
def _tokenizer() -> Tokenizer13a:
    """Imported when first used: sacrebleu takes longer to load than listing the suites may take."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()  # type: ignore[no-untyped-call]


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _keep_delete_add(
    source: Counter[tuple[str, ...]], prediction: Counter[tuple[str, ...]], gold: Counter[tuple[str, ...]]
) -> tuple[float, float, float]:
    kept, deleted = source & prediction, source - prediction
    keepable, well_kept, well_deleted = source & gold, kept & gold, deleted - gold
    keep_precision = _share(sum(count / kept[gram] for gram, count in well_kept.items()), len(kept))
    keep_recall = _share(well_kept.total(), keepable.total())
    delete = _share(sum(count / deleted[gram] for gram, count in well_deleted.items()), len(deleted))
    added, addable = prediction.keys() - source.keys(), gold.keys() - source.keys()
    well_added = len(added & addable)
    add = _f1(_share(well_added, len(added)), _share(well_added, len(addable)))
    return _f1(keep_precision, keep_recall), delete, add


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
