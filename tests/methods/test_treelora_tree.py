from __future__ import annotations

import doctest
import json
from collections.abc import Callable, Sequence
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import clbench.methods.treelora.tree as tree_module
from clbench.errors import BadValue, UnknownName
from clbench.methods.treelora.tree import Node, Similarity, Split, build, flatten

# four tasks, two layers of one number; computed by hand in the tests below
FOUR = torch.tensor([[0.0, 5.0], [1.0, 0.0], [2.0, 1.0], [10.0, 2.0]]).unsqueeze(2)


LAYERS = 3
FEW_NUMBERS = st.lists(st.integers(-2, 2), min_size=2 * LAYERS, max_size=2 * LAYERS)
STREAMS = st.lists(FEW_NUMBERS, min_size=1, max_size=12)  # small whole numbers: ties and equal tasks are common


def partition(node: Node) -> object:
    """Nested lists of tasks: a leaf is its tuple of tasks."""
    return [partition(child) for child in node.children] if node.children else node.tasks


def random_signatures(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_groups(seed: int, group: Callable[[int], int], tasks: int = 16, numbers: int = 32) -> Tensor:
    """One layer in which two equally large groups sit at two far points."""
    points = random_signatures(seed, 2, numbers) * 5
    noise = random_signatures(seed + 10_000, tasks, numbers)
    return torch.stack([points[group(k)] for k in range(tasks)]) + 0.3 * noise


def test_l1_radius_by_hand() -> None:
    # layer 0: mean 3.25, distances 3.25 2.25 1.25 6.75, lower median of -distance -3.25: 0 1 2 | 3
    # layer 1 of 0 1 2: mean 2, distances 3 2 1, median -2: 1 2 | 0; depth 2 is the last: 1 and 2 share a leaf
    root = build(FOUR)
    assert partition(root) == [[(1, 2), (0,)], (3,)]
    assert root.threshold == -3.25
    assert root.children[0].threshold == -2.0
    assert root.centre is not None
    assert root.centre.tolist() == [3.25]


def test_smoothness_is_the_largest_distance_from_the_centre_in_every_layer() -> None:
    root = build(FOUR)
    inner = root.children[0]
    assert root.smoothness == (6.75, 3.0)
    assert inner.smoothness == (1.0, 3.0)
    assert inner.children[0].smoothness == (0.5, 0.5)
    assert root.children[1].smoothness == (0.0, 0.0)


@pytest.mark.parametrize("split", ["radius", "principal"])
def test_smoothness_of_random_signatures(split: Split) -> None:
    signatures = random_signatures(0, 13, 3, 20)
    for node in build(signatures, split=split).walk():
        group = signatures[list(node.tasks)]
        expected = (group - group.mean(0)).abs().sum(-1).amax(0)
        torch.testing.assert_close(torch.tensor(node.smoothness), expected, rtol=1e-4, atol=1e-5)


def test_inner_by_hand_uses_the_lower_median() -> None:
    # mean (0.5, 0.75), inner products 0.5 1 2.25 -0.5; the lower median is 0.5 (the upper, 1, would part 1 2 | 0 3)
    signatures = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]).unsqueeze(1)
    root = build(signatures, similarity="inner")
    assert partition(root) == [(0, 1, 2), (3,)]
    assert root.threshold == 0.5


def released(signatures: Tensor, tasks: list[int], depth: int) -> object:
    """The released code's rule, written as a plain loop."""
    if depth >= signatures.shape[1] or len(tasks) <= 1:
        return tuple(tasks)
    centre = signatures[tasks, depth].sum(0) / len(tasks)
    values = {task: float(signatures[task, depth] @ centre) for task in tasks}
    threshold = sorted(values.values())[(len(tasks) - 1) // 2]
    sides = [task for task in tasks if values[task] >= threshold], [task for task in tasks if values[task] < threshold]
    if not sides[0] or not sides[1]:
        sides = tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]
    return [released(signatures, side, depth + 1) for side in sides]


@pytest.mark.parametrize("seed", range(5))
def test_inner_gives_the_partition_of_the_released_rule(seed: int) -> None:
    signatures = random_signatures(seed, 17, 4, 9).double()
    assert partition(build(signatures, similarity="inner")) == released(signatures, list(range(17)), 0)


