from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from clbench.errors import BadValue
from clbench.methods._memory import LogitReservoir, TaskMemory, join, part
from clbench.stream import ImageSet

CPU = torch.device("cpu")


def numbered(first: int, count: int) -> ImageSet:
    """Images whose only pixel is their number, all of one class."""
    numbers = torch.arange(first, first + count, dtype=torch.uint8)
    return ImageSet(numbers.reshape(-1, 1, 1, 1), torch.full((count,), first))


def test_every_task_has_the_same_share() -> None:
    memory, generator = TaskMemory(12), torch.Generator().manual_seed(0)
    for first, expected in ((0, [12]), (20, [6, 6]), (40, [4, 4, 4])):
        memory.add(numbered(first, 20), generator)
        assert [len(targets) for targets in memory.targets] == expected
        for inputs, targets in zip(memory.inputs, memory.targets, strict=True):
            own = set(range(int(targets[0]), int(targets[0]) + 20))
            assert len({int(number) for number in inputs.flatten()} & own) == len(targets)


def test_a_small_task_repeats_its_own_samples_but_they_do_not_count() -> None:
    memory, generator = TaskMemory(8), torch.Generator().manual_seed(0)
    memory.add(numbered(0, 2), generator)
    memory.add(numbered(20, 9), generator)
    inputs, targets, present = memory.stacked()
    assert present.tolist() == [[True, True, False, False], [True] * 4]
    assert targets.tolist() == [[0] * 4, [20] * 4]
    assert sorted(inputs[0].flatten().tolist()) == [0, 0, 1, 1]
    assert len(memory) == 6


def test_a_memory_smaller_than_the_stream_is_refused() -> None:
    memory, generator = TaskMemory(1), torch.Generator().manual_seed(0)
    memory.add(numbered(0, 2), generator)
    with pytest.raises(BadValue, match="buffer_samples is 1, less than one for each of 2 tasks"):
        memory.add(numbered(2, 2), generator)


def offer(reservoir: LogitReservoir, numbers: range, generator: torch.Generator) -> None:
    column = torch.tensor(list(numbers))
    reservoir.add(generator, inputs=column, targets=column, logits=column[:, None].float())


def test_every_sample_is_kept_equally_often() -> None:
    runs, size, samples = 2000, 6, 18
    generator = torch.Generator().manual_seed(0)
    kept = torch.zeros(samples)
    for _ in range(runs):
        reservoir = LogitReservoir(size, CPU)
        for numbers in (range(4), range(4, 11), range(11, 18)):
            offer(reservoir, numbers, generator)
            assert len(reservoir) == min(size, numbers.stop)
        kept[reservoir.rows["inputs"]] += 1
    share = size / samples
    statistic = ((kept - runs * share).square() / (runs * share * (1 - share))).sum().item()
    # `size` of `samples` without repetition: the counts add up to runs * size
    assert 1e-3 < chi2.sf(statistic * (samples - 1) / samples, samples - 1) < 1 - 1e-3


def test_a_row_stays_whole_and_survives_a_checkpoint() -> None:
    reservoir, generator = LogitReservoir(8, CPU), torch.Generator().manual_seed(0)
    offer(reservoir, range(5), generator)
    again = LogitReservoir(8, CPU)
    again.load_state(reservoir.state())
    assert len(reservoir.state()["rows"]["inputs"]) == len(again) == 5
    for one in (reservoir, again):
        offer(one, range(5, 60), torch.Generator().manual_seed(1))
        drawn = one.draw(99, torch.Generator().manual_seed(2))
        assert len(set(drawn["inputs"].tolist())) == 8
        assert torch.equal(drawn["inputs"], drawn["targets"])
        assert torch.equal(drawn["inputs"][:, None].float(), drawn["logits"])
    assert all(torch.equal(reservoir.rows[name], again.rows[name]) for name in reservoir.rows)


def test_what_joins_a_batch_leaves_it_again() -> None:
    strategy: Any = SimpleNamespace(mbatch=[torch.arange(3), torch.arange(3) + 10, torch.zeros(3)])
    for place, name in enumerate(("mb_x", "mb_y")):
        setattr(strategy, name, strategy.mbatch[place])
    join(strategy, torch.tensor([7, 8]), torch.tensor([9]))
    assert strategy.mbatch[0].tolist() == [0, 1, 2, 7, 8, 9]
    strategy.mb_x, strategy.mb_output = strategy.mbatch[0], strategy.mbatch[0] * 2
    assert [piece.tolist() for piece in part(strategy, 2, 1)] == [[14, 16], [18]]
    assert strategy.mb_output.tolist() == [0, 2, 4]
    assert [column.tolist() for column in strategy.mbatch] == [[0, 1, 2], [10, 11, 12], [0, 0, 0]]


def text(rows: int, width: int, answer: int, first: int) -> dict[str, torch.Tensor]:
    """Rows that hold nothing but their own number, as wide as they say."""
    numbers = torch.arange(first, first + rows)
    return {
        "inputs": numbers[:, None, None].repeat(1, 2, width),
        "targets": numbers[:, None].repeat(1, answer),
        "logits": numbers[:, None, None].repeat(1, 3, answer).float(),
    }


def test_text_of_any_width_is_kept_and_comes_back_as_it_was() -> None:
    reservoir, generator = LogitReservoir(6, CPU), torch.Generator().manual_seed(0)
    reservoir.add(generator, **text(2, 5, 1, 1))
    reservoir.add(generator, **text(2, 9, 3, 3))
    reservoir.add(generator, **text(1, 4, 2, 5))
    again = LogitReservoir(6, CPU)
    again.load_state(reservoir.state())
    widths = set()
    for seed in range(20):
        drawn = reservoir.draw(2, torch.Generator().manual_seed(seed))
        same = again.draw(2, torch.Generator().manual_seed(seed))
        assert all(torch.equal(drawn[name], same[name]) for name in drawn)
        numbers = drawn["inputs"][:, 0, -1].tolist()
        own = [(5, 1) if number < 3 else (9, 3) if number < 5 else (4, 2) for number in numbers]
        assert drawn["inputs"].shape[-1] == max(width for width, _ in own)
        assert drawn["targets"].shape[-1] == drawn["logits"].shape[-1] == max(answer for _, answer in own)
        for row, (number, (width, answer)) in enumerate(zip(numbers, own, strict=True)):
            assert drawn["inputs"][row, 1].tolist() == [0] * (drawn["inputs"].shape[-1] - width) + [number] * width
            missing = drawn["targets"].shape[-1] - answer
            assert drawn["targets"][row].tolist() == [-100] * missing + [number] * answer
            assert drawn["logits"][row, 2].tolist() == [0.0] * missing + [float(number)] * answer
        widths.add(drawn["inputs"].shape[-1])
    assert len(widths) == 2
