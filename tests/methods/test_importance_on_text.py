"""Importance, projection and distillation of text: by the loop over samples, and on what is trained alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.meter import tensor_bytes
from clbench.methods import _gradients
from clbench.methods._answers import answered, true_logits
from clbench.methods._gradients import at_once, flat, flat_gradient
from clbench.methods.agem import AGEM
from clbench.methods.ewc import EWC, fisher_diagonal
from clbench.methods.finetune import FineTune
from clbench.methods.gem import GEM
from clbench.methods.joint import Joint
from clbench.methods.lwf import LwF, distillation
from clbench.methods.mas import MAS, sensitivity
from clbench.methods.ogd import OGD
from clbench.methods.seqlora import SeqLoRA
from clbench.methods.si import SI
from clbench.padding import IGNORED
from clbench.strategy import Plugin

PICKS = torch.arange(0, 64, 5)
FEW = {"tasks": 3, "epochs": 3}


def trained(method: Any, begin_text: Any, teach: Any, *lessons: int, **recipe: Any) -> tuple[Any, Tensor, Tensor]:
    """A run after its lessons, and samples of its second task."""
    run = teach(begin_text(method, **{**FEW, **recipe}), *lessons)
    run.model.eval()
    run.model.begin(run.stream.tasks[1])
    return run, *run.stream.tasks[1].train.batch(PICKS, run.device)


def alone(inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each sample as a batch of its own, without padding."""
    return [(x[None][:, :, x[1] > 0], y[None][:, y != IGNORED]) for x, y in zip(inputs, targets, strict=True)]


def by_loop(run: Any, inputs: Tensor, targets: Tensor, value: Any) -> list[Tensor]:
    """Gradients of `value(logits, targets)` by one backward pass for each sample."""
    found = []
    for x, y in alone(inputs, targets):
        run.model.zero_grad()
        value(run.model(x)[0, -y.shape[1] :], y[0]).backward()
        found.append(flat_gradient(run.model.trainable()))
    return found


def test_an_answers_logits_and_shares() -> None:
    logits = torch.arange(24.0).view(2, 4, 3)
    targets = torch.tensor([[IGNORED, 2, 0], [1, 1, 1]])
    at, shares = answered(logits, targets)
    assert torch.equal(at, logits[:, 1:])
    torch.testing.assert_close(shares, torch.tensor([[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]]))
    assert true_logits(logits, targets).tolist() == [8 + 9, 16 + 19 + 22]
    classes = torch.tensor([[5.0, 6, 7]])
    assert answered(classes, torch.tensor([1]))[0] is classes
    assert true_logits(classes, torch.tensor([1])).tolist() == [6]


WHOLE = EWC(scope="full", mode="online", learning_rate=1e-3)


@pytest.mark.parametrize(("method", "chunk"), [(SeqLoRA(), 1), (SeqLoRA(), 4), (SeqLoRA(), 32), (WHOLE, 1), (WHOLE, 4)])
def test_the_fisher_is_that_of_single_samples(method: Any, chunk: int, begin_text: Any, teach: Any) -> None:
    run, inputs, targets = trained(method, begin_text, teach, 0)
    loop = by_loop(run, inputs, targets, F.cross_entropy)
    expected = torch.stack([gradient.square() for gradient in loop]).mean(0)
    found = fisher_diagonal(run.model, inputs, targets, run.strategy.allowed, chunk)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-3)
    assert found.any()


