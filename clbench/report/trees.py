"""Trees: charts of the tree of a run's past tasks, of its growth and of the tasks chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
from altair.typing import ChartType

from clbench.record import Record
from clbench.report.grid import brief
from clbench.report.tree_notes import History, Node, Step, read

INK, QUIET, JOINT = "#222222", "#8a8a8a", "#0072b2"
"""The last one is the blue of Okabe and Ito, which the colour-blind tell from grey."""
GLYPH = 0.6
"""Width of a letter in font sizes, on average and rounded up."""
PANELS = 3
"""Trees side by side in the picture of the growth."""
CELL, FINE_CELL, MANY_LAYERS = 12, 6, 16
"""Pixels of a cell of the heat map, and of one where so many layers would make the picture too tall."""

_TITLE: dict[str, Any] = {"anchor": "start", "fontSize": 14, "offset": 16}


@dataclass(frozen=True)
class _Size:
    """Pixels of a dendrogram."""

    level: int
    leaf: int
    font: int


_LARGE, _SMALL = _Size(level=90, leaf=26, font=12), _Size(level=50, leaf=16, font=9)


def charts(record: Record) -> dict[str, ChartType]:
    """All that there is to draw of a record's tree, by name; where no choices were recorded, no heat map of them.

    Raises ClbenchError where the record has no tree.
    """
    drawn: dict[str, ChartType] = {"tree": dendrogram(record), "growth": growth(record)}
    if read(record).pulls:
        drawn["pulls"] = pulls(record)
    return drawn


def dendrogram(record: Record) -> alt.LayerChart:
    """The last tree, from left to right: tasks at the leaves, and at each joint the layer that split them."""
    history = read(record)
    words = f"The tree {history.when(history.last)}"
    under = "at a joint: the layer that split the group, and how far its tasks lie from their mean there"
    return _tree(history, history.last, _LARGE).properties(title=alt.Title(words, subtitle=under, **_TITLE))


def growth(record: Record) -> alt.ConcatChart:
    """The tree before each task was learned, side by side in the order of learning."""
    history = read(record)
    panels = [
        _tree(history, step, _SMALL).properties(title=alt.Title(history.when(step), fontSize=11, anchor="start"))
        for step in history.growth
    ]
    return alt.ConcatChart(concat=panels, columns=PANELS, title=alt.Title("How the tree grew", **_TITLE))


def pulls(record: Record) -> alt.Chart:
    """How often each past task was chosen: a row of panels a layer, in it a panel a learned task, epoch by epoch.

    White: no such epoch, or the past task was not there yet. The record must have choices.
    """
    history = read(record)
    past = [label for step in history.growth for label in history.labels(step)]
    learned = [history.names[taught.task] for taught in history.pulls]
    epochs = max(len(taught.shares) for taught in history.pulls)
    cell = CELL if len(history.layers) <= MANY_LAYERS else FINE_CELL
    wide = max(cell, math.ceil(_pixels(learned, 10) / epochs))  # whole pixels: others leave seams between the cells
    header = alt.Header(labelLimit=0, titleAnchor="start")
    names = alt.Axis(labelFontSize=min(10, cell + 1), labelLimit=0)
    # The scheme runs from dark blue to yellow, which looks alike with and without red and green.
    shares = alt.Scale(scheme="cividis", domain=[0, 1])
    return alt.Chart(
        alt.InlineData(values=_cells(history)),
        mark="rect",
        title=alt.Title("Past tasks chosen while learning", **_TITLE),
        width=alt.Step(wide),
        height=alt.Step(cell),
    ).encode(
        x=alt.X("epoch:O", title=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("past:N", title=None, sort=list(dict.fromkeys(past)), axis=names),
        color=alt.Color("share:Q", title="share of steps", scale=shares),
        row=alt.Row("layer:N", title=None, sort=list(history.layers), spacing=CELL, header=header),
        column=alt.Column("learned:N", title="learned task, epoch by epoch", sort=learned, spacing=4, header=header),
        tooltip=["learned:N", "epoch:O", "layer:N", "past:N", alt.Tooltip("share:Q", format=".1%")],
    )


def _cells(history: History) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "learned": history.names[taught.task], "epoch": epoch, "past": past, "share": share}
        for taught in history.pulls
        for epoch, layers in enumerate(taught.shares, 1)
        for layer, shares in zip(history.layers, layers, strict=True)
        for past, share in zip(history.labels(history.step(taught.task)), shares, strict=True)
    ]


def _pixels(words: Sequence[str], font: int) -> int:
    """The width of the longest of some words, about, with a little room."""
    return round(GLYPH * font * max(map(len, words))) + 4


class _Layout:
    """Where the parts of a tree go: x is the depth, with the leaves aligned behind the deepest; y counts leaves."""

    def __init__(self, history: History, step: Step) -> None:
        self.layers, self.labels = history.layers, history.labels(step)
        self.depth = max(node.depth for node in step.root.walk())
        self.lines: list[dict[str, float]] = []
        self.joints: list[dict[str, Any]] = []
        self.leaves: list[dict[str, Any]] = []
        self._place(step.root)

    def _place(self, node: Node) -> tuple[int, float]:
        names = ", ".join(self.labels[row] for row in node.tasks)
        if not node.children:
            self.leaves.append({"x": self.depth, "y": len(self.leaves), "tasks": names})
            return self.depth, len(self.leaves) - 1
        ends = [self._place(child) for child in node.children]
        x, (top, bottom) = node.depth, (y for _, y in ends)
        self.lines += [{"x": x, "y": end_y, "x2": end_x, "y2": end_y} for end_x, end_y in ends]
        self.lines.append({"x": x, "y": top, "x2": x, "y2": bottom})
        smoothness = node.smoothness[x]
        facts = {"layer": self.layers[x], "smoothness": smoothness, "about": brief(smoothness)}
        self.joints.append({"x": x, "y": (top + bottom) / 2, "tasks": names, "threshold": node.threshold, **facts})
        return x, (top + bottom) / 2


def _tree(history: History, step: Step, size: _Size) -> alt.LayerChart:
    layout = _Layout(history, step)
    level, depth = max(size.level, _pixels(history.layers, size.font)), max(layout.depth, 1)
    start = -0.8 if layout.joints else 0  # room for the words at the root
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[start, depth], nice=False, zero=False))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[len(layout.leaves) - 0.5, -0.5], nice=False, zero=False))
    lines, joints, leaves = (
        alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y)
        for values in (layout.lines, layout.joints, layout.leaves)
    )
    joints = joints.encode(tooltip=["tasks:N", "layer:N", "smoothness:Q", "threshold:Q"])
    beside: dict[str, Any] = {"align": "right", "dx": -6, "limit": 0}
    up, down = -size.font // 2 - 1, size.font // 2 + 2
    layers = [
        lines.mark_rule(color=QUIET, strokeWidth=1.5, strokeCap="round").encode(x2="x2:Q", y2="y2:Q"),
        joints.mark_circle(color=JOINT, size=4 * size.font, opacity=1),
        joints.mark_text(**beside, dy=up, fontSize=size.font - 1, color=JOINT).encode(text="layer:N"),
        joints.mark_text(**beside, dy=down, fontSize=size.font - 2, color=QUIET).encode(text="about:N"),
        leaves.mark_text(align="left", dx=6, limit=0, fontSize=size.font, color=INK).encode(text="tasks:N"),
    ]
    return alt.LayerChart(
        layer=layers,
        width=level * (depth - start),
        height=size.leaf * len(layout.leaves),
        view=alt.ViewBackground(stroke=None),
    )
