"""The tree of past tasks: a node per group of tasks, split layer by layer by the tasks' signatures.

Source: TreeLoRA (Qian et al., ICML 2025, arXiv 2506.10355), section 3.1. A node at depth ``d`` splits its tasks by
their vectors in layer ``d``; ``N`` past tasks, ``D`` adapted layers, ``P`` numbers a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from clbench.errors import BadValue, UnknownName

Similarity: TypeAlias = Literal["l1", "inner"]
Split: TypeAlias = Literal["radius", "principal"]

POWER_ITERATIONS = 10


@dataclass(frozen=True)
class Node:
    """A group of tasks and its two halves; the root is the tree.

    ``tasks``: row numbers of the signatures, ascending.
    ``depth``: distance from the root, which is also the layer that splits the node.
    ``smoothness``: for each layer ``d``, the largest L1 distance of a member's vector from the members' mean, [D].
    ``threshold``: the similarity (``radius``) or projection (``principal``) that parts the halves; None in a leaf.
    ``children``: () in a leaf, else (left, right).
    ``centre``: the members' mean in layer ``depth``, [P]; None in a leaf and in a tree read from JSON; not compared.

    >>> root = build(torch.tensor([[[0.0]], [[10.0]], [[1.0]]]))
    >>> print(root.text(["cats", "cars", "dogs"]))
    cats, cars, dogs | layer 0, threshold -3.667
      cats, dogs | leaf
      cars | leaf
    """

    tasks: tuple[int, ...]
    depth: int
    smoothness: tuple[float, ...]
    threshold: float | None = None
    children: tuple[Node, ...] = ()
    centre: Tensor | None = field(default=None, compare=False, repr=False)

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it, parents before children, left before right."""
        yield self
        for child in self.children:
            yield from child.walk()

    def text(self, names: Sequence[str] | None = None) -> str:
        """Return one line a node, indented by depth; ``names[k]`` is task k's name, its number where absent."""
        lines = []
        for node in self.walk():
            group = ", ".join(str(task) if names is None else names[task] for task in node.tasks)
            rule = "leaf" if node.threshold is None else f"layer {node.depth}, threshold {node.threshold:.4g}"
            lines.append(f"{'  ' * (node.depth - self.depth)}{group} | {rule}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, numbers and dicts; the centre is left out for its size."""
        return {
            "tasks": list(self.tasks),
            "depth": self.depth,
            "smoothness": list(self.smoothness),
            "threshold": self.threshold,
            "children": [child.to_json() for child in self.children],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Node:
        """Return the node that ``to_json`` wrote, without its centre."""
        return Node(
            tasks=tuple(data["tasks"]),
            depth=data["depth"],
            smoothness=tuple(data["smoothness"]),
            threshold=data["threshold"],
            children=tuple(Node.from_json(child) for child in data["children"]),
        )


def build(
    signatures: Tensor,
    similarity: Similarity = "l1",
    split: Split = "radius",
    depth: int | None = None,
) -> Node:
    """Return the tree over all rows of ``signatures`` [N, D, P].

    ``split="radius"`` is the paper's rule: members whose similarity to the group's mean is at or above the lower
    median go left, the others right. ``similarity``: ``"l1"``, minus the L1 distance to the mean (paper), or
    ``"inner"``, the inner product with it (released code). An empty side: the first ``n // 2`` in order left.
    With ``"l1"`` it cannot part two equally large groups, which are equally far from their common mean, and the
    lower median gives an even group's left side one member more than half.
    ``split="principal"`` [ours] ranks the members along the group's first principal direction in that layer (power
    iteration, directed so that the first member is on the lower side) and puts the first ``n // 2`` left;
    ``similarity`` plays no part in it.
    ``depth``: the most layers that may split, 0 to D, None for D; a leaf holds one task or lies at that depth.

    Splitting reads a level's slice of one layer: O(N P) a level. The smoothness of all layers reads every slice
    once and works on it in fast memory, O(N D P) a level.

    Raises ValueError for a shape that is not [N >= 1, D >= 1, P], UnknownName for an unknown rule and BadValue for
    a depth out of range.
    """
    if signatures.dim() != 3 or 0 in signatures.shape[:2]:
        raise ValueError(f"signatures are [tasks, layers, numbers], got {list(signatures.shape)}")
    if similarity not in get_args(Similarity):
        raise UnknownName("similarity", similarity, get_args(Similarity))
    if split not in get_args(Split):
        raise UnknownName("split", split, get_args(Split))
    layers = signatures.shape[1]
    if depth is not None and not 0 <= depth <= layers:
        raise BadValue(f"depth is {depth}; the tree may split by 0 to {layers} layers.")
    limit = layers if depth is None else depth
    signatures = signatures.detach().float()
    with torch.no_grad():
        root = _grow(signatures, tuple(range(len(signatures))), 0, limit, similarity, split)
        return _with_smoothness(root, signatures)


def _grow(
    signatures: Tensor, tasks: tuple[int, ...], depth: int, limit: int, similarity: Similarity, split: Split
) -> Node:
    """Return the subtree of ``tasks`` with no smoothness yet."""
    if len(tasks) == 1 or depth == limit:
        return Node(tasks, depth, ())
    group = signatures[list(tasks), depth]
    centre = group.mean(0)
    if split == "radius":
        left, right, threshold = _by_radius(tasks, group, centre, similarity)
    else:
        left, right, threshold = _by_rank(tasks, group - centre)
    children = tuple(_grow(signatures, side, depth + 1, limit, similarity, split) for side in (left, right))
    return Node(tasks, depth, (), threshold, children, centre)


Halves: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], float]


