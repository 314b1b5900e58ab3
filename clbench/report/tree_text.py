"""Tree text: the tree of a run's past tasks, its growth and the arms chosen, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from clbench.record import Record
from clbench.report.grid import brief, clean
from clbench.report.tree_notes import History, Node, Pulls, Step, read


@dataclass(frozen=True)
class Choice:
    """The past task that a layer was most often compared with while a task was learned."""

    task: str
    layer: str
    arm: str
    share: float
    """Mean over the epochs, in [0, 1]."""


def choices(record: Record) -> list[Choice]:
    """The most pulled arm of every layer for every learned task; the first of equals."""
    history = read(record)
    return [choice for taught in history.pulls for choice in _choices(history, taught)]


def caption(record: Record) -> str:
    """Which run it is."""
    parts = [f"{record.suite}/{record.method}/seed{record.seed}", record.key, record.variant]
    return clean(" · ".join(part for part in parts if part))


def text(record: Record, width: int = 120) -> str:
    """The last tree, how it grew and which arms were chosen; tables take at most `width` columns.

    Raises ClbenchError where the record has no tree.
    """
    history = read(record)
    blocks = [
        [caption(record)],
        [f"Tree {history.when(history.last)}", *(f"  {line}" for line in tree(history, history.last))],
        ["Growth: a bar stands where a group was split", *_growth(history)],
    ]
    if history.merged:
        blocks.append(["Merged", *(f"  {line}" for line in _merges(history))])
    if history.pulls:
        blocks.append(["Chosen most often: per layer (lines) and learned task (columns)", *_chosen(history, width)])
    else:
        blocks.append(["Chosen most often: no choices were recorded"])
    return "\n\n".join("\n".join(block) for block in blocks)


def tree(history: History, step: Step) -> list[str]:
    """One line a node: a leaf's tasks, or how many tasks were split by which layer and how far they lay apart."""
    return list(_lines(history, step, step.root, "", ""))


def _lines(history: History, step: Step, node: Node, first: str, rest: str) -> Iterator[str]:
    labels = history.labels(step)
    if not node.children:
        yield first + ", ".join(labels[row] for row in node.tasks)
        return
    count = sum(len(step.arms[row]) for row in node.tasks)
    smoothness = brief(node.smoothness[node.depth])
    yield f"{first}{count} tasks, split by {history.layers[node.depth]}, smoothness {smoothness}"
    left, right = node.children
    yield from _lines(history, step, left, f"{rest}├─ ", f"{rest}│  ")
    yield from _lines(history, step, right, f"{rest}└─ ", f"{rest}   ")


def _growth(history: History) -> Iterator[str]:
    whens = [history.when(step) for step in history.growth]
    widest = max(map(len, whens))
    for when, step in zip(whens, history.growth, strict=True):
        yield f"  {when:{widest}}  {_halves(history.labels(step), step.root)}"


def _halves(labels: Sequence[str], node: Node) -> str:
    """'(a | b) | c': a and b parted from c first, then from each other."""
    if not node.children:
        return ", ".join(labels[row] for row in node.tasks)
    sides = [_halves(labels, child) for child in node.children]
    return " | ".join(f"({side})" if child.children else side for side, child in zip(sides, node.children, strict=True))


def _merges(history: History) -> Iterator[str]:
    for merge in history.merged:
        yield f"after {history.names[merge.after]}: {' with '.join(history.label(group) for group in merge.tasks)}"


def _choices(history: History, taught: Pulls) -> Iterator[Choice]:
    labels = history.labels(history.step(taught.task))
    for layer, name in enumerate(history.layers):
        shares = [fmean(epochs) for epochs in zip(*(epoch[layer] for epoch in taught.shares), strict=True)]
        best = max(range(len(shares)), key=shares.__getitem__)
        yield Choice(history.names[taught.task], name, labels[best], shares[best])


def _chosen(history: History, width: int) -> Iterator[str]:
    """Columns two spaces apart behind the layers; those that do not fit go below, behind the layers again."""
    heads = _padded(["", *(f"  {layer}" for layer in history.layers)])
    block = heads
    for taught in history.pulls:
        cells = [f"{choice.arm} ({100 * choice.share:.0f} %)" for choice in _choices(history, taught)]
        column = _padded([history.names[taught.task], *cells])
        if block is not heads and len(block[0]) + 2 + len(column[0]) > width:
            yield from (*_trimmed(block), "")
            block = heads
        block = [f"{line}  {cell}" for line, cell in zip(block, column, strict=True)]
    yield from _trimmed(block)


def _padded(words: Sequence[str]) -> list[str]:
    widest = max(map(len, words))
    return [f"{word:{widest}}" for word in words]


def _trimmed(lines: Sequence[str]) -> list[str]:
    return [line.rstrip() for line in lines]
