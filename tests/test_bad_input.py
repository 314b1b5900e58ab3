"""Every way to ask wrongly: one sentence on stderr that names the offending word or path, and an exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from clbench.cli import app
from clbench.record import Record
from clbench.store import Store

PLAIN = """
from clbench.method import Method
class {name}(Method):
    name = "{lower}"
    def plugins(self, bench):
        bench.lora()
        return []
"""
DIVERGING = """
from clbench.method import Method
from clbench.strategy import Plugin
class Spoil(Plugin):
    def before_backward(self, strategy, *args, **kwargs):
        strategy.loss *= float("nan")
class Diverging(Method):
    name = "diverging"
    def plugins(self, bench):
        bench.lora()
        return [Spoil()]
"""
CRASHING = PLAIN.format(name="Crashing", lower="crashing").replace("bench.lora()", "1 / 0")
DECLINING = (
    PLAIN.format(name="Declining", lower="declining")
    + """
    def unsupported(self, stream):
        return "it needs text"
"""
)


def ask(*words: str | Path) -> Result:
    here = ("--device", "cpu") if words[0] == "run" and words[1:] and "--device" not in words else ()
    return CliRunner().invoke(app, [str(word) for word in (*words, *here)])


def refused(done: Result, *names: str | Path) -> None:
    """It ended with code 2 and one line that holds every name."""
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert [str(name) for name in names if str(name) not in line] == [], line
    assert "Traceback" not in done.output
    assert done.stdout == ""


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["run", "quik"], ["quik", "Did you mean 'quick'?", "glyphs"]),
        (["run", "tiny", "--method", "sqlora"], ["sqlora", "Did you mean 'seqlora'?"]),
        (["run", "tiny", "--method", "DER++"], ["DER++", "Did you mean 'derpp'?"]),
        (["show", "l2p++"], ["l2p++", "Did you mean 'l2pp'?"]),
        (["run", "tiny", "--method", "absent.py:Mine"], ["absent.py"]),
        (["run", "tiny", "--set", "seqlora.learning_rat=1"], ["learning_rat", "Did you mean 'learning_rate'?"]),
        (["run", "tiny", "--set", "seqlor.epochs=1"], ["seqlor", "Did you mean 'seqlora'?"]),
        (["run", "tiny", "--set", "ewc.epochs=1"], ["ewc", "in this run"]),
        (["run", "tiny", "--set", "recipe.epoch=1"], ["epoch", "Did you mean 'epochs'?"]),
        (["run", "tiny", "--set", "epochs=1"], ["epochs=1", "3 methods", "METHOD.epochs=1"]),
        (["run", "tiny", "--set", "epochs"], ["'epochs'", "METHOD.field=value"]),
        (["run", "tiny", "--set", "a.b=1", "--set", "a.b=2"], ["a.b", "twice"]),
        (
            ["run", "tiny", "--set", "seqlora.learning_rate=fast"],
            ["seqlora.learning_rate takes a number or none; got 'fast'."],
        ),
        (["run", "tiny", "--set", "seqlora.epochs=2.5"], ["seqlora.epochs takes a whole number or none; got '2.5'."]),
        (["run", "tiny", "--set", "seqlora.learning_rate=-1"], ["seqlora.learning_rate must be greater than 0", "-1"]),
        (["run", "tiny", "--set", "seqlora.learning_rate=nan"], ["seqlora.learning_rate must be", "nan"]),
        (["run", "tiny", "--set", "recipe.epochs=0"], ["recipe.epochs must be greater than or equal to 1", "0"]),
        (["run", "tiny", "--set", "recipe.optimizer=adma"], ["adam, adamw, sgd", "'adma'", "Did you mean 'adam'?"]),
        (["run", "tiny", "--device", "gpu"], ["gpu", "cuda"]),
        (["table", "tiny", "--format", "xml"], ["xml", "latex"]),
        (["list", "method"], ["method", "Did you mean 'methods'?"]),
        (["list", "methods", "--format", "csv"], ["csv", "json"]),
        (["show", "glyph"], ["glyph", "Did you mean 'glyphs'?"]),
        (["show", "tiny", "--format", "csv"], ["csv", "json"]),
        (["check", "nmc"], ["nmc", "Did you mean 'ncm'?"]),
        (["tune", "tny", "--method", "ncm", "--trials", "1"], ["tny"]),
        (["tune", "tiny", "--method", "nmc", "--trials", "1"], ["nmc"]),
        (["tune", "tiny", "--method", "ncm", "--trials", "1"], ["ncm"]),
        (["pretrain", "glyph-vitt"], ["glyph-vitt"]),
        (["new", "method", "My-Method"], ["My-Method"]),
        (["new", "method", "replay"], ["replay"]),
        (["new", "method", "mine", "--out", "absent"], ["absent", "does not exist"]),
    ],
    ids=lambda value: " ".join(value) if value[0].islower() else None,
)
def test_a_wrong_word_is_named(
    words: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLBENCH_STORE", raising=False)
    refused(ask(*words), *names)


@pytest.mark.parametrize(
    "words", [["run"], ["nonsense"], ["run", "tiny", "--seed", "x"], ["run", "tiny", "--seed", "-1"], ["tune"]]
)
def test_wrong_usage_has_code_2(words: list[str]) -> None:
    done = ask(*words)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_names_are_never_read_as_markup(tmp_path: Path) -> None:
    refused(ask("run", "[bold]tiny[/bold]\x1b[31m", "--store", tmp_path), "[bold]tiny[/bold]")


# method files


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def broken(:", ["SyntaxError"]),
        ("import no_such_module_here", ["no_such_module_here"]),
        ("raise SystemExit(3)", ["SystemExit"]),
        ("x = 1", ["defines no method"]),
        (PLAIN.format(name="Other", lower="other"), ["Mine", "Other"]),
        (PLAIN.format(name="Mine", lower="replay"), ["'replay'", "taken"]),
        (PLAIN.format(name="Mine", lower="../up"), ["'../up'"]),
        (PLAIN.format(name="Mine", lower="mine").replace("plugins", "plugin"), ["plugins"]),
        (PLAIN.format(name="Mine", lower="mine").replace('name = "mine"', ""), ["no name"]),
    ],
)
def test_a_method_file_that_cannot_be_used(text: str, names: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, text)
    refused(ask("run", "tiny", "--method", f"{path}:Mine", "--store", tmp_path / "store"), path, *names)


def test_several_methods_in_a_file_need_a_class(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN.format(name="One", lower="one") + PLAIN.format(name="Two", lower="two"))
    refused(ask("show", path), f"{path}:One", f"{path}:Two")
    assert ask("show", f"{path}:Two").exit_code == 0


def test_two_files_with_one_name(tmp_path: Path) -> None:
    one = written(tmp_path, PLAIN.format(name="Mine", lower="mine"), "one.py")
    two = written(tmp_path, PLAIN.format(name="Mine", lower="mine") + "two = 2\n", "two.py")
    refused(ask("run", "tiny", "--method", one, "--method", two, "--store", tmp_path / "store"), "'mine'")


def test_an_edited_method_file_is_run_anew_and_others_are_kept(tmp_path: Path) -> None:
    text = PLAIN.format(name="Mine", lower="mine")
    path, store = written(tmp_path, text), tmp_path / "store"
    words = ["run", "tiny", "--method", f"{path}:Mine", "--method", "ncm", "--store", str(store)]
    assert "2 missing" in ask(*words).stderr
    assert "nothing is missing" in ask(*words).stderr
    others = {record.key for record in Store(store).load("tiny").records}
    written(tmp_path, text + "edited = True\n")
    edited = ask(*words)
    assert "2 cells of tiny on cpu; 1 missing" in edited.stderr
    assert "mine seed 0" in edited.stderr
    assert "ncm seed 0" not in edited.stderr
    assert others < {record.key for record in Store(store).load("tiny").records}
    assert "1 stale run of an older source left out" in edited.stdout
    written(tmp_path, text)
    back = ask(*words)
    assert "nothing is missing" in back.stderr
    assert "1 stale run of an older source left out" in back.stdout


@pytest.mark.parametrize(("text", "reason"), [(DIVERGING, "nan in epoch 1 of task 1"), (CRASHING, "ZeroDivisionError")])
def test_a_failing_method_leaves_its_record_and_the_others_go_on(text: str, reason: str, tmp_path: Path) -> None:
    path, store = written(tmp_path, text), tmp_path / "store"
    for _ in range(2):  # a failed cell is tried again
        done = ask("run", "tiny", "--method", path, "--method", "ncm", "--store", store)
        assert done.exit_code == 1
        assert "Traceback" not in done.output
        assert reason in done.stderr
        assert reason in " ".join(done.stdout.split())
    assert {record.status for record in Store(store).load("tiny").records} == {"failed", "done"}


def test_a_declining_method_is_shown_with_its_reason(tmp_path: Path) -> None:
    path = written(tmp_path, DECLINING)
    done = ask("run", "tiny", "--method", path, "--method", "ncm", "--store", tmp_path / "store")
    assert done.exit_code == 0
    assert "unsupported: it needs text" in done.stdout
    assert "it needs text" in done.stderr
    assert "89" in done.stdout


# stores


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    path = written(tmp_path, "text", "store")
    for words in (["run", "tiny"], ["run", "tiny", "--dry-run"], ["table", "tiny"], ["leaderboard", "--out", "x.csv"]):
        refused(ask(*words, "--store", path), path)


def test_a_store_that_does_not_exist(tmp_path: Path) -> None:
    for words in (["table", "tiny"], ["leaderboard", "--out", "x.csv"], ["list", "runs"]):
        refused(ask(*words, "--store", tmp_path / "absent"), tmp_path / "absent")


def test_a_store_without_the_suite(tmp_path: Path) -> None:
    refused(ask("table", "tiny", "--store", tmp_path), tmp_path, "tiny")
    refused(ask("table", "tinny", "--store", tmp_path), "tinny", "Did you mean 'tiny'?")
    refused(ask("leaderboard", "--out", tmp_path / "x.csv", "--store", tmp_path), tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody may write")
def test_a_store_in_an_unwritable_place() -> None:
    refused(ask("run", "tiny", "--store", "/proc/clbench"), "/proc/clbench")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_read_only_store(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o500)
    refused(ask("run", "tiny", "--store", tmp_path), tmp_path, "not writable")


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "not writable")])
def test_a_disk_that_fills_up(number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(number, os.strerror(number))
        honest(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        done = ask("run", "tiny", "--method", "seqlora", "--store", tmp_path)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert words in done.stderr.splitlines()[-1]
    assert str(tmp_path) in done.stderr
    assert ask("run", "tiny", "--method", "seqlora", "--store", tmp_path).exit_code == 0


def test_an_output_folder_that_is_absent(tmp_path: Path) -> None:
    store = with_records(tmp_path, {"a": good("a")})
    refused(ask("leaderboard", "--out", tmp_path / "absent" / "x.csv", "--store", store), tmp_path / "absent")
    refused(ask("leaderboard", "--out", tmp_path, "--store", store), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(tmp_path: Path) -> None:
    refused(ask("run", "tiny", "--device", "cuda", "--store", tmp_path), "cuda")


def good(key: str) -> str:
    return Record.example(suite="tiny", key=key, method="mine", seed=ord(key)).model_dump_json()


def with_records(folder: Path, texts: dict[str, str]) -> Path:
    for key, text in texts.items():
        path = folder / "store" / "runs" / "tiny" / "mine" / key / "record.json"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    return folder / "store"


def test_unreadable_files_are_reported_and_the_table_is_printed(tmp_path: Path) -> None:
    newer: dict[str, Any] = {**json.loads(good("c")), "schema_version": 99}
    texts = {"a": good("a"), "b": good("b")[:200], "c": json.dumps(newer), "d": '{"a": 1}', "e": good("f")}
    store = with_records(tmp_path, texts)
    done = ask("table", "tiny", "--store", store)
    assert done.exit_code == 0
    assert "mine" in done.stdout
    assert len(done.stderr.splitlines()) == 4
    for key in "bcde":
        assert str(Path("mine", key, "record.json")) in done.stderr
        assert (store / "runs" / "tiny" / "mine" / key / "record.json").read_text(encoding="utf-8") == texts[key]


def test_a_torn_record_of_a_cell_is_set_aside_and_done_anew(tmp_path: Path) -> None:
    words = ["run", "tiny", "--method", "ncm", "--store", str(tmp_path)]
    assert ask(*words).exit_code == 0
    (path,) = tmp_path.glob("runs/tiny/ncm/*/record.json")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    done = ask(*words)
    assert done.exit_code == 0
    assert "set aside" in done.stderr
    assert json.loads(path.read_bytes())["scores"] == json.loads(whole)["scores"]
    assert [kept.read_bytes() for kept in path.parent.glob("record.json.aside*")] == [whole[:100]]


def test_the_module_is_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "clbench", "run", "quik"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("clbench: no suite called 'quik'.")
