"""`clbench rerun`: a run made again from its record is held against it, and nothing of the record changes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from clbench import again, catalog, determinism, plan, runner
from clbench import origin as origins
from clbench.cli import app
from clbench.differences import explain
from clbench.origin import origin
from clbench.record import Record
from clbench.repetition import Repetition, judge
from clbench.stats import Outcomes

CARD = {"suite": "digits", "stream_sha256": "5eed", "scored_on": "test", "epochs": 5}
TASKS = np.repeat([0, 1], [60, 40]).astype(np.int32)


def words(*said: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in said])


def state(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run of seconds, otherwise than its suite has it."""
    root = tmp_path_factory.mktemp("store")
    settings = ["--set", "replay.buffer_samples=8", "--set", "recipe.epochs=1", "--set", "recipe.optimizer=sgd"]
    done = words("run", "tiny", "--method", "replay", *settings, "--seed", "3", "--threads", "1", "--store", root)
    assert done.exit_code == 0, done.output
    return root


def the_record(root: Path) -> tuple[Record, Path]:
    (path,) = root.glob("runs/*/*/*/record.json")
    return Record.model_validate_json(path.read_bytes()), path


def test_a_run_made_again_is_the_same_bit_by_bit_and_the_store_as_it_was(made: Path, tmp_path: Path) -> None:
    before = state(made)
    done = words("rerun", "replay", "--store", made, "--keep", tmp_path)
    assert done.exit_code == 0, done.output
    assert "Nothing differs but the time at which they ran." in done.output
    assert "Bit-identical: equal scores, equal answers to every example, equal weights." in done.output
    assert state(made) == before
    (first, _), (second, _) = the_record(made), the_record(tmp_path)
    assert (second.key, second.scores, second.weights_sha256) == (first.key, first.scores, first.weights_sha256)
    repeated = words("rerun", "replay", "--store", made, "--keep", tmp_path)
    assert repeated.exit_code == 2
    assert "is not overwritten; name another --keep" in repeated.output


