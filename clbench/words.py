"""Words: the small lexicon that the embedded language model and its tasks are written with.

The model is pre-trained on sentences of these words and the embedded suite asks about others made of
the same words; both draw them here, so that what is shared can be seen in one place.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from clbench.seeding import derive

T = TypeVar("T")

NAMES = (
    *("Anna", "Ben", "Carl", "Dora", "Emil", "Fina", "Gus", "Hana"),
    *("Ida", "Jan", "Kira", "Leo", "Mia", "Nils", "Olga", "Paul"),
)
PLACES = ("mill", "tower", "market", "harbour", "garden", "school", "station", "park", "road", "bridge", "barn", "wall")
PLACE_QUALITIES = ("old", "new", "big", "small", "red", "grey", "wide", "tall")
THINGS = ("cup", "lamp", "book", "ball", "hat", "coin", "stone", "pen", "key", "bell", "rope", "drum")
"""Their plurals end in s."""
INSTITUTIONS = ("bank", "board", "council", "mayor", "senate", "ministry", "treasury", "cabinet")
MONEY = ("rates", "prices", "wages", "taxes", "loans", "rents", "fees", "tariffs")
MONEY_QUALITIES = ("high", "low", "rising", "falling", "higher", "lower", "new", "fixed")
TIMES = ("Today", "At noon", "In May", "Often", "At last", "Again", "By night", "In time")
ATTITUDES = {
    "good": ("likes", "loves", "praises", "backs", "welcomes", "enjoys", "admires", "trusts"),
    "bad": ("hates", "fears", "rejects", "blames", "dislikes", "opposes", "doubts", "mocks"),
    "plain": ("sees", "names", "counts", "draws", "measures", "records", "describes", "lists"),
}
ACTIONS = ("mend", "paint", "clean", "sell", "open", "close", "guard", "visit", "check", "rent")
"""Their third person adds an s."""
GAINS = ("finds", "buys", "gets", "makes", "wins", "earns")
LOSSES = ("loses", "sells", "drops", "breaks", "gives", "throws")
CHATTER = ("It rains.", "I am late.", "Good.", "Tea is here.", "Thanks.", "Let us start.", "Yes.", "It is cold.")
FAMILIES = {
    "bird": ("crow", "owl", "hawk", "duck", "swan", "gull", "wren", "robin"),
    "tree": ("oak", "pine", "elm", "beech", "birch", "maple", "cedar", "willow"),
    "fish": ("trout", "carp", "pike", "eel", "salmon", "cod", "tuna", "perch"),
    "flower": ("rose", "tulip", "daisy", "lily", "poppy", "iris", "violet", "aster"),
    "tool": ("hammer", "saw", "drill", "file", "rake", "spade", "wrench", "axe"),
    "fruit": ("apple", "pear", "plum", "cherry", "grape", "fig", "peach", "lemon"),
}
SUBJECTS = (
    *("Der Hund", "Der Bauer", "Der Bäcker", "Der König", "Die Katze", "Die Frau"),
    *("Die Köchin", "Die Gärtnerin", "Das Kind", "Das Mädchen", "Das Pferd", "Das Schaf"),
)
GOODS = (
    *("den Fisch", "den Käse", "den Korb", "den Apfel", "den Löffel", "den Hut"),
    *("die Suppe", "die Milch", "die Lampe", "das Brot", "das Buch", "das Öl"),
)
QUALITIES = {
    "gewaltige": "große",
    "winzige": "kleine",
    "betagte": "alte",
    "heitere": "frohe",
    "erschöpfte": "müde",
    "rasante": "schnelle",
    "betrübte": "traurige",
    "kraftvolle": "starke",
}
"""A rare German word and the plain one for the same."""
DEEDS = {
    "erwirbt": "kauft",
    "benötigt": "braucht",
    "erblickt": "sieht",
    "entdeckt": "findet",
    "veräußert": "verkauft",
    "entwendet": "stiehlt",
    "erhält": "bekommt",
    "fertigt": "macht",
}
MOMENTS = {"unverzüglich": "sofort", "gegenwärtig": "jetzt", "mitunter": "oft", "abermals": "wieder"}


def article(noun: str) -> str:
    """The noun with its indefinite article.

    >>> article("owl"), article("crow")
    ('an owl', 'a crow')
    """
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


class Draws:
    """Random choices for one purpose.

    Everything rests on `random.Random.random`, the one function whose numbers Python promises to keep
    from version to version, so that the texts stay the same wherever they are made.
    """

    def __init__(self, *words: str | int) -> None:
        self._random = random.Random(derive(0, *words)).random

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self._random() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different options in random order."""
        rest = list(options)
        return [rest.pop(int(self._random() * len(rest))) for _ in range(count)]