def test_sampled_tokens_stand_where_true_ones_do(begin_text: Any, teach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def note(model: Any, inputs: Tensor, targets: Tensor, *rest: Any) -> Tensor:
        seen["targets"] = targets
        return fisher_diagonal(model, inputs, targets, *rest)

    monkeypatch.setattr("clbench.methods.ewc.fisher_diagonal", note)
    run = teach(begin_text(EWC(fisher_samples=24), **FEW), 0)
    _, own = run.stream.tasks[0].train.batch(torch.arange(24), run.device)
    assert seen["targets"].shape == own.shape
    assert 0 <= seen["targets"].min() <= seen["targets"].max() < run.model.classes
    assert not torch.equal(seen["targets"], own)  # after a few steps it is not sure


def test_sensitivity_is_that_of_single_samples(begin_text: Any, teach: Any) -> None:
    run, inputs, targets = trained(SeqLoRA(), begin_text, teach, 0)
    loop = by_loop(run, inputs, targets, lambda logits, _: logits.square().sum(1).mean())
    expected = torch.stack([gradient.abs() for gradient in loop]).mean(0)
    found = sensitivity(run.model, inputs, targets, run.strategy.allowed, 5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_barred_are_the_gradients_of_the_answers_summed_logits(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(OGD(vectors=64), **FEW), 0)
    inputs, targets = run.stream.tasks[0].train.batch(PICKS, run.device)
    run.model.eval()
    basis = run.plugins[0].basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-4, rtol=0)
    for vector in by_loop(run, inputs, targets, lambda logits, own: logits.gather(1, own[:, None]).sum()):
        torch.testing.assert_close((basis @ vector) @ basis, vector, atol=1e-2 * vector.abs().max().item(), rtol=0)


class Steps(Plugin):
    """How far each step goes along what the plugin holds against it, as a share of both lengths."""

    def __init__(self, rows: Any) -> None:
        super().__init__()
        self.rows, self.along = rows, []

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.weights = flat(strategy.model.trainable()).detach()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        step = self.weights - flat(strategy.model.trainable()).detach()
        self.along.append(F.normalize(self.rows(), dim=1) @ step / step.norm())


def test_no_step_goes_against_a_past_task(begin_text: Any, teach: Any) -> None:
    gem = GEM(margin=0.0, ridge=1e-5, buffer_samples=24, reference_batch=8)
    run = teach(begin_text(gem, **FEW), 0)
    probe = Steps(lambda: run.plugins[0].references)
    run.strategy.plugins.append(probe)
    teach(run, 1, 2)
    assert {len(along) for along in probe.along} == {1, 2}
    assert torch.cat(probe.along).min() > -2e-3  # M g̃ ≥ 0
    average = teach(begin_text(AGEM(buffer_samples=24, reference_batch=8), **FEW), 0)
    other = Steps(lambda: average.plugins[0].reference[None])
    average.strategy.plugins.append(other)
    teach(average, 1)
    assert torch.cat(other.along).min() > -1e-4


def test_steps_are_orthogonal_to_the_past(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(OGD(vectors=16), **FEW), 0)
    probe = Steps(lambda: run.plugins[0].basis)
    run.strategy.plugins.append(probe)
    teach(run, 1)
    assert torch.stack(probe.along).abs().max() < 1e-3


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_references_are_the_same_in_pieces(micro_batch: int | None, begin_text: Any, teach: Any) -> None:
    gem = teach(begin_text(GEM(buffer_samples=14), **FEW), 0, 1)
    average = teach(begin_text(AGEM(buffer_samples=10, reference_batch=10), **FEW), 0)
    for run in (gem, average):
        run.strategy.recipe = run.strategy.recipe.model_copy(update={"micro_batch": micro_batch})
        run.plugins[0].before_training_exp(run.strategy)
        assert run.plugins[0].prepare(run.strategy)
        run.model.eval()
    memory, buffer = gem.plugins[0].memory, average.plugins[0].buffer
    kept = [*zip(memory.inputs, memory.targets, strict=True), (buffer.inputs, buffer.targets)]
    found = [*gem.plugins[0].references, average.plugins[0].reference]
    for run, (inputs, targets), reference in zip((gem, gem, average), kept, found, strict=True):
        expected = torch.stack(by_loop(run, inputs, targets, F.cross_entropy)).mean(0)
        torch.testing.assert_close(reference, expected, atol=1e-5, rtol=1e-3)


def test_distillation_is_the_mean_over_an_answers_tokens(begin_text: Any, teach: Any) -> None:
    run, inputs, targets = trained(LwF(), begin_text, teach, 0)
    plugin, strategy = run.plugins[0], run.strategy
    strategy.mbatch = [inputs, targets, torch.ones(len(targets))]
    with torch.no_grad():
        old = run.model(inputs)
        for parameter in run.model.trainable():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        new = run.model(inputs)
        strategy.mb_output, strategy.loss = new, torch.zeros(())
        plugin.before_backward(strategy)
    expected = []
    for before, after, own in zip(old, new, targets, strict=True):
        places = [-place for place in range(1, int((own != IGNORED).sum()) + 1)]
        q, p = ((logits[places] / 2).log_softmax(-1) for logits in (before, after))
        expected.append(4 * (q.exp() * (q - p)).sum(-1).mean())
    torch.testing.assert_close(strategy.loss, torch.stack(expected).mean(), atol=1e-5, rtol=1e-4)
    assert strategy.loss > 0.01
    assert distillation(new, new, torch.ones(new.shape[:2]), 2.0).abs() < 1e-6


KEPT = {
    EWC: ({"fisher_samples": 8}, 2),  # importance and centre
    MAS: ({"samples": 8}, 2),
    SI: ({}, 2),
    LwF: ({}, 1),
    OGD: ({"vectors": 8}, 8),
}


@pytest.mark.parametrize("method", KEPT)
def test_only_what_is_trained_is_held_again(method: Any, begin_text: Any, teach: Any) -> None:
    settings, copies = KEPT[method]
    run = teach(begin_text(method(**settings), epochs=1), 0)
    numbers = sum(parameter.numel() for parameter in run.model.trainable())
    held: dict[str, Tensor] = {}
    for name, value in run.plugins[0].state().items():
        held.update({f"{name}/{key}": one for key, one in (value if isinstance(value, dict) else {"": value}).items()})
    known = held.pop("known/", torch.empty(0))  # the teacher's classes: tokens
    assert tensor_bytes(held) <= 4 * copies * numbers
    assert tensor_bytes(held) >= 4 * (copies - 1) * numbers
    assert len(known) in (0, run.model.classes)
    body = sum(parameter.numel() for parameter in run.model.body.parameters()) - numbers
    assert numbers < 0.1 * body
    assert run.state.costs[0].trainable_parameters == numbers


def test_as_many_gradients_at_once_as_a_training_pass_has_samples(begin_text: Any) -> None:
    recipe = begin_text(SeqLoRA()).strategy.recipe
    text, images = torch.zeros(4, 2, 9, dtype=torch.int64), torch.zeros(4, 3, 8, 8)
    assert at_once(recipe, text, 32) == recipe.batch_size == 16
    assert at_once(recipe, text, 8) == 8
    assert at_once(recipe.model_copy(update={"micro_batch": 2}), text, 32) == 2
    assert at_once(recipe.model_copy(update={"micro_batch": 2, "checkpointing": True}), text, 32) == 1
    assert at_once(recipe.model_copy(update={"micro_batch": 2}), images, 32) == 32


def test_a_single_row_of_text_needs_no_transform(begin_text: Any, teach: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inputs, targets = trained(SeqLoRA(), begin_text, teach, 0)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return run.model.losses(logits, targets, run.strategy.allowed)[0]

    rows = inputs[:, None], targets[:, None]
    together = _gradients.row_gradients(run.model, loss, *rows)
    monkeypatch.setattr(_gradients, "vmap", None)
    for place in range(2):
        one = _gradients.row_gradients(run.model, loss, *(tensor[place : place + 1] for tensor in rows))
        torch.testing.assert_close(one[0], together[place], atol=1e-6, rtol=1e-3)


METHODS = [
    EWC(fisher_samples=16),
    EWC(fisher_samples=16, labels="gold"),
    MAS(samples=16),
    SI(),
    LwF(),
    OGD(vectors=16),
    GEM(buffer_samples=12),
    AGEM(buffer_samples=12),
    FineTune(learning_rate=1e-3),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_in_half_precision_with_small_passes(method: Any, begin_text: Any, teach: Any) -> None:
    run = begin_text(method, epochs=1, precision="bfloat16", micro_batch=4, checkpointing=True)
    teach(run)
    assert all(parameter.dtype == torch.float32 for parameter in run.model.trainable())
    assert all(parameter.isfinite().all() for parameter in run.model.trainable())
    embedding = run.model.body.get_input_embeddings().weight
    assert embedding.dtype == (torch.float32 if method.name == "finetune" else torch.bfloat16)


def test_joint_learns_all_tasks_of_text_at_once(begin_text: Any, teach: Any) -> None:
    run = teach(begin_text(Joint(), epochs=10))
    assert [row for row in run.state.scores if row[0] is not None] == [run.state.scores[2]]
    assert min(run.state.scores[2]) > 0.8
