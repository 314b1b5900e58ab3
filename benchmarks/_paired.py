"""Paired timing: things timed in turn in one process, so that what slows the machine slows them alike."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Block = Callable[[], None]
"""Runs a few steps."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """With `--threads`, `--blocks` and `--steps`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=1, help="PyTorch's threads on the CPU (default: 1)")
    made.add_argument("--blocks", type=int, default=15, help="paired blocks to time (default: 15)")
    made.add_argument("--steps", type=int, default=10, help="training steps in a block (default: 10)")
    return made


def arguments(description: str | None) -> argparse.Namespace:
    """What `parser` reads from the command line; sets PyTorch's threads."""
    chosen = parser(description).parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


@dataclass(frozen=True)
class Comparison:
    """Times of one contender and of the reference in the same blocks, seconds."""

    name: str
    target: float
    mine: Sequence[float]
    reference: Sequence[float]

    def row(self, steps: int) -> str:
        """Median milliseconds a step, and the ratio to the reference: median, quartiles, extremes."""
        ratios = np.array(self.mine) / np.array(self.reference)
        low, first, median, third, high = np.percentile(ratios, [0, 25, 50, 75, 100])
        verdict = "met" if median <= self.target else "missed"
        spread = f"{first:.3f}-{third:.3f}  {low:.3f}-{high:.3f}"
        time_ms = 1000 * float(np.median(self.mine)) / steps
        return f"{self.name:<22}{time_ms:>9.2f}{median:>9.3f}   {spread}{self.target:>9.2f}  {verdict}"


def compare(reference: Block, contenders: Mapping[str, tuple[Block, float]], blocks: int) -> list[Comparison]:
    """Time each contender between two runs of the reference, `blocks` times, after a block to warm up.

    The reference of a pair is the mean of the run before and the run after, so that a machine that
    slows down evenly favours neither. Contenders are name -> (block, target ratio).
    """
    for block in (reference, *(block for block, _ in contenders.values())):
        block()
    mine: dict[str, list[float]] = {name: [] for name in contenders}
    theirs: dict[str, list[float]] = {name: [] for name in contenders}
    before = timed(reference)
    for _ in range(blocks):
        for name, (block, _) in contenders.items():
            mine[name].append(timed(block))
            after = timed(reference)
            theirs[name].append((before + after) / 2)
            before = after
    return [Comparison(name, target, mine[name], theirs[name]) for name, (_, target) in contenders.items()]


def timed(block: Block) -> float:
    """Seconds of one block."""
    began = time.perf_counter()
    block()
    return time.perf_counter() - began


def show(title: str, results: Sequence[Comparison], chosen: argparse.Namespace) -> None:
    """Print the table."""
    print(f"{title}; {chosen.threads} threads, {chosen.blocks} paired blocks of {chosen.steps} steps")
    reference_ms = 1000 * float(np.median([t for result in results for t in result.reference])) / chosen.steps
    print(f"{'':<22}{'ms/step':>9}{'ratio':>9}   {'quartiles':<13}{'min-max':<11}{'target':>9}")
    print(f"{'reference':<22}{reference_ms:>9.2f}")
    for result in results:
        print(result.row(chosen.steps))
