from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench import runner, tiny
from clbench.methods._decomposition import Contrast, align, repeated_classes
from clbench.methods._statistics import ClassStatistics
from clbench.methods.hidelora import HiDeLoRA
from clbench.stream import Stream


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(centroids: Tensor, features: Tensor) -> Tensor:
    """The term as it is written, in double precision."""
    rows = torch.cat([centroids, features]).double()
    return F.cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows)))


@pytest.mark.parametrize("size", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("past", [0, 1, 7])
def test_the_contrast_is_cross_entropy_against_the_identity(past: int, size: float) -> None:
    centroids, features = size * numbers(1, past, 4), (size * numbers(2, 5, 4)).requires_grad_()
    ours, theirs = Contrast(centroids)(features), plain(centroids, features)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, features)[0] for loss in (ours, theirs)]
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_contrast_is_not_rounded_away_where_products_are_large() -> None:
    rows = torch.cat([torch.full((12, 1), 64.0), 3 * torch.eye(12)], dim=1)  # products of 5,120, one's own 11.25 more
    expected = math.log1p(11 * math.exp(-9 / 0.8))
    assert Contrast(rows[:5])(rows[5:]).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("past", [0, 6])
def test_orthogonal_features_of_large_norm_have_no_contrast(past: int) -> None:
    rows = torch.linalg.qr(numbers(6, 16, 16)).Q
    losses = [Contrast(size * rows[:past])(size * rows[past:]).item() for size in (0.5, 1.0, 2.0, 4.0, 20.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1
    assert losses[-1] == pytest.approx(0, abs=1e-6)


def known(*classes: int) -> ClassStatistics:
    statistics = ClassStatistics(4, torch.device("cpu"), "variance")
    targets = torch.tensor(classes).repeat_interleave(30)
    statistics.add(2 * torch.eye(4)[targets % 4] + 0.3 * numbers(1, len(targets), 4), targets, 0)
    return statistics


def test_alignment_is_momentum_sgd_with_a_cosine_on_drawn_features() -> None:
    statistics, start = known(5, 2, 0), numbers(2, 3, 4)
    weight = nn.Parameter(start.clone())
    draws = torch.Generator().manual_seed(3)
    align(lambda x: x @ weight.T, [weight], statistics, epochs=4, per_class=50, rate=0.1, draws=draws)
    draws.manual_seed(3)
    expected, velocity = start.double(), torch.zeros(3, 4, dtype=torch.float64)
    for rate in (0.1, 0.0853553, 0.05, 0.0146447):  # 0.05 (1 + cos(pi epoch / 4))
        features, places = statistics.sample(50, draws)
        for rows in torch.randperm(150, generator=draws).split(120):
            x = features[rows].double()
            errors = (x @ expected.T).softmax(1) - F.one_hot(places[rows], 3)
            velocity = 0.9 * velocity + errors.T @ x / len(rows) + 5e-4 * expected
            expected = expected - rate * velocity
    torch.testing.assert_close(weight.double(), expected, atol=1e-5, rtol=1e-4)


def test_a_stream_that_brings_a_class_again_is_declined() -> None:
    stream = tiny.stream()
    assert repeated_classes(stream) is None
    again = Stream((*stream.tasks, replace(stream.tasks[1], name="once more", classes=(6, 3))))
    assert repeated_classes(again) == (
        "it infers a sample's task from its class, and task 'once more' has class 3 again"
    )
    assert HiDeLoRA().unsupported(again) == repeated_classes(again)


def watched(run: runner.Run) -> list[dict[str, Tensor]]:
    """Grows by a copy of all tensors of the model at the end of each epoch."""
    seen: list[dict[str, Tensor]] = []
    run.strategy.on_epoch = lambda epoch, epochs, loss: seen.append(tensors(run))
    return seen


def tensors(run: runner.Run) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def test_alignment_moves_seen_rows_of_both_classifiers_and_nothing_else(begin: Any, teach: Any) -> None:
    tasks = tiny.stream().tasks
    run = begin(HiDeLoRA(momentum=0), stream=Stream((tasks[2], tasks[0], tasks[1])))
    router, trained = run.plugins[0].router, watched(run)
    banks = {f"body.blocks.{block}.attn.qkv.bank_{factor}" for block in (0, 1) for factor in ("down", "up")}
    start = router.head.weight.detach().clone()
    for task, seen in enumerate(({4, 5}, {4, 5, 0, 1}, {4, 5, 0, 1, 2, 3})):
        teach(run, task)
        after = tensors(run)
        assert changed(trained[-1], after) == banks | ({"head.weight", "head.bias"} if task else set())
        moved = (after["head.weight"] != trained[-1]["head.weight"]).any(1)
        assert moved.tolist() == [bool(task) and c in seen for c in range(6)]
        guided = (router.head.weight != start).any(1)
        assert guided.tolist() == [c in seen for c in range(6)]


def test_a_first_task_is_not_aligned(begin: Any, teach: Any) -> None:
    runs = [begin(HiDeLoRA(alignment_learning_rate=rate)) for rate in (1e-4, 1e-1)]
    for task, equal in ((0, True), (1, False)):
        for run in runs:
            teach(run, task)
        for part in (lambda run: run.plugins[0].router, lambda run: run.model.head):
            first, second = (part(run).state_dict() for run in runs)
            assert (changed(first, second) == set()) is equal


def test_statistics_are_of_the_untouched_and_of_the_kept_adapter(begin: Any, teach: Any) -> None:
    run = teach(begin(HiDeLoRA(statistics="variance")), 0, 1)
    plugin, task = run.plugins[0], tiny.stream().tasks[1]
    images = task.train.images[task.train.targets == 3]
    assert plugin.tuned.classes.tolist() == plugin.untuned.classes.tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        plugin.adapters.choose(torch.ones(len(images), dtype=torch.int64))
        torch.testing.assert_close(plugin.tuned.means[3, 0], run.model.features(images).mean(0), atol=1e-5, rtol=1e-5)
        with plugin.adapters.off():
            features = run.model.features(images).mean(0)
    torch.testing.assert_close(plugin.untuned.means[3, 0], features, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plugin.tuned.means, plugin.untuned.means, atol=1e-2)


def asked(run: runner.Run) -> tuple[Tensor, Tensor]:
    with run.vault.open():
        answers = run.strategy.answer(run.stream.tasks[0].test, torch.zeros(32, dtype=torch.int64))
    assert answers.tasks is not None
    return answers.predictions, answers.tasks


def test_the_router_never_sees_an_adapted_feature(begin: Any, teach: Any) -> None:
    run = teach(begin(HiDeLoRA()))
    answers, tasks = asked(run)
    for parameter in run.plugins[0].adapters.parameters():
        nn.init.normal_(parameter.data, std=50.0, generator=torch.Generator().manual_seed(0))
    run.plugins[0].adapters.rewrite_kept(lambda bank: 50 * bank.flip(-1) + 7)
    broken, same = asked(run)
    assert torch.equal(same, tasks)
    assert not torch.equal(broken, answers)


def test_slots_follow_a_merge(begin: Any) -> None:
    plugin = begin(HiDeLoRA()).plugins[0]
    plugin.slots = [0, 1, 2, 1, 3]
    plugin.merge(0, 2)
    assert plugin.slots == [0, 1, 0, 1, 2]
    plugin.merge(1, 2)
    assert plugin.slots == [0, 1, 0, 1, 1]


def test_the_terms_of_a_step(begin: Any, teach: Any) -> None:
    run = teach(begin(HiDeLoRA(contrast_weight=0.5, clip=0.25)), 0)
    plugin, strategy = run.plugins[0], run.strategy
    plugin.before_training_exp(strategy)
    strategy.mbatch = [tiny.stream().tasks[1].train.images[:10], None, None]
    strategy.forward()
    strategy.loss = torch.zeros(1)
    plugin.before_backward(strategy)
    features = run.model.features(strategy.mb_x)
    torch.testing.assert_close(strategy.loss[0].double(), 0.5 * plain(plugin.tuned.centroids(), features))
    assert len(plugin.tuned.centroids()) == 20
    (100 * strategy.loss.sum()).backward()
    plugin.before_update(strategy)
    lengths = [parameter.grad.norm() for parameter in run.model.parameters() if parameter.grad is not None]
    assert torch.stack(lengths).norm().item() == pytest.approx(0.25, rel=1e-4)
