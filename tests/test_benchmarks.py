from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from torch import Tensor

from clbench.methods.treelora.bandit import Bandit

FOLDER = Path(__file__).parents[1] / "benchmarks"


def program(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A program of `benchmarks/`, imported as Python runs it: with its own folder on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


@pytest.fixture
def regret(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return program("regret", monkeypatch)


class Oracle:
    """Plays the best arm of each layer."""

    def __init__(self, means: Tensor) -> None:
        self.best = means.argmin(1)
        self.seen: list[Tensor] = []

    def choose(self, current: Tensor) -> Tensor:
        return self.best

    def observe(self, arms: Tensor, residuals: Tensor) -> None:
        self.seen.append(residuals)


def test_the_oracle_has_no_regret_and_equal_seeds_have_equal_noise(regret: ModuleType) -> None:
    means = torch.cat(regret.problems(8, seeds=3))
    oracle = Oracle(means)
    assert not regret.regret(oracle, means, 3, [1, 400]).any()
    noise = torch.stack(oracle.seen) - means.amin(1)
    assert torch.equal(noise[:, :3], noise[:, 3:])
    assert noise.std().item() == pytest.approx(regret.NOISE, rel=0.1)


def test_uniform_play_has_the_regret_expected_of_it(regret: ModuleType) -> None:
    means, _ = regret.problems(16, seeds=4)
    root = regret.complete_tree(means, torch.zeros(4, dtype=torch.bool))
    player = Bandit(root, torch.zeros(16, 4, 1), exploration=0.0, search="random")
    found = regret.regret(player, means, 4, [1000])[0]
    torch.testing.assert_close(found, 1000 * (means.mean(1) - means.amin(1)), rtol=0.1, atol=0.0)


def test_offsets_halve_from_level_to_level(regret: ModuleType) -> None:
    means, shuffled = regret.problems(8, seeds=400)
    assert torch.equal(means.sort(1).values, shuffled.sort(1).values)
    # siblings differ by two offsets of the last level, each uniform in ±1/8
    siblings = means.view(400, 4, 2).diff(dim=2)
    assert siblings.abs().max() <= 2 / 8
    assert siblings.var().item() == pytest.approx(2 * (1 / 8) ** 2 / 3, rel=0.1)
    assert means.var().item() == pytest.approx((1 / 4 + 1 / 16 + 1 / 64) / 3, rel=0.1)


def test_smoothness_is_the_range_below_a_node_and_infinite_for_the_flat_player(regret: ModuleType) -> None:
    means = torch.tensor([[0.1, 0.4, 0.2, 0.9], [0.1, 0.4, 0.2, 0.9]], dtype=torch.float64)
    root = regret.complete_tree(means, torch.tensor([False, True]))
    found = {node.tasks: node.smoothness for node in root.walk()}
    assert found[(0, 1, 2, 3)] == pytest.approx((0.8, math.inf))
    assert found[(0, 1)] == pytest.approx((0.3, math.inf))
    assert found[(2, 3)] == pytest.approx((0.7, math.inf))
    assert found[(3,)] == (0.0, 0.0)


def test_residuals_and_smoothness_are_taken_as_they_are(regret: ModuleType) -> None:
    # signatures of 0 against a current one of length 1: the bandit divides by 1
    means, _ = regret.problems(4, seeds=2)
    root = regret.complete_tree(means, torch.zeros(2, dtype=torch.bool))
    assert Bandit(root, torch.zeros(4, 2, 1), exploration=0.1).scale(torch.ones(2, 1)).tolist() == [1.0, 1.0]


def test_where_the_means_are_smooth_the_tree_loses_less_than_flat_and_uniform_play(regret: ModuleType) -> None:
    frame = regret.contest(64, seeds=4, steps=600)
    last = frame[frame.step == 600].set_index(["exploration", "player"]).regret_mean
    uniform = last[("", "uniform")]
    for exploration in ("c = 2", "c = 0.2", "c = 1 sd"):
        assert last[(exploration, "tree, smooth")] < 0.7 * last[(exploration, "flat")]
        assert last[(exploration, "flat")] < uniform


def test_regret_writes_tables_and_a_plot(
    regret: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--arms", "2,4", "--steps", "20", "--seeds", "2", "--out", str(tmp_path)]
    regret.main(words)
    page = (tmp_path / "regret.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert page.count("| 20 | 4 |") == len(regret.EXPLORATIONS)
    assert (tmp_path / "regret.png").stat().st_size > 0
    frame = pd.read_csv(tmp_path / "regret.csv", keep_default_na=False)
    assert set(frame.player) == set(regret.COLOURS)
    assert set(frame.step) >= {1, 2, 20}


@pytest.mark.parametrize("words", [["--arms", "8,x"], ["--arms", "12"], ["--seeds", "1"]])
def test_regret_refuses_what_it_cannot_play(
    regret: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        regret.main(words)
    assert words[1] in capsys.readouterr().err


def test_search_cost_times_every_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = program("search_cost", monkeypatch)
    monkeypatch.setattr(cost, "LLM", cost.Shape("language model", 3, 32))
    words = ["--tasks", "3", "8", "--blocks", "2", "--block-ms", "0.1", "--memory-gib", "0.0005", "--out"]
    cost.main([*words, str(tmp_path)])
    printed = capsys.readouterr().out
    assert "only the ratios carry over" in printed
    assert "Left out: glyph-vit (D = 6, P = 2,048), N = 8;" in printed
    frame = pd.read_csv(tmp_path / "search-cost.csv")
    sizes = {("glyph-vit", 3), ("language model", 3), ("language model", 8)}
    assert set(zip(frame["shape"], frame.tasks, strict=True)) == sizes
    assert (frame.groupby(["shape", "tasks"]).what.agg(set) == {*cost.COLOURS, cost.TREE}).all()
    assert (frame.ms_median > 0).all()
    assert frame.ratio_median.isna().equals(frame.what.isin([cost.REFERENCE, cost.TREE]))
    assert (tmp_path / "search-cost.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "message"), [(["--tasks", "0"], "--tasks is [0]"), (["--memory-gib", "0"], "nothing fits")]
)
def test_search_cost_refuses_what_it_cannot_measure(
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        program("search_cost", monkeypatch).main(words)
    assert message in f"{stopped.value} {capsys.readouterr().err}"


def test_flat_search_has_the_whole_past_in_one_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = program("search_cost", monkeypatch)
    past, current = cost.planted(cost.Shape("small", 2, 16), 9, torch.device("cpu"))
    assert (past - current).abs().sum(-1).argmin(0).tolist() == [0, 0]
    flat = cost.without_tree(cost.build(past))
    assert [node.tasks for node in flat.walk()] == [tuple(range(9))]


@pytest.mark.slow
def test_a_step_of_the_method_is_timed_against_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = program("treelora_step", monkeypatch)
    monkeypatch.setattr(step, "PAST_TASKS", (1, 2))
    monkeypatch.setattr("sys.argv", ["treelora_step.py", "--blocks", "1", "--steps", "1"])
    step.main()
    printed = capsys.readouterr().out
    assert [line.split("  ")[0] for line in printed.splitlines()[2:]] == [
        "reference",
        "control",
        "lcb, N = 1",
        "lcb, N = 2",
        "exhaustive, N = 1",
        "exhaustive, N = 2",
    ]


def test_past_tasks_are_planted_in_the_state_that_the_method_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    step = program("treelora_step", monkeypatch)
    strategy = step.standing(step.METHOD, 3, steps=2, decomposition="none")
    guidance = next(plugin for plugin in strategy.plugins if "past" in plugin.state())
    strategy.block()
    assert guidance.state()["past"].shape == (3, 6, 2048)
    assert guidance.bandit.counts.shape == (6, 3)
    assert guidance.bandit.counts.sum(1).tolist() == [2.0] * 6


def test_families_that_lie_together_are_told_from_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    families = program("families", monkeypatch)
    draws = torch.Generator().manual_seed(0)
    of = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    same = of[:, None] == of
    centres = torch.nn.functional.normalize(torch.randn(3, 64, generator=draws), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(9, 64, generator=draws), dim=1)
    for rows, planted in ((centres[of] + 0.3 * noise, True), (noise, False)):
        unit = torch.nn.functional.normalize(rows, dim=1)
        within, between = families.contrast(unit @ unit.T, same)
        assert (within - between > 0.5) == planted
        assert (families.chance(unit @ unit.T, same, 500) < 0.02) == planted
    assert families.contrast(torch.full((9, 9), 0.25), same) == (0.25, 0.25)
