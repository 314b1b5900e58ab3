"""Determinism: the switches of PyTorch on which it depends whether equal runs give equal bits on a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Read by cuBLAS when a device is first used; with a size of its own for each stream, sums have one order."""


@contextlib.contextmanager
def asked(wanted: bool = True) -> Iterator[None]:
    """Within the block only operations that give equal bits in equal runs; one that has none such raises RuntimeError.

    On a CPU, where they all do at an equal number of threads, no bit of a result changes. A size of cuBLAS's workspace
    that the environment names stays.
    """
    if not wanted:
        yield
        return
    before = flags()
    os.environ.setdefault(WORKSPACE, ":4096:8")
    _switch(algorithms=True, cudnn=True, benchmark=False)
    try:
        yield
    finally:
        _switch(
            algorithms=bool(before["deterministic_algorithms"]),
            cudnn=bool(before["cudnn_deterministic"]),
            benchmark=bool(before["cudnn_benchmark"]),
        )
        if before[WORKSPACE] == "":
            os.environ.pop(WORKSPACE, None)


def flags() -> dict[str, bool | str]:
    """The switches as they are now, by name."""
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        WORKSPACE: os.environ.get(WORKSPACE, ""),
    }


def _switch(*, algorithms: bool, cudnn: bool, benchmark: bool) -> None:
    torch.use_deterministic_algorithms(algorithms)
    torch.backends.cudnn.deterministic = cudnn
    torch.backends.cudnn.benchmark = benchmark
