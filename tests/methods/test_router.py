from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clbench.methods._router import Router

WIDTH, EACH = 6, 20
TASK_OF_CLASS = {4: 0, 1: 0, 0: 1, 5: 1}  # 2 and 3 are never taught


def features(*classes: int) -> tuple[Tensor, Tensor]:
    """`EACH` features around a direction of their own for each of `classes`, and their targets."""
    targets = torch.tensor(classes).repeat_interleave(EACH)
    centres = 3 * torch.eye(WIDTH)[targets]
    return centres + 0.5 * torch.randn(
        len(targets), WIDTH, generator=torch.Generator().manual_seed(classes[0])
    ), targets


def learn(router: Router, task: int, *classes: int, seed: int = 0) -> Router:
    router.learn(*features(*classes), task, epochs=10, batch=8, rate=5e-3, seed=seed)
    return router


def test_a_router_of_one_task_knows_its_classes_and_nothing_else() -> None:
    router = learn(Router(WIDTH, 6, 0), 0, 4, 1)
    assert router.task_of_class.tolist() == [-1, 0, -1, -1, 0, -1]
    inputs, targets = features(4, 1)
    with torch.no_grad():
        assert (router(inputs)[:, [1, 4]].argmax(1) == (targets == 4)).all()
        assert router.tasks(10 * torch.randn(50, WIDTH)).tolist() == [0] * 50


def test_the_task_is_that_of_the_likeliest_seen_class() -> None:
    router = Router(WIDTH, 6, 0)
    for c, task in TASK_OF_CLASS.items():
        router.task_of_class[c] = task
    inputs = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        router.head.bias[[2, 3]] = 100.0
        logits = router(inputs)
        tasks = router.tasks(inputs)
    best = [max(TASK_OF_CLASS, key=row.__getitem__) for row in logits.tolist()]
    assert tasks.tolist() == [TASK_OF_CLASS[c] for c in best]
    assert tasks.dtype == torch.int64
    assert set(tasks.tolist()) == {0, 1}


def test_learning_moves_no_rows_but_its_classes() -> None:
    router = learn(Router(WIDTH, 6, 0), 0, 4, 1)
    weight, bias = router.head.weight.detach().clone(), router.head.bias.detach().clone()
    learn(router, 1, 0, 5)
    assert (router.head.weight != weight).any(1).tolist() == [True, False, False, False, False, True]
    assert (router.head.bias != bias).tolist() == [True, False, False, False, False, True]
    assert router.task_of_class.tolist() == [1, 0, -1, -1, 0, 1]


def test_its_body_is_a_residual_network_with_a_norm() -> None:
    router, inputs = Router(WIDTH, 6, 0), features(0, 1)[0]
    hidden = F.gelu(inputs @ router.up.weight.T + router.up.bias)
    summed = inputs + hidden @ router.down.weight.T + router.down.bias
    expected = (summed - summed.mean(1, keepdim=True)) / (summed.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(router.adapted(inputs), expected)
    assert router.up.weight.shape == (2 * WIDTH, WIDTH)
    torch.testing.assert_close(router(inputs), expected @ router.head.weight.T)


def test_learning_is_repeatable_and_hangs_on_the_seed() -> None:
    def learned(seed: int) -> dict[str, Tensor]:
        torch.seed()  # whatever the global generator does
        return learn(Router(WIDTH, 6, 0), 0, 4, 1, seed=seed).state_dict()

    first, again, other = learned(0), learned(0), learned(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["up.weight"], other["up.weight"])


def test_the_first_task_does_not_hang_on_how_many_classes_follow() -> None:
    few, many = (learn(Router(WIDTH, classes, 0), 0, 0, 1).state_dict() for classes in (2, 40))
    for name, tensor in few.items():
        torch.testing.assert_close(many[name][:2] if name.startswith(("head", "task")) else many[name], tensor)


def test_a_task_of_one_class_teaches_nothing_but_whose_it_is() -> None:
    router = Router(WIDTH, 6, 0)
    before = {name: weight.clone() for name, weight in router.named_parameters()}
    learn(router, 0, 3)
    assert all(torch.equal(weight, before[name]) for name, weight in router.named_parameters())
    with torch.no_grad():
        assert router.tasks(features(0, 3)[0]).unique().tolist() == [0]


@pytest.mark.parametrize("seed", [0, 1])
def test_it_starts_from_its_own_seed(seed: int) -> None:
    torch.manual_seed(5)
    first = Router(WIDTH, 6, seed).state_dict()
    torch.manual_seed(6)
    again, other = Router(WIDTH, 6, seed).state_dict(), Router(WIDTH, 6, 9).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["down.weight"], other["down.weight"])
    assert not torch.equal(first["head.weight"], other["head.weight"])
