"""Palette: the colour, dash and marker by which a row is known in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clbench.protocol import digest

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito (2008), which the colour-blind tell apart; without their yellow, which a white page swallows."""
DASHES: tuple[tuple[int, ...], ...] = ((), (6, 3), (2, 2), (9, 3, 2, 3), (14, 4))
SHAPES = (*("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"),)
SLOTS = len(COLOURS) * len(SHAPES)
"""The counts have no common divisor, so that each slot is a pair of its own."""


@dataclass(frozen=True)
class Style:
    """How one row is drawn."""

    colour: str
    dash: tuple[int, ...]
    shape: str


def style(slot: int) -> Style:
    """The style of a place; one colour comes back with another dash and another marker.

    >>> style(0), style(7)
    (Style(colour='#0072b2', dash=(), shape='circle'), Style(colour='#0072b2', dash=(6, 3), shape='triangle-left'))
    >>> len({(style(i).colour, style(i).shape) for i in range(SLOTS)}) == SLOTS
    True
    """
    return Style(COLOURS[slot % len(COLOURS)], DASHES[slot // len(COLOURS) % len(DASHES)], SHAPES[slot % len(SHAPES)])


def styles(names: Mapping[str, str], order: Sequence[str]) -> dict[str, Style]:
    """A style for each label of a page; `names` are label → name.

    A name in `order` has the style of its place there, on every page. Any other has a place that its hash gives; where
    a label before it in the alphabet has that place already, the next free one.

    >>> known = styles({"b": "b", "mine": "mine"}, ["a", "b"])
    >>> known["b"] == style(1), known["mine"] == styles({"mine": "mine"}, [])["mine"]
    (True, True)
    """
    slots = {label: order.index(name) % SLOTS for label, name in names.items() if name in order}
    for label in sorted(set(names) - set(slots)):
        first = int(digest(names[label]), 16)
        free = [slot for i in range(SLOTS) if (slot := (first + i) % SLOTS) not in slots.values()]
        slots[label] = free[0] if free else first % SLOTS
    return {label: style(slot) for label, slot in slots.items()}
