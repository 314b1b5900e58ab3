"""Ranks: the critical-difference plot of a ranking."""

from __future__ import annotations

from typing import Any

import altair as alt

from clbench.report.grid import clean
from clbench.significance import Ranking
from clbench.stats import LEVEL

INK, GROUP, SCALE = "#222222", "#d55e00", "#0072b2"
"""The last two are the vermilion and the blue of Okabe and Ito, which the colour-blind tell apart."""
WIDTH, LINE, GAP = 420, 22, 9
"""Pixels: of the scale, a method's line, and a group's bar."""
FONT = 12
ROOM = 60
"""Above the scale, for its numbers and the critical difference."""


def critical_difference(name: str, ranking: Ranking) -> alt.LayerChart:
    """Mean ranks on one scale, after Demšar (2006): a bar joins methods that cannot be told apart.

    `name` is what was ranked on: a suite, or several.
    """
    methods = len(ranking.methods)
    bars = len(ranking.groups)
    first = GAP * (bars + 1) + 12  # where the uppermost method's line lies, in pixels below the scale
    height = first + LINE * ((methods + 1) // 2)
    x = alt.X("x:Q", axis=_axis(), scale=alt.Scale(domain=[1, methods], nice=False, zero=False))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[height, -ROOM], nice=False, zero=False))
    stems, names = _stems(ranking, first)
    thick: dict[str, Any] = {"strokeWidth": 5, "strokeCap": "round", "clip": False}
    plain: dict[str, Any] = {"strokeWidth": 1.2, "color": INK, "clip": False}
    beside: dict[str, Any] = {"fontSize": FONT, "color": INK, "limit": 0, "clip": False}
    length = [
        {"x": 1, "x2": 1 + ranking.critical_difference, "y": -32, "text": f"CD {ranking.critical_difference:.2f}"}
    ]
    joined = [
        {"x": ranking.mean_ranks[a], "x2": ranking.mean_ranks[b], "y": GAP * (i + 1)}
        for i, (a, b) in enumerate(ranking.groups)
    ]
    left, right = ([line for line in names if line["side"] == side] for side in ("left", "right"))
    layers = [
        _of(stems, x, y).mark_rule(**plain).encode(x2="x2:Q", y2="y2:Q"),
        _of(joined, x, y).mark_rule(color=GROUP, **thick).encode(x2="x2:Q"),
        _of(length, x, y).mark_rule(color=SCALE, **thick).encode(x2="x2:Q"),
        _of(length, x, y).mark_text(align="left", dy=-10, fontSize=FONT, color=SCALE, clip=False).encode(text="text:N"),
        _of(left, x, y).mark_text(align="right", dx=-6, **beside).encode(text="text:N"),
        _of(right, x, y).mark_text(align="left", dx=6, **beside).encode(text="text:N"),
    ]
    p = "< 0.0001" if ranking.p < 0.0001 else f"= {ranking.p:.4f}"
    return alt.LayerChart(
        layer=layers,
        width=WIDTH,
        height=height + ROOM,
        padding={"left": 20, "right": 20, "top": 5, "bottom": 5},
        view=alt.ViewBackground(stroke=None),
        title=alt.Title(
            f"Mean ranks (1 is the best), {clean(name)}",
            subtitle=[ranking.unit, f"Friedman p {p}; a bar joins what Nemenyi's test at {LEVEL} cannot tell apart"],
            anchor="start",
            fontSize=14,
            offset=16,
        ),
    )


def _axis() -> alt.Axis:
    return alt.Axis(orient="top", title=None, tickMinStep=1, grid=False, offset=-ROOM)


def _of(values: list[dict[str, Any]], x: alt.X, y: alt.Y) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y)


def _stems(ranking: Ranking, first: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines from the scale down to the methods' names, the better half to the left, and the names."""
    methods = len(ranking.methods)
    half = (methods + 1) // 2
    stems, names = [], []
    for i, (method, rank) in enumerate(zip(ranking.methods, ranking.mean_ranks, strict=True)):
        side, edge = ("left", 1) if i < half else ("right", methods)
        y = first + LINE * (i if i < half else methods - 1 - i)
        stems += [{"x": rank, "x2": rank, "y": 0, "y2": y}, {"x": rank, "x2": edge, "y": y, "y2": y}]
        words = f"{clean(method)}  {rank:.2f}" if side == "left" else f"{rank:.2f}  {clean(method)}"
        names.append({"x": edge, "y": y, "side": side, "text": words})
    return stems, names