def _by_radius(tasks: tuple[int, ...], group: Tensor, centre: Tensor, similarity: Similarity) -> Halves:
    values = -(group - centre).abs_().sum(-1) if similarity == "l1" else group @ centre
    threshold = values.median().item()  # torch's median is the lower one
    near = (values >= threshold).tolist()
    left = tuple(task for task, is_near in zip(tasks, near, strict=True) if is_near)
    right = tuple(task for task, is_near in zip(tasks, near, strict=True) if not is_near)
    if not left or not right:
        left, right = tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]
    return left, right, threshold


def _by_rank(tasks: tuple[int, ...], centred: Tensor) -> Halves:
    # A start drawn at random from a fixed seed is almost surely not orthogonal to the direction looked for.
    start = torch.randn(len(tasks), generator=torch.Generator().manual_seed(0))
    projection = start.to(centred)
    for _ in range(POWER_ITERATIONS):
        direction = torch.nn.functional.normalize(centred.T @ projection, dim=0)
        projection = centred @ direction
    projection = projection * torch.where(projection[0] > 0, -1.0, 1.0)
    order = projection.argsort(stable=True).tolist()
    half = len(tasks) // 2
    left, right = (tuple(tasks[i] for i in sorted(side)) for side in (order[:half], order[half:]))
    return left, right, projection[order[half - 1]].item()


def _with_smoothness(root: Node, signatures: Tensor) -> Node:
    order = [task for node in root.walk() if not node.children for task in node.tasks]
    place = {task: i for i, task in enumerate(order)}
    spans = [(min(place[task] for task in node.tasks), len(node.tasks)) for node in root.walk()]
    index = torch.tensor(order, device=signatures.device)
    rows = torch.empty_like(signatures[:, 0], memory_format=torch.contiguous_format)
    scratch = torch.empty_like(rows)  # reused: fresh memory for every node costs more than the arithmetic
    columns = []
    for layer in range(signatures.shape[1]):  # one layer at a time: its slice stays in the cache for all nodes
        torch.index_select(signatures[:, layer], 0, index, out=rows)
        columns.append(torch.stack([_radius(rows[start : start + size], scratch) for start, size in spans]))
    radii = iter(torch.stack(columns, dim=1).tolist())  # in the order of walk()

    def filled(node: Node) -> Node:
        radius = tuple(next(radii))
        return replace(node, smoothness=radius, children=tuple(filled(child) for child in node.children))

    return filled(root)


