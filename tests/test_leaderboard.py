"""The commands that compare what was run, on a store made by hand."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from clbench import catalog
from clbench.cli import app
from clbench.record import Record
from clbench.store import Store

SHARES = {"seqlora": (0.50, 0.51, 0.49), "ewc": (0.54, 0.47, 0.51), "replay": (0.9, 0.9, 0.91)}
"""Of the examples that each of three seeds gets right."""


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def words(result: Result) -> str:
    """What a refusal says: one line, without a traceback."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two suites, three methods, three seeds, and a failed run."""
    root = tmp_path_factory.mktemp("store")
    labels, tasks = np.zeros(400, dtype=np.int32), np.repeat([0, 1], 200).astype(np.int32)
    difficulty = np.random.default_rng(0).random(400)
    for suite in ("tiny", "letters"):
        for method, shares in SHARES.items():
            for seed, share in enumerate(shares):
                right = difficulty < share
                scores = tuple(float(right[tasks == task].mean()) for task in (0, 1))
                record = Record.example(
                    **{"suite": suite, "suite_hash": suite[0] * 4, "method": method, "seed": seed},
                    key=f"{suite}{method}{seed}",
                    fingerprint=catalog.current_fingerprint(method),
                    scores=((None, None), (1.0, None), scores),
                    suite_protocol={**Record.example().suite_protocol, "backbone": f"{suite}-vit"},
                )
                Store(root).publish(record, {"labels": labels, "tasks": tasks, "round_2": np.where(right, 0, 1)})
    failed = Record.example(
        **{"suite": "tiny", "suite_hash": "tttt", "method": "l2p", "key": "bad", "status": "failed"},
        **{"reason": "the loss is not finite", "scores": (), "costs": ()},
        fingerprint=catalog.current_fingerprint("l2p"),
    )
    Store(root).publish(failed, None)
    return root


@pytest.mark.parametrize(
    ("suffix", "start"),
    [(".csv", "suite,"), (".md", "**letters ·"), (".tex", "% needs"), (".json", "["), (".txt", "let")],
)
def test_the_suffix_is_the_format(store: Path, tmp_path: Path, suffix: str, start: str) -> None:
    out = tmp_path / f"all{suffix}"
    done = ask("leaderboard", "--out", out, "--store", store, "--published")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"8 rows in '{out}'\n"
    assert out.read_text(encoding="utf-8").startswith(start)


def test_without_a_file_it_is_printed(store: Path, tmp_path: Path) -> None:
    printed = ask("leaderboard", "--store", store, "--published")
    lines = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert [line["suite"] for line in lines] == ["letters"] * 3 + ["tiny"] * 5
    assert [line["rank"] for line in lines] == ["1", "2", "2", "1", "2", "2", "", ""]
    assert [line["status"] for line in lines[-2:]] == ["failed", "missing"]
    one = ask("leaderboard", "tiny", "--format", "latex", "--store", store, "--published")
    assert r"\toprule" in one.stdout
    assert one.stdout == ask("table", "tiny", "--format", "latex", "--store", store, "--published").stdout
    out = tmp_path / "all.csv"
    assert ask("leaderboard", "--out", out, "--format", "json", "--store", store, "--published").exit_code == 0
    assert len(json.loads(out.read_text(encoding="utf-8"))) == 8


def test_tables_are_sorted_and_filtered(store: Path) -> None:
    def methods(*options: str) -> list[str]:
        done = ask("table", "tiny", "--format", "json", "--store", store, "--published", *options)
        assert done.exit_code == 0, done.output
        return [line["method"] for line in json.loads(done.stdout)]

    assert methods() == ["replay", "ewc", "seqlora", "l2p", "ncm"]
    assert methods("--sort", "-accuracy") == ["seqlora", "ewc", "replay", "l2p", "ncm"]
    assert methods("--sort", "forgetting", "--method", "ewc", "--method", "replay") == ["replay", "ewc"]
    assert methods("--backbone", "tiny-vit", "--protocol", "tt", "--protocol", "tttt") == methods()
    done = ask("leaderboard", "--backbone", "letters-vit", "--store", store, "--published")
    assert {line["suite"] for line in csv.DictReader(io.StringIO(done.stdout))} == {"letters"}


