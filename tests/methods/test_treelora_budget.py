from __future__ import annotations

import doctest
from itertools import combinations

import pytest
import torch
from torch import Tensor

import clbench.methods.treelora.budget as budget_module
from clbench.methods.treelora.budget import merge_groups, merged, nearest_pair


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_pair_by_hand_sums_over_all_layers() -> None:
    # distances in (layer 0, layer 1): 01 (1, 9), 02 (4, 2), 12 (5, 7); layer 0 alone would take 01, the sum takes 02
    signatures = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [9.0, 0.0]], [[0.0, -4.0], [1.0, -1.0]]])
    assert nearest_pair(signatures) == (0, 2)


def test_the_distance_is_l1() -> None:
    # from the first: L1 6 and 5, L2 sqrt(12) and 5
    assert nearest_pair(torch.tensor([[0.0, 0, 0], [2, 2, 2], [0, 5, 0]]).unsqueeze(1)) == (0, 2)


def test_the_first_pair_among_equals() -> None:
    assert nearest_pair(torch.tensor([9.0, 0, 1, 2, 3]).reshape(5, 1, 1)) == (1, 2)
    assert nearest_pair(torch.zeros(4, 2, 3)) == (0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_nearest_pair_of_random_signatures(seed: int) -> None:
    signatures = random(seed, 3, 12, 40).transpose(0, 1)  # a view, as a cut through a larger store would be
    before = signatures.clone()
    distances = {(i, j): (signatures[i] - signatures[j]).abs().sum().item() for i, j in combinations(range(12), 2)}
    assert nearest_pair(signatures) == min(distances, key=lambda pair: distances[pair])
    assert torch.equal(signatures, before)


def test_a_pair_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="there are 1 rows"):
        nearest_pair(torch.ones(1, 2, 3))


def test_merged_by_hand() -> None:
    rows = torch.tensor([[1.0, 2.0], [4.0, 0.0], [9.0, 9.0], [8.0, 4.0]])
    assert merged(rows, [5, 3, 2, 1], 1, 3).tolist() == [[1, 2], [5, 1], [9, 9]]
    assert rows.tolist() == [[1, 2], [4, 0], [9, 9], [8, 4]]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_merged_keeps_shape_and_type(shape: tuple[int, ...]) -> None:
    rows = random(0, 5, *shape).double()
    result = merged(rows, [1] * 5, 0, 4)
    assert result.shape == (4, *shape)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result[0], (rows[0] + rows[4]) / 2)
    assert torch.equal(result[1:], rows[1:4])


@pytest.mark.parametrize("seed", range(5))
def test_repeated_merging_is_the_plain_mean_of_all_members(seed: int) -> None:
    single = random(seed, 9, 2, 5)
    rows, groups = single, [[task] for task in range(9)]
    while len(groups) > 3:
        i, j = nearest_pair(rows)
        rows, groups = merged(rows, [len(group) for group in groups], i, j), merge_groups(groups, i, j)
    assert sorted(task for group in groups for task in group) == list(range(9))
    torch.testing.assert_close(rows, torch.stack([single[group].mean(0) for group in groups]))


def test_merge_groups_by_hand() -> None:
    groups = [[0], [4, 5], [2], [1, 3]]
    assert merge_groups(groups, 1, 3) == [[0], [1, 3, 4, 5], [2]]
    assert groups == [[0], [4, 5], [2], [1, 3]]


@pytest.mark.parametrize(("i", "j"), [(1, 1), (2, 1), (0, 3), (-1, 1)])
def test_rows_that_cannot_be_merged_are_refused(i: int, j: int) -> None:
    with pytest.raises(ValueError, match=f"rows {i} and {j} of 3"):
        merged(torch.ones(3, 2), [1, 1, 1], i, j)
    with pytest.raises(ValueError, match=f"groups {i} and {j} of 3"):
        merge_groups([[0], [1], [2]], i, j)


def test_counts_must_match_the_rows() -> None:
    with pytest.raises(ValueError, match="of 3 with 2 counts"):
        merged(torch.ones(3, 2), [1, 1], 0, 1)


def test_examples() -> None:
    assert doctest.testmod(budget_module).failed == 0
