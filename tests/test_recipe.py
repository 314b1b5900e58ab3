from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from clbench import catalog, plan, runner, tiny
from clbench.errors import BadValue
from clbench.plan import Cell
from clbench.recipe import FIRST, Recipe
from clbench.store import Store
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream
from clbench.suite import Contender, Suite

CPU = torch.device("cpu")
STREAMS = {"tiny": tiny.stream(tasks=2), "tiny-text": tiny.text_stream(tasks=2)}
SUITES = {"tiny": tiny.tiny, "tiny-text": tiny.tiny_text}


def suite_with(name: str = "tiny", **changes: Any) -> Suite:
    changes = {"epochs": 1, **changes}
    return replace(SUITES[name], recipe=SUITES[name].recipe.model_copy(update=changes))


def cell_of(suite: Suite, method: str = "seqlora", **settings: str) -> Cell:
    rows = catalog.rows(suite, [method], {"": settings} if settings else {})
    return plan.cells(suite, STREAMS[suite.name], rows, [0], 0, "cpu")[0]


class Watch(Plugin):
    """Notes the step sizes of each update, the gradient's norm, and how many samples a pass had."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.passes: list[int] = []

    def after_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.passes.append(len(strategy.mb_y))

    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.passes.append(-len(strategy.mb_y))

    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])
        grads = [p.grad for p in strategy.model.trainable() if p.grad is not None]
        self.norms.append(float(torch.cat([g.flatten() for g in grads]).norm()))


def taught(suite: Suite, tasks: int = 1, method: str = "seqlora") -> tuple[runner.Run, Watch]:
    """A run that has learned so many tasks."""
    running, watch = runner.Run(cell_of(suite, method), STREAMS[suite.name], CPU, runner.Silent()), Watch()
    running.strategy.plugins.append(watch)
    for index, task in running.lessons()[:tasks]:
        running.learn(index, task)
    return running, watch


def weights(running: runner.Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in running.model.trainable()])


# step sizes


def test_step_sizes_by_hand() -> None:
    cosine = Recipe(schedule="cosine")
    assert [cosine.rate_at(share, 0, 1) for share in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0]
    )
    coda = Recipe(schedule="coda")
    assert [coda.rate_at(0.0, epoch, 5) for epoch in range(5)] == pytest.approx(
        [math.cos(math.pi * 99 * epoch / 800) for epoch in range(5)]
    )
    assert coda.rate_at(0.9, 0, 1) == 1.0
    steps = Recipe(schedule="steps", steps=(2, 3))
    assert [steps.rate_at(0.0, epoch, 4) for epoch in range(4)] == pytest.approx([1, 1, 0.1, 0.01])
    assert Recipe().rate_at(0.7, 3, 4) == 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1.0] * 8),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
        ({"schedule": "coda"}, [1.0] * 4 + [math.cos(99 * math.pi / 200)] * 4),
        ({"schedule": "steps", "steps": (1,)}, [1.0] * 4 + [0.1] * 4),
    ],
)
@pytest.mark.parametrize("carry", [False, True])
def test_each_task_goes_through_the_whole_schedule(changes: dict[str, Any], expected: list[float], carry: bool) -> None:
    """Four batches an epoch, two epochs; an optimiser that is carried on starts from the highest step size again."""
    suite = suite_with(epochs=2, carry_optimizer=carry, **changes)
    _, watch = taught(suite, tasks=2)
    assert watch.rates == pytest.approx([suite.recipe.learning_rate * factor for factor in expected] * 2)


def test_the_gradient_is_cut_to_its_greatest_norm_and_no_further() -> None:
    free = taught(suite_with(clip=None))[1].norms
    between = sorted(free)[1]
    cut = taught(suite_with(clip=between))[1].norms
    assert cut[0] == pytest.approx(min(free[0], between), rel=1e-4)
    assert max(cut) == pytest.approx(between, rel=1e-4)
    assert min(taught(suite_with(clip=1e3))[1].norms) == min(free)


def test_betas_reach_the_optimizer() -> None:
    running, _ = taught(suite_with(betas=(0.5, 0.6)))
    assert running.strategy.optimizer.param_groups[0]["betas"] == (0.5, 0.6)


# batches in pieces


@pytest.mark.parametrize("name", SUITES)
def test_a_batch_in_pieces_teaches_the_same(name: str) -> None:
    whole, seen = taught(suite_with(name, optimizer="sgd", batch_size=16, eval_batch_size=64))
    pieces, passes = taught(suite_with(name, optimizer="sgd", batch_size=16, micro_batch=6, eval_batch_size=64))
    assert seen.passes[:2] == [16, -16]
    assert passes.passes[:4] == [6, 6, 4, -16]
    assert passes.norms == pytest.approx(seen.norms, rel=1e-3)
    torch.testing.assert_close(weights(pieces), weights(whole), rtol=1e-4, atol=1e-6)
    assert len(passes.rates) == len(seen.rates)


def test_a_piece_as_large_as_the_batch_is_the_batch() -> None:
    plain, large = taught(suite_with())[0], taught(suite_with(micro_batch=500))[0]
    assert torch.equal(weights(plain), weights(large))


# passes over each task


def test_each_task_gets_its_own_number_of_passes_and_the_record_says_so() -> None:
    suite = suite_with(task_epochs=(3, 2))
    cell = cell_of(suite)
    record, _ = runner.run(cell, STREAMS["tiny"], device=CPU)
    assert record.status == "done", record.reason
    assert [cost.epochs for cost in record.costs] == [3, 2]
    assert (cell.protocol.epochs, cell.protocol.task_epochs) == (2, (3, 2))
    assert (record.protocol["task_epochs"], record.recipe["task_epochs"]) == ([3, 2], [3, 2])
    assert cell.protocol.departures(cell.suite_protocol) == {}


def test_a_method_with_passes_of_its_own_departs_from_the_suites_card() -> None:
    suite = suite_with(epochs=2)
    (row,) = catalog.rows(replace(suite, recipes={"seqlora": {"task_epochs": (1, 3)}}), ["seqlora"], {})
    (cell,) = plan.cells(suite, STREAMS["tiny"], [row], [0], 0, "cpu")
    assert cell.protocol.departures(cell.suite_protocol) == {"task_epochs": ((1, 3), ())}
    assert cell.protocol.suite_hash == cell.suite_protocol.suite_hash
    assert cell.protocol.hash != cell.suite_protocol.hash


def test_the_union_of_all_tasks_gets_their_mean() -> None:
    cell = cell_of(suite_with(task_epochs=(3, 6)), "joint")
    assert (cell.protocol.epochs, cell.protocol.task_epochs) == (4, ())
    record, _ = runner.run(cell, STREAMS["tiny"], device=CPU)
    assert [cost.epochs for cost in record.costs] == [4]


def test_too_few_numbers_of_passes_are_one_sentence() -> None:
    assert Recipe(task_epochs=(5, 3)).epochs_of(1) == 3
    with pytest.raises(BadValue, match="names 1 tasks and there are more"):
        Recipe(task_epochs=(5,)).epochs_of(1)
    record, _ = runner.run(cell_of(suite_with(task_epochs=(1,))), STREAMS["tiny"], device=CPU)
    assert (record.status, record.reason) == (
        "failed",
        "recipe.task_epochs names 1 tasks and there are more; give each task a number.",
    )


# one optimiser for the stream


def steps_taken(running: runner.Run) -> int:
    return int(next(iter(running.strategy.optimizer.state.values()))["step"])


def test_a_carried_optimizer_keeps_its_moments() -> None:
    running, _ = taught(suite_with(epochs=2, carry_optimizer=True), tasks=2)
    assert steps_taken(running) == 16
    running, _ = taught(suite_with(epochs=2), tasks=2)
    assert steps_taken(running) == 8


class Interrupt(runner.Silent):
    """Ctrl-C after the first task."""

    def task(self, task: int, tasks: int) -> None:
        if task == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("name", "carry"), [("tiny", True), ("tiny-text", True), ("tiny-text", False)])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path, name: str, carry: bool) -> None:
    """To the bit, with the optimiser's moments, the schedule, and answers that are sampled."""
    suite = suite_with(name, epochs=2, carry_optimizer=carry, schedule="cosine", temperature=0.7, clip=1.0)
    cell, stream = cell_of(suite), STREAMS[name]
    whole, answers = runner.run(cell, stream, device=CPU)
    assert whole.status == "done", whole.reason
    folder = Store.create(tmp_path).cell(name, "seqlora", cell.key)
    with pytest.raises(KeyboardInterrupt):
        runner.run(cell, stream, device=CPU, folder=folder, progress=Interrupt())
    resumed, again = runner.run(cell, stream, device=CPU, folder=folder)
    assert "resumed" in (folder.path / "log.jsonl").read_text()
    for field in ("scores", "other_scores", "floors", "weights_sha256", "audit"):
        assert getattr(resumed, field) == getattr(whole, field)
    assert set(again) == set(answers)
    for name in answers:
        assert again[name].tobytes() == answers[name].tobytes()


