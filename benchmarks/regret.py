"""Theorem 1 of TreeLoRA as a simulation: what the search for the nearest past task loses while it learns.

The method's own Bandit plays arms whose mean residuals are known. They are the leaves of a complete binary
tree: a child's mean is its parent's plus an offset uniform in ±2^-level, so that near leaves are alike. A
node's smoothness is the true one, the range of the means below it: the smallest with which its bound is a
lower bound whichever arms below it were played. A residual is the mean plus Gaussian noise of standard
deviation 0.1. Players: the lower confidence bound on that tree (smooth), the same where the means were
shuffled over the leaves and each node has the range it then has (shuffled), the flat bound (the same code
with infinite smoothness, which takes the tree away; in shuffled order, so that the order of the first round
tells nothing) and uniform play. All meet the same means and, in the same step, the same noise. A number is the
cumulative pseudo-regret: the sum over T steps of (mean of the played arm - smallest mean of the N arms).

What the tables can show. At c = 2, the paper's value, the bounds are ten times as wide as at 2 x the noise:
the flat player is close to uniform play until T is large, so the gap between tree and flat says that the
tree wastes less on trying arms, not that either has found the best one. At c = 0.2 both find it, once T is
many times N, and the gap is what the tree saves. The third table takes c as one standard deviation of all
residuals seen so far; it holds the differences between arms beside the noise, and shrinks as play settles.
Where T is not well above N the flat player has hardly tried each arm once, whatever c is. Shuffled means
are the contrast: most groups are then nearly as wide as the whole, their own bounds seldom count, and the
tree can save little. How smooth the signatures of real tasks are, no table here can say. All of it takes
about eight minutes of one core.

    python benchmarks/regret.py --out results/tables
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from clbench.methods.treelora.bandit import Bandit, ExplorationUnit
from clbench.methods.treelora.tree import Node

COMMAND = "python benchmarks/regret.py --out results/tables"
STEPS, SEEDS, ARMS = 20_000, 20, (8, 16, 32, 64, 128, 256, 512)
NOISE = 0.1
MARKS_PER_DECADE = 8
COLOURS = {"tree, smooth": "#0072B2", "tree, shuffled": "#56B4E9", "flat": "#D55E00", "uniform": "#000000"}
"""Of the players; Okabe and Ito's palette."""
STYLES = {"tree, smooth": "-", "tree, shuffled": "--", "flat": "-.", "uniform": ":"}
COLUMNS = ["arms", "exploration", "player", "step", "regret_mean", "regret_sd", "seeds"]


class Exploration(NamedTuple):
    """A width of the bounds."""

    c: float
    unit: ExplorationUnit
    name: str
    note: str


EXPLORATIONS = (
    Exploration(2.0, "residual", "c = 2", "the paper's value"),
    Exploration(2 * NOISE, "residual", "c = 0.2", "2 x the noise"),
    Exploration(1.0, "std", "c = 1 sd", "of the residuals seen so far"),
)


class Player(Protocol):
    """What plays: a Bandit, or anything with these two."""

    def choose(self, current: Tensor, /) -> Tensor: ...

    def observe(self, arms: Tensor, residuals: Tensor, /) -> None: ...


def smooth_means(arms: int, draws: torch.Generator) -> Tensor:
    """Means of the leaves `[arms]`, from left to right; `arms` is a power of two."""
    means = torch.full((1,), 0.5, dtype=torch.float64)
    for level in range(1, arms.bit_length()):
        offsets = torch.rand(2**level, dtype=torch.float64, generator=draws) * 2 - 1
        means = means.repeat_interleave(2) + offsets * 2.0**-level
    return means


def problems(arms: int, seeds: int) -> tuple[Tensor, Tensor]:
    """The means of each seed's tree `[seeds, arms]`, and the same ones shuffled."""
    smooth, shuffled = [], []
    for seed in range(seeds):
        draws = torch.Generator().manual_seed(seed)
        smooth.append(smooth_means(arms, draws))
        shuffled.append(smooth[-1][torch.randperm(arms, generator=draws)])
    return torch.stack(smooth), torch.stack(shuffled)


