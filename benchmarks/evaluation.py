"""What the scoring after task 10 of 10 costs with the frozen backbone's features kept, against naive scoring.

Each method learns the ten tasks of `glyphs` from a few images each; what an answer costs does not depend on how good
it is. Two references, each timed in turn with ours, all test images of the ten tasks in every block:

* `task by task`: the test images of one task after another, everything computed anew, as common code does;
* `every adapter`: one pass over all images for the queries and one for each task's adapter, of which each image then
  takes one, as code must whose batch can hold one adapter only. Only for methods with an adapter a task.

Ours is one pass over the union: with the features kept in memory, as in every round after the first; with nothing
kept; and with features read from the disk, as in the first round of another seed or method. Read the column
`ratio`: the median over the blocks of (ours / reference); quartiles and extremes say how quiet the machine was.
Kept features spare the untouched backbone's pass, not the one through prompts or adapters: where an answer takes both,
the ratio to `task by task` cannot fall below a half.

    python benchmarks/evaluation.py --threads 1 --blocks 5 --test-images 120
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _paired import Block, compare

from clbench import catalog, plan, runner
from clbench.featurecache import FeatureCache
from clbench.stream import Stream, Union

SUITE = "glyphs"
METHODS = {"ncm": None, "l2p": None, "dualprompt": "expert", "hidelora": "adapters"}
"""Method -> where its plugin keeps each task's adapter; None where it has none."""
TRAINED_IMAGES = 64
TARGET = 0.15
CPU = torch.device("cpu")


def shortened(stream: Stream, images: int) -> Stream:
    """The stream with the first training images of each task, all of the test images."""
    return Stream(
        tuple(replace(task, train=task.train.subset(range(images))) for task in stream),  # type: ignore[attr-defined]
        stream.class_names,
    )


def learned(method: str, stream: Stream, cache: FeatureCache) -> runner.Run:
    """A run after its last task."""
    suite = catalog.suite(SUITE)
    suite = replace(suite, recipe=suite.recipe.model_copy(update={"epochs": 1, "eval_samples": 1}))
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, [method], {}), [0], 0, "cpu")
    run = runner.Run(cell, stream, CPU, runner.Silent(), cache)
    for lesson in run.lessons():
        run.learn(*lesson)
    return run


def task_by_task(run: runner.Run) -> Block:
    """Each task's images on their own, everything computed anew."""

    def block() -> None:
        for index, task in enumerate(run.stream):
            with run.vault.open():
                run.strategy.answer(task.test, torch.full((len(task.test),), index))

    return block


def every_adapter(run: runner.Run, kept_in: str) -> Block:
    """The queries of all images, then all images through each task's adapter."""
    adapters: Any = next(vars(plugin)[kept_in] for plugin in run.plugins if kept_in in vars(plugin))
    examples = Union([task.test for task in run.exam.plain])

    @torch.no_grad()
    def block() -> None:
        run.model.eval()
        for places in torch.arange(len(examples)).split(run.strategy.recipe.eval_batch_size):
            inputs, targets = examples.batch(places, CPU)
            run.model.query(inputs)
            for task in range(len(run.stream)):
                adapters.choose(torch.full((len(inputs),), task))
                run.model.reply(inputs, targets)
            adapters.choose(None)

    return block


def ours(run: runner.Run, keep: str) -> Block:
    """One pass over the union with features kept `nowhere`, in `memory` or on the `disk`."""

    def block() -> None:
        assert run.recall is not None
        if keep == "disk":
            run.recall.forget()
        run.exam.recall = None if keep == "nowhere" else run.recall
        run.exam.score(len(run.stream) - 1)

    return block


def timed(method: str, kept_in: str | None, stream: Stream, blocks: int) -> list[str]:
    """The method's lines of the table."""
    with tempfile.TemporaryDirectory() as folder:
        run = learned(method, stream, FeatureCache(Path(folder), 2**30))
        memory = {"kept in memory": (ours(run, "memory"), TARGET)}
        others = {"nothing kept": (ours(run, "nowhere"), 1.0), "kept on the disk": (ours(run, "disk"), TARGET)}
        found = {"task by task": compare(task_by_task(run), {**memory, **others}, blocks)}
        if kept_in is not None:
            found["every adapter"] = compare(every_adapter(run, kept_in), memory, blocks)
    lines = []
    for name, results in found.items():
        lines += [f"{method} against '{name}', {1000 * float(np.median(results[0].reference)):.0f} ms"]
        lines += [f"  {result.row(1)}" for result in results]
    return lines


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads on the CPU (default: 1)")
    parser.add_argument("--blocks", type=int, default=5, help="paired blocks to time (default: 5)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="which (all)")
    parser.add_argument("--test-images", type=int, help="ask so many of each task (all)")
    chosen = parser.parse_args(words)
    torch.set_num_threads(chosen.threads)
    stream = shortened(catalog.suite(SUITE).stream(), TRAINED_IMAGES)
    if chosen.test_images:
        few = range(chosen.test_images)
        stream = Stream(tuple(replace(task, test=task.test.subset(few)) for task in stream), stream.class_names)  # type: ignore[attr-defined]
    asked = sum(len(task.test) for task in stream)
    print(f"scoring {asked} images of {len(stream)} tasks; {chosen.threads} threads, {chosen.blocks} paired blocks")
    print(f"  {'':<22}{'ms':>9}{'ratio':>9}   {'quartiles':<13}{'min-max':<11}{'target':>9}")
    for method in chosen.methods:
        print("\n".join(timed(method, METHODS[method], stream, chosen.blocks)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
