from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.errors import BadValue, UnknownName
from clbench.methods.treelora.bandit import Bandit, ExplorationUnit, Search
from clbench.methods.treelora.tree import Node, build, flatten

SEARCHES = get_args(Search)
UNITS: tuple[ExplorationUnit, ...] = get_args(ExplorationUnit)


def random_signatures(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(root: Node, signatures: Tensor, search: Search, unit: ExplorationUnit = "residual", seed: int = 0) -> Bandit:
    return Bandit(
        root, signatures, exploration=0.5, exploration_unit=unit, search=search, steps_per_epoch=20, seed=seed
    )


def fill(bandit: Bandit, counts: Sequence[Sequence[float]], sums: Sequence[Sequence[float]], step: int) -> None:
    state = bandit.state_dict()
    state["counts"], state["sums"] = torch.tensor(counts, dtype=torch.float64), torch.tensor(sums, dtype=torch.float64)
    state["step"] = step
    bandit.load_state_dict(state)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_pull_is_choose_then_observe_of_what_the_scale_divides(search: Search) -> None:
    signatures = random_signatures(8, 5, 3, 6)
    one, two = (make(build(signatures), signatures, search) for _ in range(2))
    for step in range(12):
        current = random_signatures(300 + step, 3, 6)
        pull = one.pull(current)
        arms = two.choose(current)
        distances = (current - signatures[arms, torch.arange(3)]).abs().sum(-1)
        two.observe(arms, distances / two.scale(current))
        assert torch.equal(arms, pull.arms)
    assert torch.equal(one.sums, two.sums)


def test_residual_by_hand() -> None:
    # layer 0: |v| = 2, max |v_k| = 6, |v - v_1| = 4 -> 0.5; layer 1 is 0 everywhere -> 0
    signatures = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[3.0, 3.0], [0.0, 0.0]]])
    current = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    bandit = Bandit(build(signatures), signatures, exploration=0.1)
    fill(bandit, [[1, 0]] * 2, [[0.9, 0]] * 2, 1)  # arm 1 was never pulled
    pull = bandit.pull(current)
    assert pull.arms.tolist() == [1, 1]
    assert pull.residuals.tolist() == [0.5, 0.0]
    assert torch.equal(pull.signatures, signatures[1])
    assert bandit.counts.tolist() == [[1, 1], [1, 1]]
    assert bandit.sums.tolist() == [[0.9, 0.5], [0.9, 0.0]]
    assert bandit.step == 2


def test_bounds_by_hand() -> None:
    # one layer, tasks at 0 1 5: mean 2, distances 2 1 3, lower median -2: {0 1} | {2}; deltas: root 3, {0 1} 0.5
    signatures = torch.tensor([0.0, 1.0, 5.0]).reshape(3, 1, 1)
    root = build(signatures)
    assert [node.tasks for node in root.children] == [(0, 1), (2,)]
    assert (root.smoothness, root.children[0].smoothness) == ((3.0,), (0.5,))
    bandit = Bandit(root, signatures, exploration=0.5)
    fill(bandit, [[4, 1, 5]], [[1.2, 0.1, 1.0]], 10)
    current = torch.tensor([[5.0]])  # the scale is |5| + max(0, 1, 5) = 10
    log = math.log(11)  # the eleventh step is being played
    arms = [
        0.3 - 0.5 * math.sqrt(log / 4),
        0.1 - 0.5 * math.sqrt(log / 1),
        0.2 - 0.5 * math.sqrt(log / 5),
    ]
    pair = max(min(arms[0], arms[1]), 1.3 / 5 - 0.5 * math.sqrt(log / 5) - 0.05)
    whole = max(min(pair, arms[2]), 2.3 / 10 - 0.5 * math.sqrt(log / 10) - 0.3)
    assert pair > min(arms[:2])  # the node's own mean counts, unlike in the printed equation 2
    assert bandit.bounds(current)[0].tolist() == pytest.approx([*arms, pair, whole], abs=1e-7)
    # the lone arm 1 has the smallest bound, but its group's bound is above that of arm 2
    assert min(arms) == arms[1]
    assert pair > arms[2]
    assert bandit.choose(current).tolist() == [2]


