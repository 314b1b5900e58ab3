"""Text on the command line: one's own tasks, another backbone, scores task by task, a forecast of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from clbench.cli import app

QUICK = [
    *("--set", "recipe.epochs=1", "--set", "recipe.precision=float32", "--set", "recipe.prompt_tokens=64"),
    *("--set", "recipe.answer_tokens=8", "--set", "recipe.learning_rate=0.03"),
]


def ask(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    for name, first in (("upper", "A"), ("later", "C")):
        (folder / name).mkdir()
        for part, count in (("train", 40), ("eval", 8), ("test", 20)):
            rows = [
                {"prompt": f"Which?\n{part}{i}{'+-'[i % 2]}\nAnswer:", "answer": chr(ord(first) + i % 2)}
                for i in range(count)
            ]
            (folder / name / f"{part}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(own: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    store = tmp_path_factory.mktemp("store")
    words = ["--from", own, "--backbone", "nano-lm", "--eval-samples", "5", "--threads", "1", "--device", "cpu"]
    return ask("run", "trace", "--method", "seqlora", *words, *QUICK, "--store", store), store


def test_ones_own_tasks_give_a_table_and_a_triangle(done: tuple[Result, Path]) -> None:
    result, _ = done
    assert result.exit_code == 0, result.output
    assert "backbone nano-lm" in result.stdout.splitlines()[0]
    said = " ".join(result.stdout.split())
    assert "answers without the form of one after the last task: seqlora" in said
    assert "floor: a constant answer scores 50.0 %" in said
    lines = [line.split() for line in result.stdout.splitlines()]
    (first,) = [line for line in lines if line[:2] == ["1", "later"]]
    (second,) = [line for line in lines if line[:2] == ["2", "upper"]]
    assert len(first) == 3
    assert "±" in first[2]
    assert len(second) == 4
    assert "±" not in "".join(second)
    assert [line for line in lines if line[:1] == ["floor"]] == [["floor", "50.0", "50.0"]]


def test_scores_can_be_seen_later(done: tuple[Result, Path]) -> None:
    result, store = done
    again = ask("scores", "trace/seqlora", "--store", store)
    assert again.exit_code == 0
    assert again.stdout.strip() in result.stdout
    facts = json.loads(ask("scores", "seqlora", "--format", "json", "--store", store).stdout)
    assert facts["tasks"] == ["later", "upper"]
    assert list(facts["half_widths"]) == ["1"]


def test_scores_by_each_mark(done: tuple[Result, Path]) -> None:
    _, store = done
    marks = ("strict", "trace", "lenient")
    for name in marks:
        result = ask("scores", "seqlora", "--score", name, "--store", store)
        assert result.exit_code == 0
        lines = [line.split() for line in result.stdout.splitlines()]
        assert lines[0][-3:] == [name, "in", "%"]
        assert "±" in next(line for line in lines if line[:2] == ["1", "later"])[2]
        assert [line[0] for line in lines if line[1:4] == ["at", "the", "end"]] == [
            *(f"{other}," for other in marks if other != name),
            "invalid,",
        ]
        assert [line[1:] for line in lines if line[:1] == ["floor"]] == [["50.0", "50.0"]]
    assert "Known: lenient, strict, trace" in ask("scores", "seqlora", "--score", "exact", "--store", store).stderr


def test_scores_of_a_run_that_is_not_there(done: tuple[Result, Path]) -> None:
    assert "no run called 'seqlorra'" in ask("scores", "seqlorra", "--store", done[1]).stderr
    assert "Known: json, text" in ask("scores", "seqlora", "--format", "xml", "--store", done[1]).stderr


def test_changed_files_are_another_exam(done: tuple[Result, Path], own: Path, tmp_path: Path) -> None:
    _, store = done
    words = ["--from", own, "--backbone", "nano-lm", "--device", "cpu", "--eval-samples", "5", *QUICK, "--dry-run"]
    assert "seqlora (" in ask("run", "trace", "--method", "seqlora", *words, "--store", store).stdout
    assert "1 missing" not in ask("run", "trace", "--method", "seqlora", *words, "--store", store).stderr
    other = ask("run", "trace", "--method", "seqlora", *words, "--task", "upper", "--store", store)
    assert "1 cell of trace on cpu; 1 missing" in other.stderr


def test_a_dry_run_tells_the_memory_before_it_needs_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path))
    result = ask("run", "trace", "--method", "seqlora", "--backbone", "llama-1b-shape", "--dry-run")
    assert result.exit_code == 2
    head, line = (text.split() for text in result.stdout.splitlines()[1:3])
    assert dict(zip(head, line, strict=False))["weights"] == "2,357.1"
    assert "LLM-CL-Benchmark_5000 is not whole" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny", "--from", "."], "makes its tasks itself; leave out --from"),
        (["trace", "--from", "nowhere"], "no folder at 'nowhere'"),
        (["trace", "--from", __file__], "is a file, and --from takes a folder: unpack"),
        (["trace", "--task", "FOMX"], "Did you mean 'FOMC'"),
        (["trace-tiny", "--backbone", "nano"], "no backbone called 'nano'"),
        (["trace-tiny", "--weights", "4bit"], "Known: default, random"),
        (["tiny", "--eval-samples", "3", "--set", "recipe.eval_samples=4"], "--set gives 'recipe.eval_samples' twice"),
    ],
)
def test_wrong_words_are_sentences(words: list[str], said: str, tmp_path: Path) -> None:
    result = ask("run", *words, "--device", "cpu", "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