def test_a_record_alone_is_enough_and_what_it_lacks_is_said(made: Path, tmp_path: Path) -> None:
    record, path = the_record(made)
    other = record.model_copy(
        update={
            "fingerprint": "0ld",
            "weights_sha256": "other",
            "origin": record.origin.model_copy(update={"versions": {**record.origin.versions, "torch": "1.0"}}),
        }
    )
    alone = tmp_path / "alone.json"
    alone.write_text(other.model_dump_json())
    done = words("rerun", alone, "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["sameness"] == "scores"
    assert found["reason"] == "equal scores; the answers of one were not kept; other weights"
    differing = {(change["group"], change["name"]) for change in found["changes"]}
    assert differing == {("run", "fingerprint"), ("versions", "torch")}
    assert path.exists()


def test_the_command_in_a_record_makes_it_again(made: Path, tmp_path: Path) -> None:
    record, _ = the_record(made)
    command = shlex.split(record.origin.again)
    assert command[:5] == ["clbench", "run", "tiny", "--method", "replay"]
    done = words(*command[1:], "--store", tmp_path)
    assert done.exit_code == 0, done.output
    again_made, _ = the_record(tmp_path)
    assert (again_made.key, again_made.weights_sha256) == (record.key, record.weights_sha256)


@pytest.mark.parametrize("name", ["tiny", "glyphs", "treelora-ablation", "trace-tiny"])
def test_every_row_of_a_suite_has_a_command_that_comes_to_it(name: str) -> None:
    suite = catalog.suite(name)
    cells = plan.cells(suite, suite.stream(2), catalog.rows(suite, [], {}), [0, 7], 2, "cpu")
    told = again.told(cells, threads=3, deterministic=True)
    assert [cell.key for cell in told] == [cell.key for cell in cells]
    assert len({cell.again for cell in told}) == len(cells)
    for cell in told:
        assert cell.again.startswith(f"clbench run {name} --method {cell.method.name} ")
        assert cell.again.endswith(f"--order-seed 2 --seed {cell.seed} --device cpu --threads 3 --deterministic")


def test_a_row_that_cannot_be_asked_for_alone_has_no_command() -> None:
    suite = catalog.suite("tiny")
    row = catalog.rows(suite, ["seqlora"], {})[0]
    otherwise = plan.Row(row.method, "own", row.fingerprint, suite.recipe.model_copy(update={"optimizer": "sgd"}))
    cells = plan.cells(suite, suite.stream(), [otherwise], [0], 0, "cpu")
    assert [cell.again for cell in again.told(cells, threads=1, deterministic=False)] == [""]


def change(record: Record, **fields: Any) -> str:
    return record.model_copy(update=fields).model_dump_json()


REFUSED: dict[str, tuple[Callable[[Record], str], str]] = {
    "a failure": (
        lambda r: change(r, status="failed", reason="no luck", scores=()),
        "holds no result to compare with (failed: no luck)",
    ),
    "imported": (lambda r: change(r, fingerprint="imported:mammoth"), "was made by mammoth and imported"),
    "of an unknown suite": (lambda r: change(r, suite="tinny"), "Did you mean 'tiny'?"),
    "of an unlisted method": (lambda r: change(r, method="mine"), "say where it is with --method FILE.py:CLASS"),
    "of other settings": (lambda r: change(r, params={**r.params, "colour": "red"}), "at 'colour'"),
    "torn": (lambda r: change(r)[:99], "is torn or no JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_made_again_is_told_in_a_sentence(made: Path, tmp_path: Path, what: str) -> None:
    spoil, said = REFUSED[what]
    path = tmp_path / "one.json"
    path.write_text(spoil(the_record(made)[0]))
    done = words("rerun", path)
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_file_that_is_not_there_and_a_run_that_is_not() -> None:
    assert "could not be read" in words("rerun", "nowhere.json").output
    assert words("rerun", "nothing", "--store", "nowhere").exit_code == 2


# the verdict, by hand


def answered(first: int, second: int) -> Outcomes:
    """Right on the first so many examples of either task."""
    answers = np.ones(100, dtype=np.int32)
    answers[:first] = answers[60 : 60 + second] = 0
    return {"tasks": TASKS, "labels": np.zeros(100, dtype=np.int32), "round_1": answers, "round_2": answers}


def held(first: Outcomes | None, second: Outcomes | None, **changes: Any) -> Repetition:
    fields: dict[str, Any] = {"protocol": CARD, "suite_protocol": CARD, "test_sizes": (60, 40), "weights_sha256": "w"}
    one = Record.example(**fields)
    other = Record.example(**{**fields, **changes})
    return judge(one, other, lambda record: first if record is one else second)


def test_verdicts() -> None:
    same = answered(50, 30)
    other_scores = ((None, None), (1.0, None), (0.5, 0.8))
    assert held(same, same).sameness == "identical"
    assert held(same, same, weights_sha256="v").sameness == "scores"
    assert held(same, None).sameness == "scores"
    assert held(None, None, weights_sha256=None).sameness == "scores"

    near = held(same, answered(48, 31))
    assert (near.sameness, near.explanation.untested) == ("statistics", "")
    far = held(same, answered(20, 30), scores=other_scores)
    assert far.sameness == "different"
    assert "on task 'a'" in far.reason
    assert held(same, None, scores=other_scores).sameness == "different"
    assert held(same, same, status="failed", reason="no luck", scores=()).reason == "it ended as failed: no luck"


def test_one_task_of_three_tests_that_differs_by_chance_is_no_difference() -> None:
    """McNemar on six examples of one task has p = 1/32, which Holm's correction over three tests takes back."""
    found = held(answered(50, 30), answered(44, 30))
    assert [verdict.winner for verdict in found.explanation.tasks] == [0, 0]
    assert "the smallest p of 3 paired tests" in found.reason
    seven = held(answered(50, 30), answered(43, 32))
    assert "is 0.0469, on task 'a'" in seven.reason  # 3 · 2 / 2⁷


# where it was made


def test_the_driver_of_a_gpu_is_read_where_the_system_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "version"
    told.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12"
    )
    monkeypatch.setattr(origins, "_DRIVER", told)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert origins._driver.__wrapped__() == "NVIDIA 570.86.15, CUDA 12.8, cuDNN 91002"
    monkeypatch.setattr(origins, "_DRIVER", tmp_path / "absent")
    assert origins._driver.__wrapped__() == "CUDA 12.8, cuDNN 91002"


def test_what_older_records_lack_tells_no_two_runs_apart(made: Path) -> None:
    record, _ = the_record(made)
    old = record.model_copy(update={"origin": Record.example().origin})
    assert {"machine", "determinism"}.isdisjoint(
        change.group for change in explain(record, old, lambda r: None).changes
    )
    cpu = record.origin.model_copy(update={"cpu": "another, 64 cores", "determinism": {"cudnn_benchmark": True}})
    found = explain(record, record.model_copy(update={"origin": cpu}), lambda r: None).changes
    assert {"machine", "determinism"} == {change.group for change in found}


# determinism


def test_determinism_is_asked_for_within_a_block_and_recorded() -> None:
    before = determinism.flags()
    with determinism.asked(False):
        assert determinism.flags() == before
    with determinism.asked():
        told = origin(torch.device("cpu"), "float32", "2026-01-01T00:00:00+00:00").determinism
        assert told["deterministic_algorithms"] is True
        assert told["cudnn_deterministic"] is True
        assert told["cudnn_benchmark"] is False
        assert told[determinism.WORKSPACE] in (":4096:8", before[determinism.WORKSPACE])
    assert determinism.flags() == before


@pytest.mark.parametrize(
    "name", ["seqlora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ewc", "derpp", "l2p", "gem", "mas"))]
)
def test_on_the_cpu_determinism_changes_no_bit(name: str) -> None:
    suite = catalog.suite("tiny", {"epochs": "1"})
    stream = suite.stream()
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, [name], {}), [0], 0, "cpu")
    plain, answers = runner.run(cell, stream, device=torch.device("cpu"))
    with determinism.asked():
        strict, others = runner.run(cell, stream, device=torch.device("cpu"))
    assert (plain.status, strict.weights_sha256) == ("done", plain.weights_sha256)
    assert strict.scores == plain.scores
    assert all(np.array_equal(answers[round_], others[round_]) for round_ in answers)
