from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clbench import catalog, exam, plan, runner, tiny
from clbench.plan import Cell
from clbench.record import Audit
from clbench.strategy import Plugin, Strategy

CPU = torch.device("cpu")
STREAM = tiny.text_stream()
ASKED = 16
"""Test rows of each task."""


def cell(**recipe: Any) -> Cell:
    recipe = {"epochs": 2, **recipe}
    suite = replace(tiny.tiny_text, recipe=tiny.tiny_text.recipe.model_copy(update=recipe))
    return plan.cells(suite, STREAM, catalog.rows(suite, ["seqlora"], {}), [0], 0, "cpu")[0]


@pytest.fixture(scope="module")
def learned() -> Iterator[runner.Run]:
    gc.collect()
    gc.freeze()  # the meter collects garbage before it measures
    running = runner.Run(cell(epochs=10), STREAM, CPU, runner.Silent())
    for lesson in running.lessons():
        running.learn(*lesson)
    yield running
    gc.unfreeze()


def test_a_record_of_text_holds_all_scores_and_floors(learned: runner.Run) -> None:
    facts = learned.facts()
    assert set(facts["other_scores"]) == {"trace", "lenient", "invalid"}
    for matrix in (facts["scores"], *facts["other_scores"].values()):
        assert [[value is not None for value in row] for row in matrix] == [
            [False] * 3,
            [True, False, False],
            [True, True, False],
            [True] * 3,
        ]
    assert facts["floors"] == (0.5, 0.5, 0.5)
    assert set(facts["other_floors"]) == {"trace", "lenient"}
    assert facts["audit"] == Audit(samples=32, batch_flips=0, label_flips=0)
    last = facts["scores"][3]
    assert last[2] > 0.6  # it learns
    assert last[0] < facts["scores"][1][0]  # and forgets
    assert facts["other_scores"]["invalid"][3][0] > 0


def test_outcomes_hold_every_mark_and_what_was_said(learned: runner.Run) -> None:
    outcomes, facts = learned.outcomes(), learned.facts()
    marks = ("score", "trace", "lenient", "invalid", "said")
    assert set(outcomes) == {"tasks", *(f"{name}_{i}" for name in marks for i in (1, 2, 3))}
    assert outcomes["tasks"].tolist() == [j for j in range(3) for _ in range(2 * ASKED)]
    for i in (1, 2, 3):
        asked = outcomes["tasks"] < i
        assert np.isnan(outcomes[f"score_{i}"][~asked]).all()
        for name, matrix in {"score": facts["scores"], **facts["other_scores"]}.items():
            values = outcomes[f"{name}_{i}"]
            assert values.dtype == np.float32
            for j in range(i):
                assert values[outcomes["tasks"] == j].mean() == pytest.approx(matrix[i][j])
    said = json.loads(outcomes["said_3"].tobytes())
    golds = [row.answer for task in STREAM for row in task.test.rows]  # type: ignore[attr-defined]
    assert [answer == gold for answer, gold in zip(said, golds, strict=True)] == outcomes["trace_3"].astype(
        bool
    ).tolist()


