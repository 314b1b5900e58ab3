from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from clbench import __version__, doctor, live, runner, skeleton, views
from clbench.cli import app
from clbench.errors import BadValue, ClbenchError
from clbench.executors import Quiet
from clbench.pace import Pace
from clbench.record import Record
from clbench.row import columns
from clbench.store import Store
from clbench.table import REFERENCE_METHOD


def ask(*words: str | Path) -> Result:
    here = ("--device", "cpu") if words[0] == "run" and words[1:] and "--device" not in words else ()
    return CliRunner().invoke(app, [str(word) for word in (*words, *here)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the tiny suite is finished."""
    store = tmp_path_factory.mktemp("finished")
    done = ask("run", "tiny", "--store", store)
    assert done.exit_code == 0, done.output
    return store


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_version_and_help() -> None:
    assert ask("--version").stdout == f"clbench {__version__}\n"
    shown = ask("--help").stdout
    commands = ("run", "table", "leaderboard", "tree", "list", "show", "check", "tune", "pretrain", "new", "doctor")
    for command in commands:
        assert f"\n  {command} " in shown


def test_running_twice_finds_nothing_missing_and_shows_the_same_table(finished: Path) -> None:
    before = snapshot(finished)
    again = ask("run", "tiny", "--store", finished)
    assert again.exit_code == 0
    assert again.stderr == "3 cells of tiny; nothing is missing.\n"
    assert again.stdout == ask("table", "tiny", "--store", finished).stdout
    assert {
        path: text for path, text in snapshot(finished).items() if path.name != ".writable"
    }.items() <= before.items()


def test_nothing_missing_and_tables_import_nothing_heavy(finished: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from clbench.cli import app\n"
        f"store, out = {str(finished)!r}, {str(tmp_path / 'all.csv')!r}\n"
        "def ask(*words):\n"
        "    done = CliRunner().invoke(app, words)\n"
        "    assert done.exit_code == 0, done.output\n"
        "    return done.output\n"
        "def heavy():\n"
        "    return sorted({'torch', 'avalanche', 'timm'} & set(sys.modules))\n"
        "ask('--help'), ask('list', 'methods'), ask('list', 'runs', '--store', store)\n"
        "ask('table', 'tiny', '--store', store), ask('leaderboard', 'tiny', '--out', out, '--store', store)\n"
        "assert heavy() == [], heavy()\n"
        "assert 'nothing is missing' in ask('run', 'tiny', '--device', 'auto', '--store', store)\n"
        "assert set(heavy()) <= {'torch'}, heavy()\n"
    )
    without = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=without)
    assert done.returncode == 0, done.stderr


def test_a_memo_is_worth_nothing_without_its_records(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "runs" / ".plans").mkdir(parents=True)
    for path in (finished / "runs" / ".plans").iterdir():
        (store / "runs" / ".plans" / path.name).write_bytes(path.read_bytes())
    assert "3 cells of tiny on cpu; 3 missing." in ask("run", "tiny", "--dry-run", "--store", store).stderr


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = ask("run", "tiny", "--method", "ncm", "--seed", "0", "--seed", "1", "--dry-run", "--store", tmp_path / "new")
    assert done.exit_code == 0
    assert "2 cells of tiny" in done.stderr
    title, head, memory, empty, *cells = done.stdout.splitlines()
    assert title.startswith("Memory in MiB")
    assert dict(zip(head.split(), memory.split(), strict=False))["activations"] == "0.0"
    assert (empty, cells) == ("", ["ncm seed 0  missing", "ncm seed 1  missing"])
    assert list(tmp_path.iterdir()) == []


def test_dry_run_forecasts_from_what_was_timed(finished: Path) -> None:
    done = ask("run", "tiny", "--method", "ncm", "--seed", "0", "--seed", "5", "--dry-run", "--store", finished)
    assert re.search(r"2 cells of tiny on cpu; 1 missing, about [0-9] s\.", done.stderr)  # a busy machine takes seconds
    assert re.search(r"\n\nncm seed 0  finished\nncm seed 5  missing, about [0-9] s\n$", done.stdout)


def test_the_store_may_come_from_the_environment(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLBENCH_STORE", str(finished))
    assert "ncm" in ask("table", "tiny").stdout


def test_publish_and_read_what_is_published(finished: Path) -> None:
    assert ask("table", "tiny", "--published", "--store", finished).exit_code == 2
    done = ask("run", "tiny", "--publish", "--store", finished)
    assert "3 records published" in done.stderr
    assert len(list((finished / "records" / "tiny").glob("*.json"))) == 3
    assert ask("table", "tiny", "--published", "--store", finished).stdout == done.stdout


def test_settings_reach_a_method_and_the_recipe(tmp_path: Path) -> None:
    words = ["--set", "epochs=2", "--set", "recipe.lora_rank=1", "--threads", "1"]
    done = ask("run", "tiny", "--method", "seqlora", *words, "--store", tmp_path)
    assert done.exit_code == 0
    (record,) = Store(tmp_path).load("tiny").records
    assert record.variant == "epochs=2, recipe.lora_rank=1"
    assert record.params["epochs"] == 2
    assert record.recipe["lora_rank"] == 1
    assert record.costs[0].epochs == 2


@pytest.mark.parametrize("format", ["text", "csv", "markdown", "latex", "json"])
def test_table_formats(finished: Path, format: str) -> None:
    done = ask("table", "tiny", "--format", format, "--store", finished)
    assert done.exit_code == 0
    assert "replay" in done.stdout
    if format == "json":
        assert {line["method"] for line in json.loads(done.stdout)} == {"seqlora", "replay", "ncm"}


def test_leaderboard_columns(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    assert ask("leaderboard", "--out", out, "--store", finished).exit_code == 0
    with out.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [column.name for column in columns(REFERENCE_METHOD)]
    assert [line["suite"] for line in lines] == ["tiny"] * 3
    assert "overhead_vs_seqlora" in lines[0]


def test_a_record_of_a_changed_method_is_stale(finished: Path, tmp_path: Path) -> None:
    (record, *_) = [r for r in Store(finished).load("tiny").records if r.method == "replay"]
    old = record.model_copy(update={"fingerprint": "0ld"})
    path = tmp_path / "runs" / "tiny" / "replay" / old.key
    path.mkdir(parents=True)
    (path / "record.json").write_text(old.model_dump_json(), encoding="utf-8")
    assert json.loads(ask("table", "tiny", "--format", "json", "--store", tmp_path).stdout)[0]["status"] == "stale"


def test_of_a_method_given_by_file_the_latest_source_counts(tmp_path: Path) -> None:
    def made(key: str, fingerprint: str, day: int) -> Record:
        origin = Record.example().origin.model_copy(update={"started": f"2026-01-0{day}T00:00:00+00:00"})
        return Record.example(key=key, method="mine", fingerprint=fingerprint, seed=day, origin=origin)

    loaded = SimpleNamespace(last_outcomes=lambda record: None)
    records = [made("a", "old", 1), made("b", "new", 2)]
    (row,) = views.tables(loaded, records)[0].rows  # type: ignore[arg-type]
    assert (row.n_seeds, row.status) == (1, "done")
    assert row.avg_accuracy_mean == 70.0
    (row,) = views.tables(loaded, records[:1], {"mine": "new"})[0].rows  # type: ignore[arg-type]
    assert row.status == "stale"


def test_lists() -> None:
    methods = json.loads(ask("list", "methods", "--format", "json").stdout)
    assert {"name", "line", "paper"} == set(methods[0])
    assert "treelora" in {method["name"] for method in methods}
    assert "tiny" in ask("list", "suites").stdout
    assert "glyph-vit" in ask("list", "backbones").stdout


def test_list_of_runs(finished: Path) -> None:
    runs = json.loads(ask("list", "runs", "--format", "json", "--store", finished).stdout)
    assert {(run["method"], run["status"]) for run in runs} == {
        ("seqlora", "done"),
        ("replay", "done"),
        ("ncm", "done"),
    }
    assert all(0 <= run["accuracy"] <= 100 for run in runs)


def test_show() -> None:
    shown = json.loads(ask("show", "ewc", "--format", "json").stdout)
    (weight,) = [field for field in shown["fields"] if field["name"] == "penalty_weight"]
    assert weight["type"] == "a number >= 0"
    assert weight["search"] == [1, 1e5]
    assert shown["resources"]["buffer_samples"] == 0
    text = ask("show", "replay").stdout
    assert "replay.buffer_samples=" in text
    assert "Chaudhry" in text
    assert "recipe.lora_rank=2" in ask("show", "tiny").stdout
    assert "sha256" in ask("show", "glyph-vit").stdout


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = runner.run, []

    def interrupted(*words: Any, **named: Any) -> Any:
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*words, **named)

    monkeypatch.setattr(runner, "run", interrupted)
    done = ask("run", "tiny", "--method", "ncm", "--seed", "0", "--seed", "1", "--store", tmp_path)
    assert done.exit_code == 130
    assert "1 of 2 cells are finished and kept; the same command goes on" in done.stderr
    again = ask("run", "tiny", "--method", "ncm", "--seed", "0", "--seed", "1", "--store", tmp_path)
    assert again.exit_code == 0
    assert "2 cells of tiny on cpu; 1 missing" in again.stderr


def test_tune_prints_the_words_to_use(tmp_path: Path) -> None:
    done = ask("tune", "tiny", "--method", "seqlora", "--trials", "2", "--store", tmp_path)
    assert done.exit_code == 0
    assert done.stdout.startswith("trial 0")
    assert not (tmp_path / "runs" / "tiny").exists()


def test_check_fails_with_the_first_broken_law(monkeypatch: pytest.MonkeyPatch) -> None:
    from clbench import conformance

    def verdicts(*_: Any) -> Any:
        yield conformance.Verdict("one", "holds", True, "")
        yield conformance.Verdict("two", "is broken", False, "because")
        yield conformance.Verdict("three", "does not apply", None, "why not")

    monkeypatch.setattr(conformance, "check", verdicts)
    done = ask("check", "ncm")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "passed    one: holds",
        "FAILED    two: is broken (because)",
        "declined  three: does not apply (why not)",
    ]


def test_doctor(tmp_path: Path) -> None:
    done = ask("doctor", "--store", tmp_path / "new")
    assert done.exit_code == 0
    assert "HF_HUB_OFFLINE" in done.stdout
    assert "weights match their card" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").write_text("a file")
    assert ask("doctor", "--store", tmp_path / "store").exit_code == 1
    monkeypatch.setattr(doctor, "HUBS", {"nowhere": "http://127.0.0.1:9"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (hub,) = list(doctor._hubs())
    assert hub.state == "note"
    assert "does not answer" in hub.words


def test_a_new_method_is_short_and_runs(tmp_path: Path) -> None:
    said = skeleton.write_method("my_own", tmp_path)
    text = (tmp_path / "my_own.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert "class MyOwn(Method)" in text
    assert f"{tmp_path / 'my_own.py'}:MyOwn" in said
    method = f"{tmp_path / 'my_own.py'}:MyOwn"
    done = ask("run", "tiny", "--method", method, "--set", "weight=0.2", "--store", tmp_path / "store")
    assert done.exit_code == 0
    assert "my_own (weight=0.2)" in done.stdout
    with pytest.raises(ClbenchError, match="not overwritten"):
        skeleton.write_method("my_own", tmp_path)
    assert (tmp_path / "my_own.py").read_text(encoding="utf-8") == text


def test_a_new_method_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("methods").mkdir()
    Path("methods/__init__.py").touch()
    said = ask("new", "method", "mine", "--out", "methods").stdout
    assert '"mine": Entry("clbench.methods.mine:Mine"' in said
    assert 'METHOD = "mine"' in Path("tests/methods/test_mine.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Mine", "1st", "class", "a-b", "../up", ""])
def test_a_name_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadValue):
        skeleton.write_method(name, tmp_path)


@pytest.mark.slow
def test_a_new_method_passes_its_own_test(tmp_path: Path) -> None:
    skeleton.write_method("mine", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_forecast() -> None:
    clock = Clock()
    forecast = live.Forecast({"a": 10.0, "b": None}, now=clock)
    assert forecast.left() is None
    forecast.start("a")
    clock.now = 4.0
    assert forecast.left(0.5) is None
    clock.now = 8.0
    assert forecast.finish("a") == 8.0
    assert forecast.left() == 8.0
    forecast.start("b")
    clock.now = 10.0
    assert forecast.left(0.25) == 6.0
    assert forecast.finish("c") == 0.0


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_told(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True, force_terminal=terminal, width=100, legacy_windows=False)
    protocol = SimpleNamespace(tasks=2)
    method = SimpleNamespace(schedule="sequential")
    cell: Any = SimpleNamespace(key="k", name="mine ([red]x[/red]) seed 0", protocol=protocol, method=method)
    with live.reporter(console, 1, {"k": 60.0}) as told:
        told.cell_started(cell)
        told.epoch(0, 2, 1, 2, 0.5, Pace(500, "images", 2.0))
        told.task(0, 2)
        told.message("a file was\nset aside")
        told.cell_finished(cell, Record.example(status="failed", reason="no luck", scores=()))
    shown = capsys.readouterr().err
    assert "[red]x[/red]" in shown
    assert "failed: no luck" in shown
    assert "a file was set aside" in shown


def test_nobody_needs_to_be_told() -> None:
    names = {name for name in dir(Quiet) if not name.startswith("_")}
    assert names == {name for name in dir(live.Plain) if not name.startswith("_")}


def test_a_closed_pipe_is_silent(finished: Path) -> None:
    command = f"{sys.executable} -m clbench table tiny --format json --store {finished} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