def test_exploration_in_units_of_the_standard_deviation_by_hand() -> None:
    # layer 0 sees 0.2 0.6 0.1: mean 0.3, deviations -0.1 0.3 -0.2, variance 0.14 / 2; layer 1 always sees the same
    signatures = torch.zeros(2, 2, 3)
    bandit = make(build(signatures), signatures, "lcb", "std")
    seen = [(0, 0.2, 0.7), (1, 0.6, 0.7), (0, 0.1, 0.7)]
    variances = [0.0, 0.08, 0.07]
    for (arm, *residuals), variance in zip(seen, variances, strict=True):
        bandit.observe(torch.tensor([arm, arm]), torch.tensor(residuals))
        assert bandit.deviation.tolist() == pytest.approx([math.sqrt(variance), 0.0], abs=1e-7)
    log = math.log(4)  # the fourth step is being played
    arms = [0.15 - 0.5 * math.sqrt(0.07 * log / 2), 0.6 - 0.5 * math.sqrt(0.07 * log / 1)]
    root = max(min(arms), 0.3 - 0.5 * math.sqrt(0.07 * log / 3))
    expected = torch.tensor([[*arms, root], [0.7] * 3], dtype=torch.float64)
    torch.testing.assert_close(bandit.bounds(signatures[0]), expected, rtol=0, atol=1e-6)
    bandit.reset()
    assert bandit.deviation.tolist() == [0.0, 0.0]


def test_never_pulled_is_minus_infinity_and_the_left_of_equals_is_taken() -> None:
    signatures = torch.tensor([0.0, 1.0, 5.0]).reshape(3, 1, 1)
    bandit = Bandit(build(signatures), signatures, exploration=0.5)
    current = torch.tensor([[1.0]])
    assert bandit.bounds(current).eq(-math.inf).all()
    assert bandit.choose(current).tolist() == [0]
    bandit.observe(torch.tensor([0]), torch.tensor([0.2]))
    assert bandit.bounds(current)[0, 1:3].tolist() == [-math.inf, -math.inf]
    assert math.isfinite(bandit.bounds(current)[0, 3])  # the group {0 1} was pulled once
    assert bandit.choose(current).tolist() == [2]


def walk(node: Node, layer: int, counts: Tensor, sums: Tensor, t: int, c: float, scale: float) -> int:
    """The search as the paper tells it: recursive bounds, then a walk from the root; one layer, plain floats."""

    def own(tasks: Sequence[int], delta: float) -> float:
        n = float(counts[layer, list(tasks)].sum())
        if n == 0:
            return -math.inf
        return float(sums[layer, list(tasks)].sum()) / n - c * math.sqrt(math.log(t) / n) - delta / scale

    def bound(node: Node) -> float:
        if len(node.tasks) == 1:
            return own(node.tasks, 0.0)
        below = [bound(child) for child in node.children] or [own([task], 0.0) for task in node.tasks]
        return max(min(below), own(node.tasks, node.smoothness[layer]))

    while node.children:
        node = min(node.children, key=bound)
    return min(node.tasks, key=lambda task: own([task], 0.0))


@pytest.mark.parametrize("depth", [0, 1, 2, None])
@pytest.mark.parametrize("seed", range(4))
def test_choice_equals_the_recursive_definition(seed: int, depth: int | None) -> None:
    tasks, layers = 7 + seed, 4
    signatures = random_signatures(seed, tasks, layers, 6)
    root = build(signatures, depth=depth)
    bandit = Bandit(root, signatures, exploration=0.1)
    current = signatures[2] + 0.3 * random_signatures(seed + 50, layers, 6)
    scale = current.abs().sum(-1) + signatures.abs().sum(-1).amax(0)
    for _ in range(40):
        expected = [
            walk(root, d, bandit.counts, bandit.sums, bandit.step + 1, 0.1, float(scale[d])) for d in range(layers)
        ]
        assert bandit.pull(current).arms.tolist() == expected


def infinitely_rough(node: Node) -> Node:
    rough = tuple(math.inf for _ in node.smoothness)
    return replace(node, smoothness=rough, children=tuple(infinitely_rough(child) for child in node.children))