# what goes where


def test_a_recipe_of_old_fields_has_an_old_key() -> None:
    assert tuple(Recipe().facts()) == FIRST
    changed = {"clip": 1.0, "task_epochs": (5, 3), "temperature": 0.1}
    assert set(Recipe(**changed).facts()) == {*FIRST, *changed}
    assert cell_of(suite_with()).key != cell_of(suite_with(clip=1.0)).key


def test_recipes_of_a_suite_and_of_a_row_reach_their_cells() -> None:
    suite = replace(
        suite_with(epochs=3),
        recipes={"seqlora": {"epochs": 2, "clip": 0.5}},
        contenders=(Contender("seqlora"), Contender("seqlora", recipe={"epochs": 1}, label="once"), Contender("ncm")),
    )
    made = plan.cells(suite, STREAMS["tiny"], catalog.rows(suite, [], {}), [0], 0, "cpu")
    assert [(cell.suite.recipe.epochs, cell.suite.recipe.clip) for cell in made] == [(2, 0.5), (1, 0.5), (3, None)]
    assert [cell.protocol.epochs for cell in made] == [2, 1, 0]
    assert made[0].protocol.optimisation == made[1].protocol.optimisation == "clip 0.5"
    assert made[2].protocol.optimisation == ""
    assert len({cell.key for cell in made}) == 3
    assert len({cell.protocol.suite_hash for cell in made}) == 1
    running = runner.Run(made[1], STREAMS["tiny"], CPU, runner.Silent())
    assert (running.strategy.recipe.epochs, running.strategy.recipe.clip) == (1, 0.5)


@pytest.mark.parametrize(
    "wrong", [{"task_epochs": (5, 0)}, {"steps": (0,)}, {"schedule": "linear"}, {"clip": 0}, {"micro_batch": 0}]
)
def test_impossible_recipes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe(**wrong)


def test_how_answers_are_asked_for_is_part_of_the_streams_hash() -> None:
    (task,) = [tiny.text_task(0)]
    usual = Stream.of_text([task]).sha256()
    for change in ({"answer_tokens": 5}, {"kind": "label"}, {"cue": ""}, {"prefix": ""}):
        assert Stream.of_text([replace(task, **change)]).sha256() != usual
    assert Stream.of_text([tiny.text_task(0)]).sha256() == usual
