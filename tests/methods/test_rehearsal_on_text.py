"""Rehearsal of text: what is kept, how it joins a batch, and that its width changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clbench import tiny
from clbench.methods._buffer import Buffer, distinct
from clbench.methods._memory import TaskMemory
from clbench.methods.derpp import DERpp, distance_of_largest, largest
from clbench.methods.er_ace import ERACE
from clbench.methods.replay import Replay, first_rows
from clbench.methods.seqlora import SeqLoRA
from clbench.padding import IGNORED, join
from clbench.strategy import Plugin
from clbench.stream import Stream
from clbench.text import Row, TextTask

CPU = torch.device("cpu")
SETTINGS = tiny.tiny_text.settings["replay"]


def repeated(task: TextTask) -> TextTask:
    """Every row of the task's first half twice, and answers of two lengths."""
    rows = [Row(row.prompt, row.answer * (1 + place % 2)) for place, row in enumerate(task.train[:32])]
    return replace(task, train=(*rows, *rows), answer_tokens=3)


def doubled(tasks: int = 2) -> Stream:
    return Stream.of_text([repeated(tiny.text_task(index)) for index in range(tasks)])


def row(inputs: Tensor) -> tuple[int, ...]:
    """The tokens of one sample, without padding."""
    return tuple(inputs[0][inputs[1] > 0].tolist())


def test_a_row_that_repeats_is_kept_once(begin_text: Any) -> None:
    run = begin_text(Replay(**SETTINGS), stream=doubled())
    examples = run.stream.tasks[0].train
    assert distinct(examples).tolist() == list(range(32))
    for kept in (Buffer(64, "class"), Buffer(64, "reservoir")):
        kept.add(examples, torch.Generator().manual_seed(0))
        assert len({row(sample) for sample in kept.inputs}) == len(kept) == kept.passed == 32
    memory = TaskMemory(64)
    memory.add(examples, torch.Generator().manual_seed(0))
    assert len(memory) == 32


def test_tasks_of_text_share_the_buffer_evenly_and_its_rows_are_noted(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(Replay(buffer_samples=10, replay_batch=4), tasks=3, epochs=1))
    buffer = run.plugins[0].buffer
    noted = run.plugins[0].notes()["kept_rows"]
    assert {task: len(rows) for task, rows in noted.items()} == {"1": 3, "2": 3, "3": 3}
    own = {row(sample) for sample in buffer.inputs}
    assert own == {
        row(run.stream.tasks[int(task) - 1].train.batch(torch.tensor([place]), CPU)[0][0])
        for task, places in noted.items()
        for place in places
    }
    again = Buffer(10, "class")
    again.load_state(buffer.state())
    again.add(run.stream.tasks[0].train, torch.Generator())
    assert {task: len(rows) for task, rows in again.notes()["kept_rows"].items()} == dict.fromkeys("1234", 2)


def test_a_task_that_leaves_no_row_in_the_reservoir_still_counts(begin_text: Any) -> None:
    run = begin_text(Replay(), tasks=3)
    buffer, generator = Buffer(1, "reservoir"), torch.Generator().manual_seed(0)
    for task in run.stream:
        buffer.add(task.train, generator)
    (task, (place,)) = next(iter(buffer.notes()["kept_rows"].items()))
    kept = run.stream.tasks[int(task) - 1].train.batch(torch.tensor([place]), CPU)[0][0]
    assert row(kept) == row(buffer.inputs[0])


def test_rows_of_mixed_widths_have_the_loss_of_each_alone(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(Replay(**SETTINGS), stream=doubled(), epochs=2))
    model, buffer = run.model.eval(), run.plugins[0].buffer
    wide_inputs, wide_targets = F.pad(buffer.inputs, (7, 0)), F.pad(buffer.targets, (4, 0), value=IGNORED)
    model.span = wide_targets.shape[1]
    with torch.no_grad():
        together = model.losses(model(wide_inputs), wide_targets, run.strategy.allowed)
        for place, (inputs, targets) in enumerate(zip(buffer.inputs, buffer.targets, strict=True)):
            alone = inputs[:, inputs[1] > 0][None], targets[targets != IGNORED][None]
            loss = model.losses(model(alone[0]), alone[1], run.strategy.allowed)
            torch.testing.assert_close(loss[0], together[place], atol=1e-5, rtol=1e-4)