@pytest.mark.parametrize("form", ["infinite smoothness", "one leaf"])
def test_without_smoothness_the_tree_is_flat_lcb(form: str) -> None:
    # a node's own term is then minus infinity, so its bound is the smallest below it, and the walk descends to the
    # arm of smallest bound; equal bounds (arms never pulled) go in the order of the leaves
    signatures = random_signatures(9, 9, 3, 5)
    root = build(signatures, depth=0) if form == "one leaf" else infinitely_rough(build(signatures))
    bandit = Bandit(root, signatures, exploration=0.5)
    leaves = [task for node in root.walk() if not node.children for task in node.tasks]
    noise = random_signatures(10, 200, 3)
    counts, sums = torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.float64)
    for t in range(1, 201):
        bounds = sums / counts - 0.5 * (math.log(t) / counts).sqrt()
        bounds[counts == 0] = -math.inf
        flat = [min(leaves, key=lambda task, row=row: row[task]) for row in bounds.tolist()]  # type: ignore[misc]
        arms = bandit.choose(signatures[0])
        assert arms.tolist() == flat
        residuals = arms / 10 + 0.1 * noise[t - 1]
        bandit.observe(arms, residuals)
        for d, arm in enumerate(flat):
            counts[d, arm] += 1
            sums[d, arm] += float(residuals[d])


@pytest.mark.parametrize("search", ["lcb", "greedy", "exhaustive"])
def test_finds_the_planted_nearest_arm_of_each_layer(search: Search) -> None:
    signatures = random_signatures(11, 9, 4, 64)
    planted = torch.tensor([3, 0, 8, 5])
    nearest = signatures[planted, torch.arange(4)]
    bandit = Bandit(build(signatures), signatures, exploration=0.1, search=search)
    for step in range(150):
        bandit.pull(nearest + 0.5 * random_signatures(100 + step, 4, 64))
    shares = bandit.pull_shares()
    assert torch.equal(shares.argmax(1), planted)
    assert shares.amax(1).min() > 0.6


def test_exhaustive_takes_the_nearest_at_once() -> None:
    signatures, current = random_signatures(12, 6, 3, 10), random_signatures(13, 3, 10)
    bandit = Bandit(build(signatures), signatures, exploration=0.1, search="exhaustive")
    distances = (signatures - current).abs().sum(-1)
    pull = bandit.pull(current)
    assert torch.equal(pull.arms, distances.argmin(0))
    scale = current.abs().sum(-1) + signatures.abs().sum(-1).amax(0)
    torch.testing.assert_close(pull.residuals, distances.amin(0) / scale)


def test_greedy_tries_each_arm_once_and_then_stays() -> None:
    signatures = random_signatures(14, 5, 2, 10)
    bandit = Bandit(build(signatures), signatures, exploration=0.1, search="greedy")
    arms = [bandit.pull(signatures[3]).arms.tolist() for _ in range(8)]
    assert arms == [[k, k] for k in range(5)] + [[3, 3]] * 3


def test_random_is_uniform_and_owns_its_generator() -> None:
    signatures = random_signatures(15, 4, 6, 3)
    bandit = Bandit(build(signatures), signatures, exploration=0.1, search="random", seed=1)
    outside = torch.random.get_rng_state()
    for _ in range(500):
        bandit.pull(signatures[0])
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert (bandit.pull_shares() - 0.25).abs().max() < 0.07


def pulls(bandit: Bandit, steps: range, layers: int = 3) -> list[list[int]]:
    return [bandit.pull(random_signatures(1000 + step, layers, 8)).arms.tolist() for step in steps]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("search", SEARCHES)
def test_same_seed_same_pulls_and_a_resumed_search_goes_on_exactly(search: Search, unit: ExplorationUnit) -> None:
    signatures = random_signatures(16, 7, 3, 8)
    root = build(signatures)

    def bandit() -> Bandit:
        return make(root, signatures, search, unit, seed=5)

    whole = bandit()
    expected = pulls(whole, range(60))
    first = bandit()
    assert pulls(first, range(25)) == expected[:25]
    state = first.state_dict()
    pulls(first, range(25, 30))  # the saved state is a copy
    second = bandit()
    second.load_state_dict(state)
    assert pulls(second, range(25, 60)) == expected[25:]
    assert torch.equal(second.sums, whole.sums)
    assert torch.equal(second.deviation, whole.deviation)


@pytest.mark.parametrize("search", ["random", "reference"])
def test_random_pulls_differ_between_seeds(search: Search) -> None:
    signatures = random_signatures(17, 7, 3, 8)
    root = build(signatures)
    one, two = (make(root, signatures, search, seed=seed) for seed in (1, 2))
    assert pulls(one, range(20)) != pulls(two, range(20))


def test_reset_forgets_pulls_but_not_the_place_in_the_random_sequence() -> None:
    signatures = random_signatures(18, 7, 3, 8)
    bandit = Bandit(build(signatures), signatures, exploration=0.2, search="random")
    before = pulls(bandit, range(10))
    assert bandit.pull_shares().sum(1).tolist() == pytest.approx([1.0] * 3)
    bandit.reset()
    assert bandit.step == 0
    assert not bandit.counts.any()
    assert not bandit.sums.any()
    assert not bandit.pull_shares().any()
    assert pulls(bandit, range(10)) != before


