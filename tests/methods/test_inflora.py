from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from clbench import tiny
from clbench.methods.inflora import InfLoRA, Memory, second_moments
from clbench.stream import Stream


def spectrum(*energies: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Σ x x' with these energies, and its directions as columns."""
    square = torch.randn(len(energies), len(energies), generator=torch.Generator().manual_seed(seed)).double()
    directions = torch.linalg.qr(square).Q
    return directions @ torch.diag(torch.tensor(energies, dtype=torch.float64)) @ directions.T, directions


def empty(width: int) -> Memory:
    return Memory(torch.zeros(width, 0))


@pytest.mark.parametrize(("energy", "size"), [(0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.99, 4), (1.0, 4)])
def test_takes_the_strongest_directions_until_the_share_is_reached(energy: float, size: int) -> None:
    moment, directions = spectrum(0.5, 0.3, 0.15, 0.05)
    past = empty(4).grown(moment, energy - 1e-9).past()
    assert past.shape == (4, size)
    torch.testing.assert_close(past @ past.T, directions[:, :size] @ directions[:, :size].T, atol=1e-6, rtol=0)


def test_what_is_known_already_counts_towards_the_share() -> None:
    moment, directions = spectrum(0.6, 0.2, 0.1, 0.06, 0.03, 0.01)
    known = Memory(directions[:, :1].float())
    assert known.grown(moment, 0.59).past().shape[1] == 1
    assert known.grown(moment, 0.75).past().shape[1] == 2


def test_the_two_forms_of_storage_are_one_memory() -> None:
    width, memory = 8, empty(8)
    expected = torch.zeros(width, 0, dtype=torch.float64)
    for seed in range(4):
        moment, _ = spectrum(40, 9, 2, 1, 0.5, 0.2, 0.1, 0.1, seed=seed)
        outside = torch.eye(width).double() - expected @ expected.T
        vectors, energies, _ = torch.linalg.svd(outside @ moment @ outside)
        captured, taken = moment.trace() - energies.sum(), 0
        while captured < 0.9 * moment.trace():
            captured, taken = captured + energies[taken], taken + 1
        expected = torch.cat([expected, vectors[:, :taken]], dim=1)
        memory = memory.grown(moment, 0.9)
        assert memory.holds_past == (expected.shape[1] <= width / 2)
        assert memory.basis.shape[1] <= width / 2
        past, free = memory.past(), memory.free()
        torch.testing.assert_close(past @ past.T, expected @ expected.T, atol=1e-5, rtol=0)
        torch.testing.assert_close(past @ past.T + free @ free.T, torch.eye(width).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close(past.T @ past, torch.eye(past.shape[1]).double(), atol=1e-6, rtol=0)
    assert not memory.holds_past  # both forms have been there


def test_moments_are_those_of_all_tokens_of_the_task(begin: Any, teach: Any) -> None:
    run = teach(begin(InfLoRA()), 0)
    layers = run.plugins[0].lora.layers
    given: list[Tensor] = []
    hook = layers[1].register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0].detach()))
    images = run.stream.tasks[0].train.images
    run.model.eval()(images)
    hook.remove()
    tokens = given[0].flatten(0, 1).double()
    expected = tokens.T @ tokens / len(images)
    torch.testing.assert_close(second_moments(run.strategy, layers, 1)[1], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second_moments(run.strategy, layers, 2)[1], expected @ expected, atol=1e-2, rtol=1e-4)


def test_the_input_side_is_fixed_and_outside_the_past(begin: Any, teach: Any) -> None:
    run = begin(InfLoRA(energy_first=0.6, energy_last=0.6))
    plugin = run.plugins[0]
    for number in range(3):
        pasts = [memory.past().float() for memory in plugin.memories]
        teach(run, number)
        for layer, past in zip(plugin.lora.layers, pasts, strict=True):
            assert not layer.down.requires_grad
            k, v = layer.down.split(layer.rank)
            assert torch.equal(k, v)
            torch.testing.assert_close(3 * k @ k.T, torch.eye(layer.rank), atol=1e-5, rtol=0)
            update = layer.up @ k
            assert update.abs().max() > 1e-3
            if number:
                assert past.shape[1] >= 1
                assert (k @ past).abs().max() < 1e-5
                assert (update @ past).abs().max() < 1e-5


