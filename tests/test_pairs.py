"""Pairs: what a reader sees of the differences."""

from __future__ import annotations

import csv
import io
import json

import pytest

from clbench.errors import UnknownName
from clbench.metrics import Undefined
from clbench.report import charts, pairs, ranks
from clbench.report.pairs import render
from clbench.significance import TESTS, Comparison, Contest, Pair, Ranking
from clbench.stats import Difference

HOSTILE = "<b>x|y[red]\x1b[31m\n"

SURE = Pair("ewc", "gem", Difference(0.2, 0.1, 0.3, 0.001, 3), 0.002)
UNSURE = Pair("ewc", HOSTILE, Difference(0.01234567, -0.1, 0.1, 0.6, 3), 0.6)
NONE = Pair("gem", HOSTILE, Undefined("no seed in common"), Undefined("no seed in common"))
MADE = [Comparison("digits", "bbbb", "bootstrap", "seeds", (SURE, UNSURE, NONE))]
RUNS = {"ewc": {(0, 0): (0.5, 0.7), (0, 1): (0.6, 0.8)}, "gem": {(0, 0): (0.1, 0.3)}, HOSTILE: {(0, 0): (0.0, 0.0)}}
CONTEST = Contest("digits", "bbbb", {}, RUNS)
RANKING = Ranking(("ewc", "gem", HOSTILE), (1.0, 2.25, 2.75), 1.5, 0.00001, 4, "blocks are 4 suites")


def shown(test: str = "bootstrap", n: int = 3) -> str:
    pair = Pair("ewc", "gem", Difference(0.2, 0.1, 0.3, 0.001, n), 0.002)
    return render([Comparison("digits", "bbbb", test, "units", (pair,))], [], lambda: [], "text")


def test_text() -> None:
    lines = render(MADE, [CONTEST], lambda: [("digits", RANKING)], "text").splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert lines[0] == "digits · protocol bbbb · average %, 95 % interval over seeds (n)"
    assert "ewc 65.00 1.47 to 128.53 (2)" in words
    assert "gem 20.00 one run only: nothing tells how far another would lie (1)" in words
    assert "1 ewc · +20.00* +1.23" in words
    assert "2 gem -20.00* · –" in words
    assert "ewc − gem +20.00 +10.00 to +30.00 0.0010 0.0020 3" in words
    assert "–: no seed in common" in lines
    assert "3 common seeds: the intervals are as wide as so few seeds make them." in lines
    assert "gem 2.25" in words
    assert "blocks are 4 suites" in lines
    assert any("Friedman p <0.0001" in line and "1.50 or more apart" in line for line in lines)
    assert "\x1b" not in "".join(lines)


def test_small_numbers_are_said_to_be_small() -> None:
    assert "One common seed: the intervals hold for that seed only" in shown(n=1)
    assert "common seeds" not in shown(n=9)
    assert "hold for the trained models at hand" in shown("mcnemar")
    assert "5 units: no p can be below 0.0625." in shown("wilcoxon", 5)
    assert "no p can be" not in shown("wilcoxon", 6)


def test_csv_and_json_hold_every_pair() -> None:
    first, second, last = csv.DictReader(io.StringIO(render(MADE, [], lambda: [], "csv")))
    assert (first["difference"], first["low"], first["high"]) == ("20.0", "10.0", "30.0")
    assert (first["p_holm"], first["n"], first["unit"]) == ("0.002", "3", "seeds")
    assert (second["second"], second["difference"]) == (HOSTILE.replace("\x1b", " "), "1.23457")
    assert (last["difference"], last["p"], last["reason"]) == ("", "", "no seed in common")
    assert json.loads(render(MADE, [], lambda: [], "json"))[2]["p_holm"] is None
    with pytest.raises(UnknownName, match="no format of statistics called 'latex'"):
        render(MADE, [], lambda: [], "latex")


def test_the_plot_of_ranks_holds_every_method_and_group() -> None:
    chart = ranks.critical_difference("four suites", RANKING)
    spec = json.loads(charts.spec(chart))
    drawn = [spec["datasets"][layer["data"]["name"]] for layer in spec["layer"]]
    texts = list(dict.fromkeys(value["text"] for values in drawn for value in values if "text" in value))
    assert texts == ["CD 1.50", "ewc  1.00", "gem  2.25", "2.75  <b>x|y[red] [31m"]
    assert [(bar["x"], bar["x2"]) for bar in drawn[1]] == [(1.0, 2.25), (2.25, 2.75)]
    assert spec["title"]["subtitle"][0] == "blocks are 4 suites"
    assert charts.png(chart).startswith(b"\x89PNG")


def test_every_test_says_what_it_means() -> None:
    assert set(pairs.MEANING) == set(TESTS)