@pytest.mark.parametrize("search", SEARCHES)
def test_one_past_task_is_always_chosen(search: Search) -> None:
    signatures = random_signatures(19, 1, 3, 8)
    bandit = make(build(signatures), signatures, search)
    assert pulls(bandit, range(3)) == [[0, 0, 0]] * 3


@pytest.mark.parametrize("search", SEARCHES)
def test_all_zero_signatures_give_zero_residuals(search: Search) -> None:
    signatures = torch.zeros(3, 2, 4)
    bandit = make(build(signatures), signatures, search)
    for _ in range(5):
        assert bandit.pull(torch.zeros(2, 4)).residuals.tolist() == [0.0, 0.0]


class NoSynchronisation(TorchDispatchMode):
    """Raises on every operation that makes the host wait for the device, or copies between them."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "item", "equal", "multinomial")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        moves = name == "_to_copy" and (kwargs or {}).get("device") is not None
        if name in self.FORBIDDEN or by_mask or moves:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Raises on the methods of a tensor that hand its numbers to Python."""

    FORBIDDEN = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.FORBIDDEN:
            raise AssertionError(f"{func.__name__} reads the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("search", SEARCHES)
def test_a_step_never_waits_for_the_device(search: Search, unit: ExplorationUnit) -> None:
    signatures = random_signatures(20, 6, 3, 8)
    bandit = make(build(signatures), signatures, search, unit)
    with NoReading(), NoSynchronisation():
        for _ in range(10):
            bandit.pull(signatures[0])
            arms = bandit.choose(signatures[1])
            bandit.observe(arms, signatures[1, :, 0].abs() / bandit.scale(signatures[1]))
        bandit.pull_shares()
        bandit.bounds(signatures[0])
        bandit.reset()
    assert bandit.step == 0


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.sum() > 0),
        lambda x: float(x.sum()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.where(x > 0),
        lambda x: torch.multinomial(x, 1),
    ],
)
def test_the_guard_notices(wait: Any) -> None:
    numbers = torch.ones(3)
    with NoReading(), NoSynchronisation(), pytest.raises(AssertionError, match="the device"):
        wait(numbers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("search", SEARCHES)
def test_a_step_never_waits_for_a_real_device(search: Search, unit: ExplorationUnit) -> None:
    signatures = random_signatures(21, 6, 3, 8).cuda()
    bandit = make(build(signatures), signatures, search, unit)
    bandit.pull(signatures[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            bandit.pull(signatures[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bandit.counts.sum().item() == 33


def test_signatures_take_no_gradient() -> None:
    signatures = random_signatures(22, 3, 2, 4).requires_grad_()
    bandit = Bandit(build(signatures), signatures, exploration=0.1)
    pull = bandit.pull(random_signatures(23, 2, 4).requires_grad_())
    assert not pull.signatures.requires_grad
    assert not pull.residuals.requires_grad


def test_errors_name_what_came() -> None:
    signatures = random_signatures(24, 3, 2, 4)
    root = build(signatures)
    with pytest.raises(UnknownName, match=r"no search called 'lbc'\. Did you mean 'lcb'"):
        Bandit(root, signatures, exploration=0.1, search="lbc")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"no exploration_unit called 'sd'\. Did you mean 'std'"):
        Bandit(root, signatures, exploration=0.1, exploration_unit="sd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps_per_epoch is None"):
        Bandit(root, signatures, exploration=0.1, search="reference")
    with pytest.raises(BadValue, match="exploration is -1"):
        Bandit(root, signatures, exploration=-1)
    with pytest.raises(ValueError, match="3 tasks and 2 layers"):
        Bandit(root, signatures[:2], exploration=0.1)
    small, large = Bandit(root, signatures, exploration=0.1), random_signatures(25, 4, 2, 4)
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        Bandit(build(large), large, exploration=0.1).load_state_dict(small.state_dict())


def test_positions_of_the_bounds_are_those_of_the_flat_tree() -> None:
    signatures = random_signatures(26, 5, 2, 4)
    root = build(signatures)
    bandit = Bandit(root, signatures, exploration=0.1)
    assert bandit.bounds(signatures[0]).shape == (2, 5 + len(flatten(root).children))