def _radius(group: Tensor, scratch: Tensor) -> Tensor:
    if len(group) == 1:
        return group.new_zeros(())
    if len(group) == 2:  # both at half their distance: a third of the work for the commonest group
        return torch.sub(group[0], group[1], out=scratch[0]).abs_().sum() / 2
    # abs and sum apart: vector_norm(ord=1) is several times slower on a CPU
    return torch.sub(group, group.mean(0), out=scratch[: len(group)]).abs_().sum(-1).amax()


@dataclass(frozen=True)
class FlatTree:
    """A tree as tensors, every node with exactly two children.

    Positions 0 … N-1 are the tasks themselves, N … 2N-2 the groups in order of height, the root last. A leaf of
    several tasks becomes a group whose inner joints have infinite smoothness: their own bound never counts, so
    the members are compared directly.

    ``children``: [N-1, 2], positions of the left and right child of position N+i.
    ``order``: [N], the tasks from the left leaf to the right one, so that each group is a stretch of it.
    ``spans``: [N-1, 2], where in ``order`` the group of position N+i begins and ends (exclusive).
    ``smoothness``: [2N-1, D], 0 for a task, float64.
    ``levels``: ranges [first, last) of positions of equal height, lowest first.
    """

    children: Tensor
    order: Tensor
    spans: Tensor
    smoothness: Tensor
    levels: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Joint:
    tasks: tuple[int, ...]
    smoothness: tuple[float, ...]
    sides: tuple[_Joint | int, _Joint | int]
    height: int


def flatten(root: Node) -> FlatTree:
    """Return the tensor form of a whole tree, on the CPU."""
    count, layers = len(root.tasks), len(root.smoothness)
    joined = _joined(root)
    joints = sorted(_joints(joined), key=lambda joint: joint.height)  # stable: left before right
    order = _leaves(joined)
    place = {task: i for i, task in enumerate(order)}
    position = {id(joint): count + i for i, joint in enumerate(joints)}
    children = torch.zeros(len(joints), 2, dtype=torch.long)
    spans = torch.zeros(len(joints), 2, dtype=torch.long)
    smoothness = torch.zeros(count + len(joints), layers, dtype=torch.float64)
    for i, joint in enumerate(joints):
        children[i] = torch.tensor([side if isinstance(side, int) else position[id(side)] for side in joint.sides])
        first = min(place[task] for task in joint.tasks)
        spans[i] = torch.tensor([first, first + len(joint.tasks)])
        smoothness[count + i] = torch.tensor(joint.smoothness)
    sizes = [len(list(level)) for _, level in groupby(joints, key=lambda joint: joint.height)]
    ends = [count + sum(sizes[: i + 1]) for i in range(len(sizes))]
    levels = tuple((end - size, end) for size, end in zip(sizes, ends, strict=True))
    return FlatTree(children, torch.tensor(order), spans, smoothness, levels)


def _joined(node: Node) -> _Joint | int:
    if len(node.tasks) == 1:
        return node.tasks[0]
    if node.children:
        left, right = node.children
        return _joint(node.tasks, node.smoothness, _joined(left), _joined(right))
    return _folded(node.tasks, node.smoothness)


def _folded(tasks: tuple[int, ...], smoothness: tuple[float, ...]) -> _Joint | int:
    if len(tasks) == 1:
        return tasks[0]
    half, infinite = len(tasks) // 2, (float("inf"),) * len(smoothness)
    return _joint(tasks, smoothness, _folded(tasks[:half], infinite), _folded(tasks[half:], infinite))


def _joint(tasks: tuple[int, ...], smoothness: tuple[float, ...], left: _Joint | int, right: _Joint | int) -> _Joint:
    height = 1 + max(0 if isinstance(side, int) else side.height for side in (left, right))
    return _Joint(tasks, smoothness, (left, right), height)


def _joints(joint: _Joint | int) -> Iterator[_Joint]:
    if isinstance(joint, _Joint):
        yield joint
        for side in joint.sides:
            yield from _joints(side)


def _leaves(joint: _Joint | int) -> list[int]:
    return [joint] if isinstance(joint, int) else [task for side in joint.sides for task in _leaves(side)]