@given(STREAMS)
def test_inner_gives_the_partition_of_the_released_rule_with_ties(rows: Sequence[Sequence[int]]) -> None:
    # one number a layer: both ways to the inner product then round alike
    signatures = torch.tensor(rows, dtype=torch.float32).unsqueeze(2)
    assert partition(build(signatures, similarity="inner")) == released(signatures, list(range(len(rows))), 0)


def test_inner_keeps_the_released_threshold() -> None:
    signatures = random_signatures(7, 6, 2, 9)
    root = build(signatures, similarity="inner")
    for node in root.walk():
        if node.children:
            group = signatures[list(node.tasks), node.depth].double()
            values = sorted((group @ group.mean(0)).tolist())
            assert node.threshold == pytest.approx(values[(len(values) - 1) // 2], rel=1e-5)


@given(
    STREAMS, st.sampled_from(get_args(Similarity)), st.sampled_from(get_args(Split)), st.none() | st.integers(0, LAYERS)
)
def test_every_trees_leaves_partition_the_tasks(
    rows: Sequence[Sequence[int]], similarity: Similarity, split: Split, depth: int | None
) -> None:
    signatures = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), LAYERS, -1)
    root = build(signatures, similarity, split, depth)
    leaves = [node for node in root.walk() if not node.children]
    assert sorted(task for leaf in leaves for task in leaf.tasks) == list(range(len(rows)))
    for node in root.walk():
        assert node.tasks
        assert len(node.children) in (0, 2)
        assert (node.threshold is None) == (not node.children)
        assert [child.depth for child in node.children] == [node.depth + 1] * len(node.children)
        below = sorted(task for child in node.children for task in child.tasks)
        assert not below or below == list(node.tasks)
    assert all(len(leaf.tasks) == 1 or leaf.depth == (LAYERS if depth is None else depth) for leaf in leaves)
    assert Node.from_json(json.loads(json.dumps(root.to_json()))) == root


