from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> object:
    """name -> a program of `benchmarks/` that times the smallest model alone, one short block."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("sys.argv", ["program", "--blocks", "1", "--steps", "1"])

    def made(name: str) -> ModuleType:
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "models", lambda: {"nano": "nano-lm"})
        return module

    return made


def test_generation_says_how_many_answers_a_second(
    program: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = program("generation")  # type: ignore[operator]
    for name, value in {"BATCH": 4, "QUESTIONS": 8, "TOKENS": 3}.items():
        monkeypatch.setattr(generation, name, value)
    generation.main()
    printed = capsys.readouterr().out
    assert "nano; 1 threads, 1 paired blocks of 8 answers of 3 tokens" in printed
    assert "in batches of 4" in printed


def test_generation_stops_where_company_changes_an_answer(program: object, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = program("generation")  # type: ignore[operator]
    monkeypatch.setattr(generation, "QUESTIONS", 4)
    answering = generation.Answering("nano-lm")
    answering.check()
    answer = answering.answer

    def swayed(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        answers, margins = answer(size)
        return answers + (size == 1), margins

    answering.answer = swayed
    with pytest.raises(AssertionError, match="4 answers differ"):
        answering.check()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_lm_training_compares_loops_that_learn_the_same(program: object, capsys: pytest.CaptureFixture[str]) -> None:
    program("lm_training").main()  # type: ignore[operator]
    printed = capsys.readouterr().out
    assert "tokens a second: " in printed
    assert "all logits, by labels" in printed
