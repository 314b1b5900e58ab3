"""README: its commands exist, its method runs, its columns are the leaderboard's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from clbench import catalog, conformance, skeleton
from clbench.cli import app
from clbench.row import columns
from clbench.table import REFERENCE_METHOD

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_nothing_was_left_to_fill_in() -> None:
    assert "<!--" not in README


def test_the_two_commands_are_the_ones_that_ci_and_tox_run() -> None:
    assert "python -m pip install tox && python -m tox -e quick" in README
    assert "python -m pip install tox && python -m tox -e tests" in README
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python -m pip install tox\n" in script
    assert "python -m tox -e tests\n" in script


def test_every_column_is_explained_as_the_code_explains_it() -> None:
    for column in columns(REFERENCE_METHOD):
        assert f"| `{column.name}` | {column.unit} | {column.meaning} |" in README


def test_the_method_is_complete_short_and_what_the_command_writes(tmp_path: Path) -> None:
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 40
    skeleton.write_method("anchor", tmp_path)
    assert (tmp_path / "anchor.py").read_text(encoding="utf-8") == code
    kind = catalog.method_type(f"{tmp_path / 'anchor.py'}:Anchor")
    verdicts = list(conformance.check(kind.cls, kind.fingerprint))
    assert len(verdicts) == 1 + len(conformance.FIELDS) * len(conformance.LAWS)
    assert [f"{verdict.law}: {verdict.reason}" for verdict in verdicts if verdict.passed is False] == []


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line.startswith("clbench ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="clbench")
    name, subcommand, rest = command.resolve_command(context, words)  # type: ignore[attr-defined]
    assert subcommand is not None, name
    subcommand.make_context(name, rest, parent=context)


@pytest.mark.parametrize("line", [line for line in commands() if re.match(r"clbench (list|show|doctor|table)", line)])
def test_the_commands_that_only_look_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)[1:]
    if words[0] == "table":
        words.append("--published")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
