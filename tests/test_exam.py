from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from clbench import catalog, exam, plan, runner, tiny
from clbench.record import Audit
from clbench.strategy import Plugin, Strategy

CPU = torch.device("cpu")
Answer = Callable[[Strategy], None]


class Examinee(Plugin):
    """Answers as a test says."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.answer(strategy)


@pytest.fixture(scope="module")
def learned() -> Iterator[runner.Run]:
    """A run of all tasks with batches of 32 in the scoring, as many as a task has test examples."""
    gc.collect()
    gc.freeze()  # the meter collects garbage before it measures
    suite = replace(tiny.tiny, recipe=tiny.tiny.recipe.model_copy(update={"eval_batch_size": 32}))
    stream = suite.stream()
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, ["ncm"], {}), [0], 0, "cpu")
    running = runner.Run(cell, stream, CPU, runner.Silent())
    for lesson in running.lessons():
        running.learn(*lesson)
    yield running
    gc.unfreeze()


@pytest.fixture
def asked(learned: runner.Run) -> Iterator[Callable[[Answer], exam.Exam]]:
    """answer -> the run's exam, with the learner answering so."""
    before = list(learned.strategy.plugins)

    def made(answer: Answer) -> exam.Exam:
        learned.strategy.plugins.append(Examinee(answer))
        return learned.exam

    yield made
    learned.strategy.plugins[:] = before


def test_an_answer_lies_at_its_own_examples_place(asked: Callable[[Answer], exam.Exam]) -> None:
    """The scoring pass is shuffled; whoever knows every label must get all of them right."""
    tests = [task.test for task in tiny.stream()]
    labels = {test[i][0].numpy().tobytes(): test[i][1] for test in tests for i in range(len(test))}

    def know(strategy: Strategy) -> None:
        right = torch.tensor([labels[image.numpy().tobytes()] for image in strategy.mb_x])
        strategy.mb_output = torch.nn.functional.one_hot(right, 6).float()

    for index in range(3):
        answered = asked(know).score(index)
        assert answered.scores == {"score": [1.0] * (index + 1)}
        assert answered.facts["round"].tolist() == torch.cat([test.targets for test in tests[: index + 1]]).tolist()


def test_scoring_batches_mix_the_tasks(asked: Callable[[Answer], exam.Exam]) -> None:
    mixed: list[int] = []
    asked(lambda strategy: mixed.append(len(strategy.mb_y.div(2, rounding_mode="floor").unique()))).score(2)
    assert mixed == [3, 3, 3]


def vote(strategy: Strategy) -> None:
    strategy.mb_output = strategy.mb_output.mean(dim=0, keepdim=True).expand_as(strategy.mb_output)


def read_labels(strategy: Strategy) -> None:
    strategy.mb_output = torch.nn.functional.one_hot(2 * strategy.mbatch[-1], 6).float()


def differ_by_rounding(strategy: Strategy) -> None:
    strategy.mb_output = torch.zeros_like(strategy.mb_output).uniform_(0, 1e-5)


def nothing(strategy: Strategy) -> None:
    pass


def infer(strategy: Strategy, labels_as_tasks: int) -> None:
    strategy.inferred = (strategy.mb_y // 2).clamp(max=labels_as_tasks)


def test_inferred_tasks_are_compared_with_the_true_ones(asked: Callable[[Answer], exam.Exam]) -> None:
    """The learner takes the third task for the second."""
    taught = asked(lambda strategy: infer(strategy, 1))
    for index, share in enumerate([1.0, 1.0, 2 / 3]):
        answered = taught.score(index)
        assert answered.router_accuracy == share
        assert answered.facts["inferred"].dtype == torch.int32
        assert answered.facts["inferred"].tolist() == [min(j, 1) for j in range(index + 1) for _ in range(32)]


def test_the_score_is_the_same_whether_a_task_is_inferred_or_not(asked: Callable[[Answer], exam.Exam]) -> None:
    plain = asked(nothing).score(2)
    routed = asked(lambda strategy: infer(strategy, 0)).score(2)
    assert "inferred" not in plain.facts
    assert plain.router_accuracy is None
    assert torch.equal(plain.facts["round"], routed.facts["round"])
    assert plain.scores == routed.scores


def test_the_audit_looks_at_answers_not_at_inferred_tasks(asked: Callable[[Answer], exam.Exam]) -> None:
    def by_company(strategy: Strategy) -> None:
        strategy.inferred = torch.full_like(strategy.mb_y, min(len(strategy.mb_y), 2))

    audit = asked(by_company).audit()
    assert (audit.batch_flips, audit.label_flips) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "by_batch", "by_label"),
    [(nothing, False, False), (vote, True, False), (read_labels, False, True), (differ_by_rounding, False, False)],
)
def test_the_audit_finds_answers_that_depend_on_company_or_labels(
    asked: Callable[[Answer], exam.Exam], answer: Answer, by_batch: bool, by_label: bool
) -> None:
    torch.manual_seed(0)
    audit = asked(answer).audit()
    assert audit.samples == exam.AUDIT_SAMPLES
    assert (audit.batch_flips > 0, audit.label_flips > 0) == (by_batch, by_label)


def test_the_audit_asks_the_same_samples_in_every_run(learned: runner.Run) -> None:
    seen: list[list[int]] = []
    learned.strategy.plugins.append(Examinee(lambda strategy: seen.append(strategy.mb_y.tolist())))
    audits = {learned.exam.audit() for _ in range(2)}
    learned.strategy.plugins.pop()
    assert audits == {Audit(samples=32, batch_flips=0, label_flips=0)}
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert [len(batch) for batch in seen[:half]] == [32, *[1] * 32, 32]
    assert {label // 2 for label in seen[0]} == {0, 1, 2}


def test_the_vault_is_closed_again_and_no_batch_is_left(learned: runner.Run) -> None:
    learned.exam.score(0)
    learned.exam.outcomes({})
    assert not learned.vault.is_open
    assert learned.strategy.mbatch == []


def test_outcomes_of_an_early_round_end_with_its_tasks(learned: runner.Run) -> None:
    outcomes = learned.exam.outcomes({"round_1": torch.arange(32, dtype=torch.int32)})
    assert outcomes["round_1"].tolist() == [*range(32), *[-1] * 64]
    assert outcomes["tasks"].tolist() == [0] * 32 + [1] * 32 + [2] * 32
    assert outcomes["labels"].tolist() == torch.cat([task.test.targets for task in tiny.stream()]).tolist()