class Batches(Plugin):
    """What each pass sees, and its task column."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[tuple[int, ...]]] = []
        self.tasks: list[list[int]] = []
        self.rates: list[float] = []

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.rows.append([row(sample) for sample in strategy.mb_x])
        self.tasks.append(strategy.mbatch[2].tolist())
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])


def tokens_of(run: Any, task: int, places: range) -> list[tuple[int, ...]]:
    return [row(sample) for sample in run.stream.tasks[task].train.batch(torch.tensor(list(places)), CPU)[0]]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_after_a_task_comes_one_pass_over_the_first_tenth_of_past_ones(
    schedule: str, begin_text: Any, teach: Any
) -> None:
    method = Replay(flavour="after", buffer_samples=24)
    run = begin_text(method, tasks=3, schedule=schedule)
    probe = Batches()
    run.strategy.plugins.append(probe)
    for number in range(3):
        probe.rows.clear(), probe.tasks.clear(), probe.rates.clear()
        teach(run, number)
        steps = 2 * 4  # two passes over 64 rows in batches of 16
        assert [set(tasks) for tasks in probe.tasks[:steps]] == [{number}] * steps
        rehearsed = [tokens for rows in probe.rows[steps:] for tokens in rows]
        past = [tokens for task in range(number) for tokens in tokens_of(run, task, range(6))]
        assert sorted(rehearsed) == sorted(past)  # once each, and none of the current task's
        assert all(set(tasks) == {-1} for tasks in probe.tasks[steps:])
        assert all(rate == run.strategy.learning_rate for rate in probe.rates[steps:])
        assert run.strategy.recipe.schedule == schedule
        assert run.plugins[0].kept_samples() == 6 * (number + 1)
    assert run.plugins[0].notes() == {"kept_rows": {str(task): list(range(6)) for task in (1, 2, 3)}}


def test_the_first_rows_are_not_drawn_and_none_repeats(begin_text: Any) -> None:
    run = begin_text(Replay(), stream=doubled())
    examples = run.stream.tasks[0].train
    assert first_rows(examples, 0.1).tolist() == list(range(6))
    assert first_rows(examples, 0.75).tolist() == list(range(32))  # the other 16 of the first 48 stand there already
    assert first_rows(examples, 1e-6).tolist() == [0]


def test_the_flavour_of_text_says_where_it_cannot_be_used() -> None:
    after = Replay(flavour="after", buffer_samples=18)
    assert after.unsupported(tiny.text_stream()) is None
    assert after.resources().replay_batch == 0
    small = Replay(flavour="after", buffer_samples=17).unsupported(tiny.text_stream())
    assert small == "flavour 'after' keeps up to 18 rows of this stream; set buffer_samples=18, or a lower share"
    assert "images come sorted by class" in str(after.unsupported(tiny.stream()))


@pytest.mark.parametrize(
    "method",
    [Replay(**SETTINGS), Replay(**SETTINGS, buffer_weight=1.0), DERpp(buffer_samples=24, replay_batch=8)],
)
def test_pieces_of_a_batch_bring_their_share_of_kept_rows(method: Any, begin_text: Any, teach: Any) -> None:
    run = begin_text(method, epochs=1, micro_batch=4)
    probe = Batches()
    teach(run, 0)
    run.strategy.plugins.append(probe)
    sizes: list[int] = []
    plain = run.model.forward
    run.model.forward = lambda inputs: sizes.append(len(inputs)) or plain(inputs)
    teach(run, 1)
    extra = 2 if isinstance(method, Replay) else 4  # of 8 kept rows a batch, or of each of two draws
    assert sizes[:16] == [4 + extra] * 16
    assert len(probe.rows) == 16


def test_replay_forgets_less_than_none(begin_text: Any, teach: Any) -> None:
    past = []
    after = Replay(flavour="after", buffer_samples=64, share=0.5)
    for method in (SeqLoRA(), Replay(**SETTINGS), after, DERpp(**SETTINGS)):
        run = teach(begin_text(method, epochs=10))
        assert min(run.state.scores[1][0], run.state.scores[2][1]) > 0.8
        inputs, targets = run.stream.tasks[0].train.batch(torch.arange(32, 64), CPU)
        with torch.no_grad():
            past.append(run.model.losses(run.model.eval()(inputs), targets, run.strategy.allowed).mean().item())
    assert max(past[1:]) < past[0] - 0.1, past


def test_the_largest_logits_by_hand() -> None:
    logits = torch.tensor([[[9.0, 9, 9], [1, 3, 2], [0, 0, 4]]])
    kept = largest(logits, torch.tensor([[1, 2]]), 2)
    assert kept["logits"].tolist() == [[[3, 4], [2, 0]]]
    assert kept["places"][0, :, 0].tolist() == [1, 2]
    torch.testing.assert_close(kept["total"], logits[:, 1:].logsumexp(-1))
    assert distance_of_largest(logits, torch.tensor([[1, 2]]), kept).item() == 0
    moved = logits.clone()
    moved[0, 1, 1], moved[0, 0] = 4.0, 0.0
    change = moved[0, 1].logsumexp(-1) - logits[0, 1].logsumexp(-1)
    expected = (1 + change.square()) / 3 / 2  # two logits and their sum, of one token of two
    torch.testing.assert_close(distance_of_largest(moved, torch.tensor([[1, 2]]), kept), expected)


def test_what_dark_experience_keeps_of_text_is_what_the_model_said(begin_text: Any, teach: Any) -> None:
    method = DERpp(buffer_samples=30, replay_batch=8, kept_logits=5, learning_rate=1e-12)
    run = teach(begin_text(method, stream=doubled(), epochs=1))
    plugin = run.plugins[0]
    rows = plugin.reservoir.draw(30, torch.Generator())
    assert rows["logits"].shape[1] == 5
    assert len({row(sample) for sample in rows["inputs"]}) > 20
    with torch.no_grad():
        distance = distance_of_largest(run.model.eval()(rows["inputs"]), rows["targets"], rows)
    assert distance.item() < 1e-8
    assert plugin.marks() == ["DER++ compares the 5 largest logits of a token and their logsumexp, not all"]


def test_without_a_class_of_its_own_there_is_nothing_to_mask() -> None:
    assert "share one vocabulary" in str(ERACE().unsupported(tiny.text_stream()))
    assert ERACE().unsupported(tiny.stream()) is None


def test_what_joins_text_may_be_wider(begin_text: Any, teach: Any) -> None:
    task = tiny.text_task(1)
    long = replace(task, train=tuple(Row(f"1{'x' * 9}{prompt}", answer) for prompt, answer in task.train))
    stream = Stream.of_text([long, tiny.text_task(0)])
    run = teach(begin_text(Replay(**SETTINGS), stream=stream, epochs=10))
    assert run.state.scores[2][1] > 0.8
    widths = join([task.train.batch(torch.arange(2), CPU)[0] for task in run.stream]).shape[-1]
    assert run.plugins[0].buffer.inputs.shape[-1] == widths