def test_only_the_output_sides_and_the_head_are_trained(begin: Any) -> None:
    run = begin(InfLoRA())
    names = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert names == {"head.weight", "head.bias", *(f"body.blocks.{block}.attn.qkv.up" for block in (0, 1))}


def test_where_nothing_is_free_nothing_is_learned(begin: Any, teach: Any) -> None:
    run = teach(begin(InfLoRA()), 0)
    plugin, layer = run.plugins[0], run.plugins[0].lora.layers[0]
    plugin.memories = [Memory(torch.eye(16)[:, :free], holds_past=False) for free in (0, 1)]
    assert plugin.notes() == {"memory_share": [1.0, 0.9375]}
    teach(run, 1)
    assert layer.past_up.any()
    assert not layer.down.any()
    assert not layer.up.any()
    only = plugin.lora.layers[1]  # one row a part, and the other one missing
    assert (only.down != 0).sum(1).tolist() == [1, 0, 1, 0]
    assert (only.up != 0).any(0).tolist() == [True, False]


def test_the_share_rises_with_the_tasks_from_its_first_value(begin: Any, teach: Any) -> None:
    for tasks in (1, 3):
        run = begin(InfLoRA(), tasks=tasks)
        seen: list[float] = []
        run.plugins[0].memories = [Spy(seen)] * 2
        run.plugins[0].before_train_dataset_adaptation = lambda *args, **kwargs: None
        teach(run)
        assert seen[::2] == pytest.approx([0.95, 0.95 + 0.05 / 3, 0.95 + 0.1 / 3][:tasks])


class Spy:
    basis, holds_past = torch.zeros(0), True

    def __init__(self, seen: list[float]) -> None:
        self.seen = seen

    def grown(self, moment: Tensor, energy: float) -> Spy:
        self.seen.append(energy)
        return self


def test_squared_energies_keep_fewer_directions(begin: Any, teach: Any) -> None:
    kept = {}
    for squared in (False, True):
        run = teach(begin(InfLoRA(compat_squared_moment=squared), tasks=2, epochs=1))
        kept[squared] = [memory.past().shape[1] for memory in run.plugins[0].memories]
    assert all(few < many for few, many in zip(kept[True], kept[False], strict=True)), kept


def test_alignment_changes_the_known_rows_of_the_head_alone_and_is_taken_back(
    begin: Any, teach: Any, weights: Any
) -> None:
    aligned, plain = (begin(InfLoRA(alignment_epochs=epochs), epochs=1) for epochs in (1, 0))
    for task in range(3):
        mine, theirs = weights(teach(aligned, task)), weights(teach(plain, task))
        names = ("head.weight", "head.bias")
        assert all(torch.equal(mine[name], theirs[name]) for name in mine if name not in names)
        for kept, name in zip(aligned.plugins[1].trained, names, strict=True):
            known = 2 * (task + 1) if task else 0  # two classes a task, and no alignment after the first
            assert not any(torch.equal(*rows) for rows in zip(mine[name][:known], theirs[name][:known], strict=True))
            assert torch.equal(mine[name][known:], theirs[name][known:])
            assert torch.equal(kept, theirs[name])
    assert aligned.plugins[1].statistics.classes.tolist() == list(range(6))
    assert aligned.cell.protocol.class_statistics
    assert not plain.cell.protocol.class_statistics


def test_an_aligned_run_goes_on_as_if_never_stopped(begin: Any, teach: Any, weights: Any) -> None:
    whole, fresh = (begin(InfLoRA(alignment_epochs=1), tasks=2, epochs=1) for _ in range(2))
    fresh.unpack(teach(whole, 0).pack())
    expected, found = weights(teach(whole, 1)), weights(teach(fresh, 1))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_alignment_needs_classes_that_come_once() -> None:
    images, text = tiny.stream(tasks=1), tiny.text_stream(tasks=1)
    assert InfLoRA().unsupported(text) is None
    assert InfLoRA(alignment_epochs=1).unsupported(images) is None
    assert "answers are open" in InfLoRA(alignment_epochs=1).unsupported(text)
    twice = Stream((*images, replace(images.tasks[0], name="again")))
    assert "comes in two tasks" in InfLoRA(alignment_epochs=1).unsupported(twice)


def test_refuses_a_falling_share() -> None:
    with pytest.raises(ValidationError, match="must not be below"):
        InfLoRA(energy_first=0.9, energy_last=0.8)
