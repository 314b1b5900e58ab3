from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, imported as Python runs it, with a smaller model."""
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("olora_penalty")
    monkeypatch.setattr(module, "BACKBONE", "nano-lm")
    return module


def test_the_past_is_one_stack_of_all_layers_and_tasks(program: ModuleType) -> None:
    for side in "AB":
        strategy = program.at_task(4, 2, side=side)
        (plugin,) = (plugin for plugin in strategy.plugins if hasattr(plugin, "past"))
        strategy.block()
        assert [stack.shape for stack in plugin.past] == [(4, 3 * 8, 32)]
        assert strategy.clock.train_exp_iterations == 2


def test_prints_a_row_for_each_side(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "TASKS", 3)
    monkeypatch.setattr("sys.argv", ["olora_penalty.py", "--blocks", "1", "--steps", "1"])
    program.main()
    printed = capsys.readouterr().out.splitlines()[2:]
    assert [line[:22].strip() for line in printed] == [
        "reference",
        "control",
        "side A, task 2",
        "side A, task 3",
        "side B, task 3",
    ]