def complete_tree(means: Tensor, flat: Tensor) -> Node:
    """The complete binary tree over the arms of `means` `[layers, arms]`.

    A group's smoothness is the range of the means below it, layer by layer; infinite where `flat` `[layers]`.
    """

    def node(first: int, last: int, depth: int) -> Node:
        tasks, below = tuple(range(first, last)), means[:, first:last]
        width = below.amax(1) - below.amin(1)
        if last - first == 1:
            return Node(tasks, depth, tuple(width.tolist()))
        middle = (first + last) // 2
        halves = (node(first, middle, depth + 1), node(middle, last, depth + 1))
        return Node(tasks, depth, tuple(width.masked_fill(flat, math.inf).tolist()), 0.0, halves)

    return node(0, means.shape[1], 0)


def regret(player: Player, means: Tensor, seeds: int, at: Sequence[int]) -> Tensor:
    """Cumulative pseudo-regret `[len(at), layers]` after each of `at` steps on `means` `[layers, arms]`.

    Layers come in runs of `seeds`; those of equal seed get equal noise.
    """
    layers = len(means)
    draws = torch.Generator().manual_seed(0)
    gaps = means - means.amin(1, keepdim=True)
    current = torch.ones(layers, 1)  # of length 1, against signatures of 0: residuals and smoothness are over 1
    total = torch.zeros(layers, dtype=torch.float64)
    reached = {}
    for step in range(1, max(at) + 1):
        arms = player.choose(current)
        index = arms.unsqueeze(1)
        noise = torch.randn(seeds, generator=draws, dtype=torch.float64).repeat(layers // seeds)
        player.observe(arms, means.gather(1, index).squeeze(1) + NOISE * noise)
        total += gaps.gather(1, index).squeeze(1)
        if step in at:
            reached[step] = total.clone()
    return torch.stack([reached[step] for step in at])


def contest(arms: int, seeds: int, steps: int) -> pd.DataFrame:
    """All players on `seeds` problems: a row for each exploration, player and mark."""
    smooth, shuffled = problems(arms, seeds)
    means = torch.cat([smooth, shuffled, shuffled])  # the layers of the bandit: three players, each with all seeds
    root = complete_tree(means, flat=torch.arange(3 * seeds) >= 2 * seeds)
    at, nothing = marks(steps), torch.zeros(arms, 3 * seeds, 1)
    frames = []
    for width in EXPLORATIONS:
        bandit = Bandit(root, nothing, exploration=width.c, exploration_unit=width.unit)
        found = regret(bandit, means, seeds, at)
        frames.append(rows(found, seeds, at, ("tree, smooth", "tree, shuffled", "flat")).assign(exploration=width.name))
    uniform = Bandit(complete_tree(smooth, torch.ones(seeds) > 0), nothing[:, :seeds], exploration=0, search="random")
    frames.append(rows(regret(uniform, smooth, seeds, at), seeds, at, ("uniform",)).assign(exploration=""))
    return pd.concat(frames).assign(arms=arms, seeds=seeds)[COLUMNS]


def rows(found: Tensor, seeds: int, at: Sequence[int], players: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over the seeds of `found` `[marks, players * seeds]`."""
    by_seed = found.view(len(at), len(players), seeds)
    index = pd.MultiIndex.from_product([at, players], names=["step", "player"])
    columns = {"regret_mean": by_seed.mean(-1).flatten(), "regret_sd": by_seed.std(-1).flatten()}
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=index).reset_index()


def table_steps(steps: int) -> list[int]:
    """The steps of the tables: the last one, a tenth and a hundredth of it."""
    return sorted({max(1, steps // 100), max(1, steps // 10), steps})


def marks(steps: int) -> list[int]:
    """Steps at which the regret is written down: evenly on a logarithmic scale, and those of the tables."""
    count = 1 + round(MARKS_PER_DECADE * math.log10(steps))
    return sorted({*np.geomspace(1, steps, count).round().astype(int).tolist(), *table_steps(steps)})


def page(frame: pd.DataFrame) -> str:
    """Markdown: what the tables are, and the tables."""
    title, _, rest = str(__doc__).partition("\n")
    parts = [f"# {title.rstrip('.')}", rest.strip().removesuffix(COMMAND).strip(), f"Made by `{COMMAND}`."]
    for width in EXPLORATIONS:
        parts.append(f"## {width.name} ({width.note})")
        parts.append(f"Cumulative regret, mean ± standard deviation over {frame.seeds.iloc[0]} seeds.")
        parts.append(table(frame[frame.exploration.isin([width.name, ""])]))
    return "\n\n".join(parts) + "\n"


def table(frame: pd.DataFrame) -> str:
    """Markdown: a row for each T and N, a column for each player."""
    lines = ["| T | N | " + " | ".join(COLOURS) + " |", "| --: | --: |" + " --: |" * len(COLOURS)]
    known = frame.set_index(["step", "arms", "player"])
    for step in table_steps(frame.step.max()):
        for arms in sorted(frame.arms.unique()):
            cells = known.loc[step].loc[arms].loc[list(COLOURS)].itertuples()
            shown = [f"{cell.regret_mean:.0f} ± {cell.regret_sd:.0f}" for cell in cells]
            lines.append(f"| {step:,} | {arms} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Regret against steps: a row of panels for each exploration, a column for each number of arms."""
    arms = sorted(frame.arms.unique())
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(
            len(EXPLORATIONS),
            len(arms),
            figsize=(2.2 * len(arms) + 1.2, 2.6 * len(EXPLORATIONS) + 0.8),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for width, panels in zip(EXPLORATIONS, axes, strict=True):
            panels[0].set_ylabel(f"{width.name}\n{width.note}")
            for count, axis in zip(arms, panels, strict=True):
                panel(axis, frame[(frame.arms == count) & frame.exploration.isin([width.name, ""])])
        for count, axis in zip(arms, axes[0], strict=True):
            axis.set_title(f"{count} arms", fontsize=12)
        figure.supxlabel("steps T")
        figure.supylabel("cumulative regret")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=12)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def panel(axis: Axes, frame: pd.DataFrame) -> None:
    """A line for each player, with a band of one standard deviation."""
    for player, colour in COLOURS.items():
        line = frame[frame.player == player]
        low = np.maximum(line.regret_mean - line.regret_sd, 0.01)  # a logarithmic axis has no place for 0
        axis.fill_between(line.step, low, line.regret_mean + line.regret_sd, color=colour, alpha=0.12, linewidth=0)
        axis.plot(line.step, line.regret_mean, STYLES[player], color=colour, label=player, linewidth=1.8)
    axis.set(xscale="log", yscale="log", xlim=(min(10, frame.step.max() / 2), frame.step.max()), ylim=(0.5, None))
    axis.grid(alpha=0.3, linewidth=0.5)


def powers(text: str) -> list[int]:
    """`8,16,32` as numbers; each must be a power of two, 2 or more."""
    numbers = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if any(number < 2 or number & (number - 1) for number in numbers):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of powers of two such as 8,16,32")
    return numbers


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=powers, default=list(ARMS), help="numbers of arms (default: 8,16,...,512)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps T (default: {STEPS})")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"random problems, 2 or more (default: {SEEDS})")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads on the CPU (default: 1)")
    parser.add_argument(
        "--out", type=Path, help="folder for regret.csv, regret.md and regret.png (default: only print)"
    )
    chosen = parser.parse_args(words)
    if chosen.seeds < 2 or chosen.steps < 2:
        parser.error(f"--seeds is {chosen.seeds} and --steps {chosen.steps}; both must be 2 or more")
    return chosen


def main(words: Sequence[str] | None = None) -> None:
    """Play, print the tables, write them."""
    chosen = arguments(words)
    torch.set_num_threads(chosen.threads)
    frames = []
    for arms in chosen.arms:
        began = time.perf_counter()
        frames.append(contest(arms, chosen.seeds, chosen.steps))
        print(f"{arms} arms: {time.perf_counter() - began:.0f} s", flush=True)
    frame = pd.concat(frames)
    print(page(frame))
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(chosen.out / "regret.csv", index=False, float_format="%.6g")
        (chosen.out / "regret.md").write_text(page(frame), encoding="utf-8")
        draw(frame, chosen.out / "regret.png")


if __name__ == "__main__":
    main()