def test_what_was_asked_wrongly_is_one_sentence(store: Path, tmp_path: Path) -> None:
    def of(*asked: str | Path) -> str:
        return words(ask(*asked, "--store", store, "--published"))

    assert "no column to sort by called 'acuracy'. Did you mean 'accuracy'" in of("table", "tiny", "--sort", "acuracy")
    assert "no method in these tables called 'joint'" in of("table", "tiny", "--method", "joint")
    assert "no format called 'md'" in of("table", "tiny", "--format", "md")
    assert "does not say in which format" in of("leaderboard", "--out", tmp_path / "all.doc")
    assert "no test called 'macnemar'. Did you mean 'mcnemar'" in of("stats", "tiny", "--test", "macnemar")
    assert "no format of statistics called 'latex'" in of("stats", "tiny", "--format", "latex")
    assert "no method among the finished runs of 'tiny' called 'l2p'" in of("stats", "tiny", "--method", "l2p")
    assert "no two methods to compare" in of("stats", "tiny", "--method", "ewc")
    assert "neither .png nor .svg" in of("stats", "tiny", "--draw", "x.pdf")
    assert "no suite called 'tinny'. Did you mean 'tiny'" in of("stats", "tinny")
    two = ("stats", "tiny", "letters", "--draw", tmp_path / "x.svg", "--test", "mcnemar")
    assert "no mean ranks to draw" in of(*two)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("test", ["bootstrap", "mcnemar"])
def test_statistics_find_the_difference_that_is_there(store: Path, test: str) -> None:
    done = ask("stats", "tiny", "--test", test, "--format", "json", "--store", store, "--published")
    assert done.exit_code == 0, done.output
    pairs = {(pair["first"], pair["second"]): pair for pair in json.loads(done.stdout)}
    assert list(pairs) == [("replay", "ewc"), ("replay", "seqlora"), ("ewc", "seqlora")]
    real = pairs["replay", "ewc"]
    assert real["difference"] == pytest.approx(42)
    assert real["low"] < real["difference"] < real["high"]
    assert real["p"] <= real["p_holm"] < 0.05
    assert real["n"] == {"bootstrap": 3, "mcnemar": 400}[test]


def test_statistics_of_chosen_methods_and_of_several_suites(store: Path) -> None:
    chosen = ("--method", "ewc", "--method", "seqlora", "--store", store, "--published")
    one = ask("stats", "tiny", *chosen, "--format", "csv")
    (pair,) = csv.DictReader(io.StringIO(one.stdout))
    assert {pair["first"], pair["second"]} == {"ewc", "seqlora"}
    both = ask("stats", "tiny", "letters", *chosen, "--test", "wilcoxon").stdout
    assert "tiny + letters · Wilcoxon's signed-rank test" in both
    assert "2 suites: no p can be below 0.5." in both


def test_mean_ranks_are_drawn(store: Path, tmp_path: Path) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<svg")):
        done = ask("stats", "tiny", "--draw", tmp_path / name, "--store", store, "--published")
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.slow
def test_a_gallery_of_the_store(store: Path, tmp_path: Path) -> None:
    asked = ("gallery", "--out", tmp_path / "README.md", "--store", store, "--published")
    assert ask(*asked, "--no-pictures").exit_code == 0
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    done = ask(*asked)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == page
    assert "## tiny" in page
    assert "random patterns" in page
    linked = {line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert linked == drawn
    assert {"figures/tiny-ranks.png", "figures/letters-curves.png"} <= drawn


def test_a_gallery_of_what_failed_or_is_stale_has_no_pictures(tmp_path: Path) -> None:
    bad = {"status": "failed", "reason": "x", "scores": (), "costs": ()}
    Store(tmp_path).publish(Record.example(suite="broken", method="ewc", **bad), None)
    Store(tmp_path).publish(Record.example(suite="older", method="ewc", key="old"), None)
    done = ask("gallery", "--out", tmp_path / "page.md", "--store", tmp_path, "--published")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "stale: the method's source has changed" in page
    assert "failed: x" in page
    assert "![" not in page
    assert "no finished run of 'older' is of today's source" in words(
        ask("stats", "older", "--store", tmp_path, "--published")
    )


def test_missing_contenders_are_rows(store: Path) -> None:
    lines = json.loads(ask("table", "tiny", "--format", "json", "--store", store, "--published").stdout)
    states = {line["method"]: line["status"] for line in lines}
    absent = {contender.method for contender in catalog.suite("tiny").contenders} - {"replay", "ewc", "seqlora", "l2p"}
    assert absent
    assert {method for method, status in states.items() if status == "missing"} == absent


def test_comparing_loads_nothing_heavy(store: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from clbench.cli import app\n"
        f"store, out = {str(store)!r}, {str(tmp_path / 'a.md')!r}\n"
        "def ask(*words):\n"
        "    done = CliRunner().invoke(app, [*words, '--store', store, '--published'])\n"
        "    assert done.exit_code == 0, done.output\n"
        "    return sorted({'torch', 'avalanche', 'timm', 'scipy', 'pandas', 'altair'} & set(sys.modules))\n"
        "assert ask('table', 'tiny', '--sort', 'bwt') == []\n"
        "assert ask('leaderboard', '--format', 'markdown') == []\n"
        "assert ask('stats', 'tiny') == ['scipy']\n"
        "assert 'torch' not in ask('gallery', '--out', out, '--no-pictures')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