@pytest.mark.parametrize("seed", range(20))
def test_principal_separates_planted_groups_at_their_layers(seed: int) -> None:
    layers = [two_groups(seed, lambda k: k // 8), two_groups(seed + 500, lambda k: k % 2)]
    root = build(torch.stack(layers, dim=1), split="principal", depth=2)
    assert partition(root) == [
        [(0, 2, 4, 6), (1, 3, 5, 7)],
        [(8, 10, 12, 14), (9, 11, 13, 15)],
    ]


@pytest.mark.parametrize("seed", range(50))
def test_the_papers_radius_rule_misses_the_planted_groups(seed: int) -> None:
    # equally large groups are equally far from their common mean, so only the noise decides who is near
    root = build(two_groups(seed, lambda k: k // 8).unsqueeze(1))
    assert [{task // 8 for task in side.tasks} for side in root.children] == [{0, 1}, {0, 1}]


@pytest.mark.parametrize("similarity", ["l1", "inner"])
def test_the_lower_median_never_halves_an_even_group(similarity: Similarity) -> None:
    root = build(two_groups(0, lambda k: k // 8).unsqueeze(1), similarity=similarity)
    assert [len(side.tasks) for side in root.children] == [9, 7]


def test_principal_halves_an_odd_group_by_rank() -> None:
    root = build(torch.tensor([4.0, 9.0, 1.0, 8.0, 2.0]).reshape(5, 1, 1), split="principal")
    assert partition(root) == [(2, 4), (0, 1, 3)]  # 4 is below the mean, 4.8, so the order is 1 2 4 8 9


def test_principal_puts_the_first_task_on_the_lower_side() -> None:
    values = torch.tensor([9.0, 0.0, 8.0, 1.0]).reshape(4, 1, 1)
    assert partition(build(values, split="principal")) == [(0, 2), (1, 3)]
    assert partition(build(-values, split="principal")) == [(0, 2), (1, 3)]


@pytest.mark.parametrize("split", ["radius", "principal"])
@pytest.mark.parametrize("similarity", ["l1", "inner"])
def test_identical_tasks_are_halved_in_order(split: Split, similarity: Similarity) -> None:
    signatures = random_signatures(1, 1, 3, 6).expand(5, 3, 6)
    root = build(signatures, similarity, split)
    assert partition(root) == [[(0,), (1,)], [(2,), [(3,), (4,)]]]
    assert max(root.smoothness) < 1e-5


def test_ties_at_the_median_go_left() -> None:
    # mean 0: distances 1 1 1 1 2 2, lower median of -distance is -1
    values = torch.tensor([-1.0, 1.0, -1.0, 1.0, -2.0, 2.0]).reshape(6, 1, 1)
    assert partition(build(values)) == [(0, 1, 2, 3), (4, 5)]


@pytest.mark.parametrize("depth", [0, 1, 2, None])
def test_depth_limit(depth: int | None) -> None:
    root = build(random_signatures(2, 9, 3, 4), depth=depth)
    leaves = [node for node in root.walk() if not node.children]
    assert sorted(task for leaf in leaves for task in leaf.tasks) == list(range(9))
    limit = 3 if depth is None else depth
    assert max(leaf.depth for leaf in leaves) == limit
    assert all(len(leaf.tasks) == 1 or leaf.depth == limit for leaf in leaves)


def test_one_task_is_a_leaf() -> None:
    root = build(torch.ones(1, 2, 3))
    assert root == Node((0,), 0, (0.0, 0.0))


def test_build_leaves_the_signatures_as_they_are_and_reads_views() -> None:
    stored = random_signatures(3, 4, 7, 5)  # [layers, tasks, numbers]
    before = stored.clone()
    assert build(stored.transpose(0, 1)) == build(stored.transpose(0, 1).contiguous())
    assert torch.equal(stored, before)


def test_text_is_indented_and_names_tasks() -> None:
    root = build(FOUR)
    assert root.text(["ant", "bee", "cat", "dog"]).splitlines() == [
        "ant, bee, cat, dog | layer 0, threshold -3.25",
        "  ant, bee, cat | layer 1, threshold -2",
        "    bee, cat | leaf",
        "    ant | leaf",
        "  dog | leaf",
    ]
    assert str(root).splitlines()[2] == "    1, 2 | leaf"


@pytest.mark.parametrize("split", ["radius", "principal"])
def test_json_round_trip(split: Split) -> None:
    root = build(random_signatures(4, 11, 3, 8), split=split)
    again = Node.from_json(json.loads(json.dumps(root.to_json())))
    assert again == root
    assert again.centre is None


def test_flat_form_by_hand() -> None:
    flat = flatten(build(FOUR))  # (((1 2) 0) 3): positions 4 = {1 2}, 5 = {0 1 2}, 6 = all
    assert flat.children.tolist() == [[1, 2], [4, 0], [5, 3]]
    assert flat.levels == ((4, 5), (5, 6), (6, 7))
    assert flat.order.tolist() == [1, 2, 0, 3]
    assert flat.spans.tolist() == [[0, 2], [0, 3], [0, 4]]
    assert flat.smoothness.tolist() == [[0, 0]] * 4 + [[0.5, 0.5], [1, 3], [6.75, 3]]


def test_flat_form_of_a_leaf_with_several_tasks_compares_its_members_directly() -> None:
    root = build(random_signatures(5, 5, 1, 4), depth=0)
    flat = flatten(root)
    assert flat.smoothness[:5].eq(0).all()
    assert flat.smoothness[5:-1].isinf().all()
    assert flat.smoothness[-1].tolist() == list(root.smoothness)


@pytest.mark.parametrize("tasks", [1, 2, 3, 10, 33])
def test_flat_form_lists_children_before_parents_and_the_root_last(tasks: int) -> None:
    flat = flatten(build(random_signatures(6, tasks, 3, 4)))
    order = flat.order.tolist()
    assert sorted(order) == list(range(tasks))
    below = [{task} for task in range(tasks)] + [set(order[first:last]) for first, last in flat.spans.tolist()]
    assert len(below) == 2 * tasks - 1
    assert below[-1] == set(order)
    for i, (left, right) in enumerate(flat.children.tolist()):
        assert max(left, right) < tasks + i
        assert below[left] | below[right] == below[tasks + i]
        assert not below[left] & below[right]
    for first, last in flat.levels:
        assert flat.children[first - tasks : last - tasks].max() < first


def test_errors_name_what_came() -> None:
    signatures = torch.ones(2, 3, 4)
    with pytest.raises(UnknownName, match=r"'radial'\. Did you mean 'radius'"):
        build(signatures, split="radial")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no similarity called 'l2'"):
        build(signatures, similarity="l2")  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="depth is 4; the tree may split by 0 to 3 layers"):
        build(signatures, depth=4)
    with pytest.raises(ValueError, match=r"\[0, 3, 4\]"):
        build(signatures[:0])


def test_examples() -> None:
    assert doctest.testmod(tree_module).failed == 0