def test_the_order_of_asking_and_the_size_of_a_batch_change_nothing(
    learned: runner.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, order = learned.exam.score(2), learned.exam.marker.order
    monkeypatch.setattr(learned.exam.marker, "order", lambda places: order(places).flip(0))
    monkeypatch.setattr(learned.strategy, "recipe", learned.strategy.recipe.model_copy(update={"eval_batch_size": 7}))
    backwards = learned.exam.score(2)
    assert backwards.scores == usual.scores
    assert set(backwards.facts) == set(usual.facts)
    for name, values in usual.facts.items():
        assert torch.equal(backwards.facts[name], values)


def test_a_sample_of_the_examples_is_the_same_in_every_round(learned: runner.Run) -> None:
    few = [learned.exam.score(index, 5) for index in range(3)]
    assert [answered.asked for answered in few] == [5, 10, 15]
    where = [~answered.facts["score"].isnan() for answered in few]
    for earlier, later in itertools.pairwise(where):
        assert torch.equal(later[: len(earlier)], earlier)
    whole = learned.exam.score(2).facts["score"]
    assert torch.equal(few[2].facts["score"][where[2]], whole[where[2]])
    assert len(json.loads(few[2].facts["said"].numpy().tobytes())) == 15


def test_a_run_asks_samples_before_the_last_round_and_all_at_the_end() -> None:
    record, outcomes = runner.run(cell(eval_samples=4), STREAM, device=CPU)
    assert record.status == "done", record.reason
    assert [cost.eval_samples for cost in record.costs] == [4, 8, 6 * ASKED]
    assert record.protocol["eval_samples"] == 4
    assert (~np.isnan(outcomes["score_2"])).sum() == 8
    assert not np.isnan(outcomes["score_3"]).any()


class Company(Plugin):
    """Answers by what else is in the batch, or by the task's label."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        labels = strategy.mbatch[-1]

        def prompts(tokens: Tensor, query: Tensor) -> Tensor:
            if self.by == "batch":
                return query.mean(0).expand(len(tokens), 1, -1) * 50 * (len(tokens) - 1)
            return torch.where((labels % 2 == 0)[:, None, None], 3.0, -3.0) * torch.ones_like(tokens[:, :1])

        strategy.model.prompter = prompts


@pytest.mark.parametrize("by", ["batch", "label"])
def test_the_audit_finds_written_answers_that_depend_on_company_or_labels(learned: runner.Run, by: str) -> None:
    cheat = Company(by)
    learned.strategy.plugins.append(cheat)
    audit = learned.exam.audit()
    learned.strategy.plugins.remove(cheat)
    learned.model.prompter = None
    assert (audit.batch_flips > 0, audit.label_flips > 0) == (by == "batch", by == "label")


def test_no_test_row_is_left_behind(learned: runner.Run) -> None:
    learned.exam.score(0)
    assert not learned.vault.is_open
    assert learned.strategy.mbatch == []


def test_equal_differences_within_rounding_are_no_flip() -> None:
    from clbench.answers import Answers

    first = Answers(torch.zeros(2, 1), torch.tensor([1e-6, 1.0]), None, ["A", "A"])
    second = Answers(torch.zeros(2, 1), torch.tensor([1e-6, 1.0]), None, ["B", "A"])
    assert exam._flips(first, second, exam.TIES["float32"]) == 0
    clear = replace(first, margins=torch.full((2,), 0.25))
    other = replace(second, margins=torch.full((2,), 0.25))
    assert [exam._flips(clear, other, exam.TIES[precision]) for precision in ("float32", "bfloat16")] == [1, 0]
    assert exam._flips(clear, replace(other, margins=torch.ones(2)), exam.TIES["bfloat16"]) == 0
    sure = replace(first, margins=torch.ones(2))
    assert exam._flips(sure, replace(other, margins=torch.ones(2)), exam.TIES["bfloat16"]) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_audit_knows_how_roughly_it_is_computed(
    precision: str, learned: runner.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ties: list[float] = []
    monkeypatch.setattr(exam, "_flips", lambda first, second, tie: ties.append(tie) or 0)
    recipe = learned.strategy.recipe.model_copy(update={"precision": precision})
    monkeypatch.setattr(learned.strategy, "recipe", recipe)
    learned.exam.audit()
    assert ties == [exam.TIES[precision]] * 2


@pytest.mark.parametrize(
    ("suite", "stream", "words"),
    [
        (replace(tiny.tiny_text, backbone="tiny-vit"), STREAM, "choose a language model"),
        (replace(tiny.tiny, backbone="nano-lm"), tiny.stream(tasks=2), "choose a vision backbone"),
    ],
)
def test_text_and_images_do_not_meet(suite: Any, stream: Any, words: str) -> None:
    (made,) = plan.cells(suite, stream, catalog.rows(suite, ["seqlora"], {}), [0], 0, "cpu")
    record, _ = runner.run(made, stream, device=CPU)
    assert record.status == "failed"
    assert words in (record.reason or "")
