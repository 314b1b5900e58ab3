"""Whether tasks of one script lie together in TreeLoRA's signatures, or only tasks taught one after another.

`glyphs` teaches ten tasks of four scripts. In its natural order (0) the tasks of a script follow each
other, so that what looks like a family may be time; other orders shuffle them. For each order one run
with the method's own settings gives the signatures; printed are the mean cosine of pairs of tasks of one
script and of two scripts, and a permutation test of their difference: the share of 10,000 shuffles of the
scripts over the tasks whose difference is at least as large. One number of one seed and order; a small
share in the natural order alone says nothing of scripts.

    python benchmarks/families.py --orders 0,1,2 --threads 1
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from clbench import catalog, plan, runner
from clbench.methods.treelora.guidance import Guidance

SHUFFLES = 10_000


def signatures(order_seed: int, seed: int) -> tuple[list[str], Tensor]:
    """The tasks' names and signatures `[tasks, layers, numbers]` after the whole stream."""
    suite = catalog.suite("glyphs")
    stream = suite.stream(order_seed)
    cell = plan.cells(suite, stream, catalog.rows(suite, ["treelora"], {}), [seed], order_seed, "cpu")[0]
    run = runner.Run(cell, stream, torch.device("cpu"), runner.Silent())
    for index, task in run.lessons():
        run.learn(index, task)
    guidance = next(plugin for plugin in run.plugins if isinstance(plugin, Guidance))
    return [task.name for task in stream], guidance.signatures


def contrast(cosines: Tensor, same: Tensor) -> tuple[float, float]:
    """Mean cosine `[tasks, tasks]` of different tasks where `same` holds, and where it does not."""
    others = ~torch.eye(len(cosines), dtype=torch.bool)
    return cosines[same & others].mean().item(), cosines[~same].mean().item()


def chance(cosines: Tensor, same: Tensor, shuffles: int = SHUFFLES) -> float:
    """The share of shuffles with at least the difference that was found, the found one among them."""
    draws = torch.Generator().manual_seed(0)
    within, between = contrast(cosines, same)
    as_large = 1
    for _ in range(shuffles):
        order = torch.randperm(len(same), generator=draws)
        near, far = contrast(cosines, same[order][:, order])
        as_large += near - far >= within - between
    return as_large / (shuffles + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", default="0,1", help="order seeds, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print("order  within scripts  between scripts  share of shuffles")
    for order in map(int, chosen.orders.split(",")):
        names, found = signatures(order, chosen.seed)
        rows = torch.nn.functional.normalize(found.flatten(1), dim=1)
        scripts = [name.partition("-")[0] for name in names]
        same = torch.tensor([[one == other for other in scripts] for one in scripts])
        within, between = contrast(rows @ rows.T, same)
        print(f"{order:5}  {within:14.3f}  {between:15.3f}  {chance(rows @ rows.T, same):17.4f}", flush=True)


if __name__ == "__main__":
    main()
