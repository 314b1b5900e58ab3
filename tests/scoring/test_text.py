"""Marks of one answer: by hand, against the packages that the papers used, and on answers that no one wants."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.scoring.text import edit_similarity, exact_match, normalise, rouge_l, sari, unmask

MARKS = {
    "exact match": exact_match,
    "rouge-l": rouge_l,
    "edit similarity": edit_similarity,
    "sari": lambda prediction, gold: sari(prediction, gold, "the source text. Zwölf 支持 1,5"),
}
# Few words, so that texts share some; full stops and line breaks, because sentences end there.
TEXTS = st.lists(
    st.sampled_from(["a", "b", "Ü", "支持", " ", " ", ".", "\n", "<NUM_LIT:3>", "-3", "1,234"]), max_size=24
)
WORDY = st.one_of(st.text(max_size=40), TEXTS.map("".join))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Very\tNegative!\n", "very negative"),
        ("Society & Culture", "society culture"),
        ("don't", "dont"),
        ("ÄRGER。", "ärger。"),  # only ASCII punctuation goes
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_exact_match_is_all_or_nothing() -> None:
    assert exact_match("science or technology.", "Science or Technology") == 1
    assert exact_match("Science", "Science or Technology") == 0
    assert exact_match("", "Good") == 0
    assert exact_match(".", "-") == 1  # so does the published code


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("the cat sat", "the cat lay down", 4 / 7),  # precision 2/3, recall 2/4
        ("the cat sat", "the dog ran", 1 / 3),
        ("b a", "a b", 0.5),  # one of two words keeps its place
        ("a a a", "a", 1.0),  # words count once
        ("The cat", "the cat", 0.5),  # case stays
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 8 / 13),  # Lin's example: recall 4/5, here precision 4/8
        ("für Ämter", "fur Ämter", 0.5),
        ("支持 反对", "支持", 2 / 3),
        ("good.\n", "good", 2 / 3),  # what follows the full stop is a sentence of one empty word
        ("", "a", 0.0),
        ("...", "a", 0.0),
        ("a", ".", 0.0),
        ("?!", "a b", 0.0),
    ],
)
def test_rouge_l_by_hand(prediction: str, gold: str, score: float) -> None:
    assert rouge_l(prediction, gold) == pytest.approx(score, abs=1e-7)


@given(prediction=WORDY, gold=WORDY)
def test_rouge_l_is_the_package_of_trace(prediction: str, gold: str) -> None:
    package = pytest.importorskip("rouge", reason="the package that TRACE used is not installed")
    try:
        theirs = package.Rouge(metrics=["rouge-l"]).get_scores(gold, prediction)[0]["rouge-l"]["f"]
    except ValueError:  # it takes no text without a sentence
        theirs = 0.0
    assert rouge_l(prediction, gold) == pytest.approx(theirs, abs=1e-12)


def test_rouge_l_takes_a_sentence_of_thousands_of_words() -> None:
    words = [f"w{index % 997}" for index in range(5000)]
    assert rouge_l(" ".join(words), " ".join(words[:997])) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(
    ("code", "plain"),
    [
        ('x = [ <NUM_LIT> , <NUM_LIT:2.5> , "<STR_LIT>" , "<STR_LIT:a b>" ]', 'x = [ 0 , 2.5 , "" , "a b" ]'),
        ("<CHAR_LIT><CHAR_LIT:c><STR_LIT:\n>", "c\n"),
        ("<STR_LIT:<NUM_LIT:3>> <NUM_LIT:3>", "3 3"),  # what the first replacement makes, the second replaces too
        ("a < b > c <STR_LIT:open", "a < b > c <STR_LIT:open"),
    ],
)
def test_unmask(code: str, plain: str) -> None:
    assert unmask(code) == plain


@pytest.mark.parametrize(
    ("prediction", "gold", "score"),
    [
        ("return a", "return b", 0.88),  # 1 - 2/16 = 87.5 per cent, and a half goes to the even number
        ("abcd", "abce", 0.75),
        ("x = 0", "x = <NUM_LIT>", 1.0),
        ("für", "fur", 0.67),
        ("return result ", "return result", 0.96),  # 1 - 1/27 = 96.3 per cent
        ("", "x", 0.0),
        ("x", "", 0.0),
        ("<STR_LIT>", "<CHAR_LIT>", 0.0),  # nothing is left of either
    ],
)
def test_edit_similarity_by_hand(prediction: str, gold: str, score: float) -> None:
    assert edit_similarity(prediction, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    ("source", "prediction", "gold", "score"),
    [
        ("a b", "a c", "a c", 1.0),
        # One word: keep 1/2 and 1/1, nothing deleted, nothing added of one. Two: nothing well kept. Then 0 / 0 = 1.
        ("a b", "a b", "a c", (2 / 3 + 1 + 0 + 0 + 1 + 0 + 6) / 12),
        ("x x x", "x", "x", 11.5 / 12),  # of two deletions one is called good
        ("A B", "a c", "a C", 1.0),
    ],
)
def test_sari_by_hand(source: str, prediction: str, gold: str, score: float) -> None:
    assert sari(prediction, gold, source) == pytest.approx(score, abs=1e-12)


GERMAN = "Vereinfache:\nDie Prüfung dauert 2,5 Jahre, sagt M. (24)."
SPECIES = "About 95 species are currently accepted ."


@pytest.mark.parametrize(
    ("source", "prediction", "gold", "score"),
    [
        (SPECIES, "About 95 you now get in .", "About 95 species are currently known .", 0.21805555555555556),
        (SPECIES, "About 95 you now get in .", "95 species are now accepted .", 0.3625),
        (GERMAN, "", "Die Prüfung dauert lange.", 0.377518315018315),
        (GERMAN, "Prüfung dauert 2,5 Jahre; Jahre!", "Die Prüfung dauert lange.", 0.3806818181818182),
    ],
)
def test_sari_is_that_of_evaluate(source: str, prediction: str, gold: str, score: float) -> None:
    """The numbers are those of `sari` in Hugging Face's evaluate, with sacrebleu 2.6.0."""
    assert sari(prediction, gold, source) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
@given(prediction=WORDY, gold=WORDY)
def test_marks_lie_between_0_and_1(mark, prediction: str, gold: str) -> None:  # type: ignore[no-untyped-def]
    assert 0 <= mark(prediction, gold) <= 1


@given(gold=WORDY.filter(lambda text: unmask(text) and text.strip(".")))
def test_a_text_equals_itself(gold: str) -> None:
    assert exact_match(gold, gold) == 1
    assert rouge_l(gold, gold) == pytest.approx(1, abs=1e-7)
    assert edit_similarity(gold, gold) == 1


LONG = {
    "one word": "x" * 20_000,
    "short words": "a b " * 5_000,
    "sentences": "".join(f"the {index} of." for index in range(2_000)),
    "full stops": "." * 20_000,
    "open literals": "<STR_LIT:" * 2_222,
    "literals": "".join(f"<NUM_LIT:{index}>" for index in range(1_400)),
    "Chinese": "支持" * 10_000,
}


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("prediction", LONG.values(), ids=LONG)
def test_over_long_answers_are_marked_at_once(mark, prediction: str) -> None:  # type: ignore[no-untyped-def]
    gold = " ".join(f"a{index} b the {index} of" for index in range(30)) + "."
    start = time.process_time()
    assert 0 <= mark(prediction, gold) < 0.7
    assert time.process_time() - start < 2  # takes some hundredths; a quadratic slip takes minutes
