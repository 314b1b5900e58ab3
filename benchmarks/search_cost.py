"""What one step of the search for the nearest past task costs, and what planting the tree costs.

Random signatures in four groups take the place of those of past tasks, in two shapes: the embedded vision
transformer's, as the suite `glyphs` adapts it, and that of a language model with 64 adapted projections of
rank 8 and width 4,096. Each search is the method's own Bandit; a step is one `pull`: choose an arm in every
layer, compare with its signature, remember. Running means and the penalty are not in it; the program
`treelora_step.py` times whole training steps. A contender runs between two blocks of the reference search
`lcb` of its size, so that what slows the machine slows both, and the sizes take turns: read `ratio`, the
median over the blocks of (contender / lcb), before milliseconds. Medians stand with their quartiles. The tree
is planted once a task, not once a step. Sizes that do not fit into `--memory-gib` are left out, and named.

    python benchmarks/search_cost.py --out results/tables
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from clbench import backbones, catalog
from clbench.method import Workbench
from clbench.methods.treelora.bandit import Bandit, Search
from clbench.methods.treelora.tree import Node, build
from clbench.origin import device_name

TASKS = (10, 30, 100, 300)
BUILDS = 3
GROUPS = 4
EXPLORATION = 0.1
COLOURS = {
    "lcb on the tree": "#0072B2",
    "lcb, flat": "#D55E00",
    "greedy": "#009E73",
    "random": "#000000",
    "exhaustive": "#E69F00",
    "reference": "#CC79A7",
}
"""Of the searches; Okabe and Ito's palette."""
MARKERS = dict(zip(COLOURS, "osD^vX", strict=True))
REFERENCE = "lcb on the tree"
TREE = "planting the tree"

Step = Callable[[], object]
Sizes = dict[int, dict[str, Step]]
"""One step of each search, by the number of past tasks."""
Ratios = npt.NDArray[np.float64]
QUARTILES = {"q1": 25, "median": 50, "q3": 75}


class Shape(NamedTuple):
    """The size of one task's signature."""

    name: str
    layers: int
    numbers: int

    def gib(self, tasks: int) -> float:
        """Memory for the signatures and the copy that the exhaustive search keeps."""
        return 2 * 4 * tasks * self.layers * self.numbers / 2**30

    def __str__(self) -> str:
        return f"{self.name} (D = {self.layers}, P = {self.numbers:,})"


def embedded() -> Shape:
    """The shape of the embedded vision transformer under the recipe of its suite."""
    suite = catalog.suite("glyphs")
    model = backbones.build(suite.backbone, 1, 0)
    downs = Workbench(model, suite.recipe, torch.device("cpu"), 1, 0).lora().downs()
    return Shape(suite.backbone, len(downs), downs[0].numel())


LLM = Shape("language model", 64, 8 * 4096)


