"""What becomes of the past tasks above a storage budget: the two most alike are merged, again and again.

Source: TreeLoRA (Qian et al., ICML 2025, arXiv 2506.10355), section 3.3 and appendix A.3, which merge the most similar
leaves and leave the rest open. Ours: most alike are the two of the smallest L1 distance over all layers (the distance
that the search compares by), and a merger is the mean of its tasks, each of equal weight. ``N`` rows stand for one past
task or group of tasks each; ``D`` layers, ``P`` numbers a layer.

>>> groups, signatures = [[0], [1], [2]], torch.tensor([0.0, 9.0, 1.0]).reshape(3, 1, 1)
>>> i, j = nearest_pair(signatures)
>>> merged(signatures, [len(group) for group in groups], i, j).flatten().tolist()
[0.5, 9.0]
>>> merge_groups(groups, i, j)
[[0, 2], [1]]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def nearest_pair(signatures: Tensor) -> tuple[int, int]:
    """Return the rows ``i < j`` of ``signatures`` [N >= 2, D, P] that are nearest in L1, summed over all layers.

    Among equals the pair that is first in order. O(N^2 D P) arithmetic once a task, with one layer's slice and
    N (N - 1) / 2 numbers of memory. Raises ValueError for fewer than two rows.
    """
    count = len(signatures)
    if count < 2:
        raise ValueError(f"there are {count} rows of signatures; a pair needs 2")
    total = torch.zeros(count * (count - 1) // 2, dtype=torch.float64, device=signatures.device)
    for layer in signatures.unbind(1):
        total += torch.nn.functional.pdist(layer.float().contiguous(), p=1)
    i, j = torch.triu_indices(count, count, 1)[:, int(total.argmin())].tolist()  # the pairs in the order of pdist
    return i, j


@torch.no_grad()
def merged(tensor: Tensor, counts: Sequence[int], i: int, j: int) -> Tensor:
    """Return ``tensor`` [N, ...] as [N - 1, ...]: row i the mean of the tasks of rows i and j, row j left out.

    ``counts[k]``: how many tasks row k stands for, so that repeated merging gives the plain mean of all members.
    For whatever is kept of a task: signatures, displacements, adapters. Raises ValueError unless ``0 <= i < j < N``
    and there are N counts.
    """
    if not 0 <= i < j < len(tensor) or len(counts) != len(tensor):
        raise ValueError(f"cannot merge rows {i} and {j} of {len(tensor)} with {len(counts)} counts")
    rows = torch.cat([tensor[:j], tensor[j + 1 :]])
    rows[i] = torch.lerp(tensor[i], tensor[j], counts[j] / (counts[i] + counts[j]))
    return rows


def merge_groups(groups: list[list[int]], i: int, j: int) -> list[list[int]]:
    """Return the groups of task numbers as ``merged`` leaves the rows: group i with that of j, ascending, j left out.

    Raises ValueError unless ``0 <= i < j < len(groups)``.
    """
    if not 0 <= i < j < len(groups):
        raise ValueError(f"cannot merge groups {i} and {j} of {len(groups)}")
    return [sorted(group + groups[j]) if k == i else list(group) for k, group in enumerate(groups) if k != j]
