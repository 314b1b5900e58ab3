"""`clbench tree`: which run is meant, what is printed, what is drawn, what is said when it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clbench.cli import app
from clbench.record import Record
from clbench.store import Store


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which two of three runs recorded a tree of one past task."""
    root = {"tasks": [0], "depth": 0, "smoothness": [0.0]}
    note = {"tree": {"layers": ["one"], "growth": [{"task": 1, "arms": [[0]], "root": root}]}}
    store = Store(tmp_path_factory.mktemp("planted"))
    for method, seed, key, notes in (
        ("climber", 0, "aa11", note),
        ("climber", 1, "aa22", note),
        ("walker", 0, "b", {}),
    ):
        record = Record.example(method=method, seed=seed, key=key, notes=notes)
        store.cell(record.suite, method, key).save(record, {})
        store.publish(record, None)
    return store.root


@pytest.mark.parametrize("run", ["aa1", "digits/climber/seed0", "climber/seed0", "seed0"])
def test_a_tree_is_found_by_parts_of_the_name_of_its_run(planted: Path, run: str) -> None:
    for more in ((), ("--published",)):
        done = ask("tree", run, *more, "--store", planted)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("digits/climber/seed0 · aa11\n\nTree before b\n  a\n")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            "climbr",
            "no run with a tree called 'climbr'. Did you mean 'climber'? Known: climber, digits/climber.",
        ),
        ("climber/seed7", "Did you mean 'climber'? Known: climber, digits/climber."),
        ("", "called ''"),
        ("climber", "'climber' fits 2 runs; name one by its key, the last part: digits/climber/seed0/aa11, digits/"),
        ("walker", "the run digits/walker/seed0/b recorded no tree: its record has no field 'notes.tree'"),
    ],
)
def test_a_tree_that_is_not_found(planted: Path, run: str, words: str) -> None:
    done = ask("tree", run, "--store", planted)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert words in line


def test_a_store_without_trees(tmp_path: Path) -> None:
    record = Record.example(key="b", method="walker")
    Store(tmp_path).cell(record.suite, record.method, record.key).save(record, {})
    done = ask("tree", "climber", "--store", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"clbench: no run in the store '{tmp_path}' recorded a tree; run a method that does")


def test_many_fitting_runs_are_counted_not_listed(planted: Path, tmp_path: Path) -> None:
    (given,) = [record for record in Store(planted).load().records if record.key == "aa11"]
    for number in range(15):
        record = given.model_copy(update={"key": f"k{number:02}", "variant": f"c={number}"})
        Store(tmp_path).cell(record.suite, record.method, record.key).save(record, {})
    said = ask("tree", "climber", "--store", tmp_path).stderr
    assert "fits 15 runs" in said
    assert said.endswith("digits/climber/seed0/k11 (c=11), and 3 more.\n")


def test_a_tree_as_json_and_drawn(planted: Path, tmp_path: Path) -> None:
    done = ask("tree", "aa1", "--format", "json", "--out", tmp_path / "out", "--store", planted)
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert (shown["key"], shown["tasks"], shown["chosen"]) == ("aa11", ["a", "b"], [])
    assert shown["tree"]["growth"][0]["arms"] == [[0]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tree.png", "growth.png", "tree.html"}
    assert all(path.name in done.stderr for path in (tmp_path / "out").iterdir())


def test_a_tree_that_cannot_be_drawn_or_printed(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = ask("tree", "aa1", "--out", tmp_path / "file", "--store", planted)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"cannot draw into '{tmp_path / 'file'}'" in done.stderr
    done = ask("tree", "aa1", "--format", "xml", "--store", planted)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Known: json, text" in done.stderr


def test_a_tree_is_printed_without_anything_heavy(planted: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from clbench.cli import app\n"
        f"done = CliRunner().invoke(app, ['tree', 'aa1', '--store', {str(planted)!r}])\n"
        "assert done.exit_code == 0, done.output\n"
        "assert not {'torch', 'pandas', 'altair', 'vl_convert'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