def planted(shape: Shape, tasks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Signatures `[tasks, layers, numbers]` in groups, and one more `[layers, numbers]` near the first."""
    draws = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draws, device=device)

    size = (shape.layers, shape.numbers)
    centres = normal(GROUPS, *size)
    past = normal(tasks, *size).mul_(0.5)
    for task in range(tasks):
        past[task] += centres[task % GROUPS]
    return past, past[0] + 0.25 * normal(*size)


def without_tree(root: Node) -> Node:
    """One leaf of all tasks."""
    return Node(root.tasks, root.depth, root.smoothness)


def contenders(root: Node, past: Tensor, current: Tensor) -> dict[str, Step]:
    """One step of each search."""
    trees = {"lcb, flat": without_tree(root)}
    rules: dict[str, Search] = {name: name for name in get_args(Search) if name != "lcb"}
    rules = {REFERENCE: "lcb", "lcb, flat": "lcb", **rules}

    def step(name: str) -> Step:
        tree, rule = trees.get(name, root), rules[name]
        bandit = Bandit(tree, past, exploration=EXPLORATION, search=rule, steps_per_epoch=100)
        return lambda: bandit.pull(current)

    return {name: step(name) for name in COLOURS}


def seconds(step: Step, steps: int, device: torch.device) -> float:
    """Seconds of one step, the mean over `steps`; by the device's own events on CUDA."""
    if device.type == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(steps):
            step()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000 / steps
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def race(sizes: Sizes, blocks: int, block_ms: float, device: torch.device) -> Iterator[dict[str, object]]:
    """Time each search `blocks` times between two blocks of the reference of its size; a row for each.

    All sizes take turns in every block, so that they too share what slows the machine.
    """
    lengths = {}
    for tasks, steps in sizes.items():
        for name, step in steps.items():
            seconds(step, 5, device)
            lengths[tasks, name] = max(1, math.ceil(block_ms / 1000 / seconds(step, 2, device)))
    mine: dict[tuple[int, str], list[float]] = {at: [] for at in lengths}
    theirs: dict[tuple[int, str], list[float]] = {at: [] for at in lengths}
    for _ in range(blocks):
        for tasks, steps in sizes.items():
            reference, length = steps[REFERENCE], lengths[tasks, REFERENCE]
            before = seconds(reference, length, device)
            for name in (name for name in steps if name != REFERENCE):
                mine[tasks, name].append(seconds(steps[name], lengths[tasks, name], device))
                after = seconds(reference, length, device)
                theirs[tasks, name].append((before + after) / 2)
                mine[tasks, REFERENCE].append(after)
                before = after
    for tasks, name in lengths:
        ratios = np.array(mine[tasks, name]) / theirs[tasks, name] if name != REFERENCE else None
        yield row(name, tasks, mine[tasks, name], ratios)


def row(what: str, tasks: int, times: Sequence[float], ratios: Ratios | None = None) -> dict[str, object]:
    """Quartiles of the milliseconds, and of the ratios where there are any."""
    found: dict[str, object] = {"what": what, "tasks": tasks}
    for unit, values in (("ms", np.array(times) * 1000), ("ratio", ratios)):
        if values is not None:
            found |= {f"{unit}_{part}": np.percentile(values, share) for part, share in QUARTILES.items()}
    return found


def measure(shape: Shape, counts: Sequence[int], chosen: argparse.Namespace) -> pd.DataFrame:
    """All searches, and the planting of the tree, after each number of past tasks."""
    device, found, sizes = chosen.device, [], {}
    for tasks in counts:
        past, current = planted(shape, tasks, device)
        plantings = [seconds(partial(build, past), 1, device) for _ in range(1 + BUILDS)]
        found.append(row(TREE, tasks, plantings[1:]))
        sizes[tasks] = contenders(build(past), past, current)
    frame = pd.DataFrame([*race(sizes, chosen.blocks, chosen.block_ms, device), *found])
    frame = frame.assign(shape=shape.name, layers=shape.layers, numbers=shape.numbers, blocks=chosen.blocks)
    return frame.assign(device=device_name(device), threads=torch.get_num_threads())


def fitting(shape: Shape, counts: Sequence[int], memory_gib: float) -> list[int]:
    """The numbers of past tasks, from the smallest on, that fit together."""
    fits: list[int] = []
    for tasks in sorted(set(counts)):
        if shape.gib(sum(fits) + tasks) <= memory_gib:
            fits.append(tasks)
    return fits


def shapes(frame: pd.DataFrame) -> list[Shape]:
    """The shapes in a table of measurements."""
    known = frame.drop_duplicates("shape")
    return [Shape(*of) for of in zip(known["shape"], known["layers"], known["numbers"], strict=True)]


def report(frame: pd.DataFrame, left_out: Sequence[str], device: torch.device) -> str:
    """The table as text, under what it was measured on."""
    first = frame.iloc[0]
    lines = [f"One step of the search on {first.device}; {first.threads} threads, {first.blocks} paired blocks."]
    if device.type == "cpu":
        lines.append("Milliseconds are this machine's, at this load; only the ratios carry over to another.")
    for shape in shapes(frame):
        lines += ["", str(shape)]
        lines.append(f"{'':<20}{'N':>5}{'ms':>10}  {'quartiles':<19}{'ratio':>8}  quartiles")
        for one in frame[frame["shape"] == shape.name].sort_values("tasks", kind="stable").itertuples():
            text = f"{one.what:<20}{one.tasks:>5}{one.ms_median:>10.3f}  {f'{one.ms_q1:.3g}-{one.ms_q3:.3g}':<19}"
            if one.what not in (REFERENCE, TREE):
                text += f"{one.ratio_median:>8.2f}  {one.ratio_q1:.2f}-{one.ratio_q3:.2f}"
            lines.append(text.rstrip())
    return "\n".join([*lines, *left_out])


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Milliseconds against past tasks, a panel for each shape, and the planting of the tree."""
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        count = 1 + len(shapes(frame))
        figure, axes = plt.subplots(
            1, count, figsize=(4.6 * count, 4.8), squeeze=False, layout="constrained", gridspec_kw={"wspace": 0.05}
        )
        for axis, shape in zip(axes[0], shapes(frame), strict=False):
            for name, colour in COLOURS.items():
                line(axis, frame[(frame["shape"] == shape.name) & (frame.what == name)], name, colour, MARKERS[name])
            title = f"one step, {shape.name}\nD = {shape.layers}, P = {shape.numbers:,}"
            finish(axis, title, "milliseconds a step", frame.tasks)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        last = axes[0, -1]
        for shape, style in zip(shapes(frame), ("-", "--"), strict=False):
            part = frame[(frame["shape"] == shape.name) & (frame.what == TREE)]
            line(last, part, shape.name, "#000000", "o", style)
        finish(last, "planting the tree,\nonce a task", "milliseconds a task", frame.tasks)
        last.legend(frameon=False)
        figure.supxlabel("past tasks N")
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        note = f"{frame.device.iloc[0]}, {frame.threads.iloc[0]} threads; medians, bars from quartile to quartile"
        figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=9, color="#555555")
        figure.savefig(path, dpi=130)
        plt.close(figure)


def line(axis: Axes, part: pd.DataFrame, label: str, colour: str, marker: str, style: str = "-") -> None:
    """Medians with bars from quartile to quartile."""
    bars = [part.ms_median - part.ms_q1, part.ms_q3 - part.ms_median]
    axis.errorbar(
        part.tasks, part.ms_median, bars, color=colour, marker=marker, linestyle=style, label=label, capsize=2
    )


def finish(axis: Axes, title: str, unit: str, tasks: pd.Series[int]) -> None:
    """Scales and names of a panel."""
    axis.set_title(title, fontsize=11)
    axis.set(xscale="log", yscale="log", ylabel=unit)
    axis.set_xticks(sorted(tasks.unique()), [str(count) for count in sorted(tasks.unique())])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3, linewidth=0.5)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=list(TASKS), help="numbers of past tasks")
    parser.add_argument("--blocks", type=int, default=15, help="paired blocks to time (default: 15)")
    parser.add_argument("--block-ms", type=float, default=40.0, help="least milliseconds of a block (default: 40)")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="leave larger sizes out (default: 4)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads on the CPU (default: 1)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, help="folder for search-cost.csv and .png (default: only print)")
    chosen = parser.parse_args(words)
    if min(chosen.tasks) < 1 or chosen.blocks < 1:
        parser.error(f"--tasks is {chosen.tasks} and --blocks {chosen.blocks}; each must be 1 or more")
    return chosen


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the table, write it."""
    chosen = arguments(words)
    torch.set_num_threads(chosen.threads)
    frames, left_out = [], []
    for shape in (embedded(), LLM):
        counts = fitting(shape, chosen.tasks, chosen.memory_gib)
        left_out += [
            f"Left out: {shape}, N = {tasks}; it takes {shape.gib(tasks):.1f} GiB."
            for tasks in sorted(set(chosen.tasks) - set(counts))
        ]
        if counts:
            frames.append(measure(shape, counts, chosen))
    if not frames:
        raise SystemExit(f"nothing fits in --memory-gib {chosen.memory_gib}; give it more, or --tasks fewer")
    frame = pd.concat(frames)
    print(report(frame, left_out, chosen.device))
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(chosen.out / "search-cost.csv", index=False, float_format="%.6g")
        draw(frame, chosen.out / "search-cost.png")


if __name__ == "__main__":
    main()
