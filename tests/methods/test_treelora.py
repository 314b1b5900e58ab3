from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.method import Method
from clbench.methods.hidelora import HiDeLoRA
from clbench.methods.seqlora import SeqLoRA
from clbench.methods.treelora.bandit import Bandit, Search
from clbench.methods.treelora.guidance import Guidance
from clbench.methods.treelora.method import TreeLoRA
from clbench.methods.treelora.penalty import l1_gradient, l1_scale
from clbench.methods.treelora.tree import build
from clbench.strategy import Plugin

FORMS = ["hide", "none"]
BRIEF: Any = {"router_epochs": 2, "alignment_epochs": 2}
"""The router's and the alignment's passes are not what is looked at here, and they take the longest."""


def tree(**settings: Any) -> TreeLoRA:
    return TreeLoRA(**{**BRIEF, **settings})


def plain(decomposition: str) -> Method:
    """The method that each form is built on."""
    return HiDeLoRA(**BRIEF) if decomposition == "hide" else SeqLoRA()


def guidance(run: Any) -> Guidance:
    return next(plugin for plugin in run.plugins if isinstance(plugin, Guidance))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{"penalty_weight": 0.0}, {"penalty": "none", "penalty_weight": 5.0}])
def test_without_a_penalty_it_is_the_baseline_to_the_bit(
    form: Any, settings: Any, begin: Any, teach: Any, weights: Any
) -> None:
    run = teach(begin(tree(decomposition=form, **settings)))
    other = teach(begin(plain(form)))
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert run.state.scores == other.state.scores
    assert len(guidance(run).pulls) == 2  # it has searched all the same


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("penalty", ["l1", "alignment"])
def test_a_penalty_changes_what_is_learned(form: Any, penalty: Any, begin: Any, teach: Any, weights: Any) -> None:
    mine = weights(teach(begin(tree(decomposition=form, penalty=penalty, penalty_weight=5.0)), 0, 1))
    theirs = weights(teach(begin(plain(form)), 0, 1))
    assert not torch.equal(mine["body.blocks.0.attn.qkv.down"], theirs["body.blocks.0.attn.qkv.down"])


@pytest.mark.parametrize("form", FORMS)
def test_the_first_task_is_learned_as_by_the_baseline(form: Any, begin: Any, teach: Any, weights: Any) -> None:
    mine = weights(teach(begin(tree(decomposition=form, penalty_weight=5.0)), 0))
    theirs = weights(teach(begin(plain(form)), 0))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("form", FORMS)
def test_the_penalty_draws_the_displacement_to_the_past_one(form: Any, begin: Any, teach: Any) -> None:
    distances = []
    for weight in (0.0, 5.0):
        first, second = guidance(teach(begin(tree(decomposition=form, penalty_weight=weight)), 0, 1)).past
        distances.append((second - first).abs().sum().item())
    assert distances[1] < 0.9 * distances[0]


def test_the_penalty_is_its_formulas_gradient(begin: Any, teach: Any) -> None:
    run = teach(begin(tree(decomposition="none", penalty_weight=0.7)), 0)
    plugin, seen = guidance(run), []

    def watched(strategy: Any, *args: Any, **kwargs: Any) -> None:
        before = torch.stack([down.grad.flatten() for down in plugin.downs if down.grad is not None])
        live = torch.stack([down.detach().flatten() for down in plugin.downs])
        Guidance.after_backward(plugin, strategy)
        after = torch.stack([down.grad.flatten() for down in plugin.downs if down.grad is not None])
        moved = (live - plugin.start).requires_grad_()
        term = 0.7 * plugin.scale * (moved - plugin.past[0]).abs().sum()  # one past task: it is the chosen one
        term.backward()
        torch.testing.assert_close(after - before, moved.grad, atol=1e-6, rtol=1e-4)
        seen.append(term.item())

    plugin.after_backward = watched  # type: ignore[method-assign]
    teach(run, 1)
    assert len(seen) == 12
    assert seen[0] == pytest.approx(0.7)  # nothing has moved: all the way to the past displacement


class Recorder(Plugin):
    """What A is before each step, and the task's gradient of it; stands before the method's own plugin."""

    def __init__(self, downs: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.downs = downs
        self.live: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.live.append(torch.stack([down.detach().flatten() for down in self.downs]).clone())

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.gradients.append(torch.stack([down.grad.flatten() for down in self.downs]).clone())


@pytest.mark.parametrize("settings", [{}, {"signature": "gradient"}, {"signature": "reference", "search": "reference"}])
def test_a_signature_is_what_it_says(settings: Any, begin: Any, teach: Any) -> None:
    run = begin(tree(decomposition="none", **settings))
    plugin = guidance(run)
    for number in range(2):
        probe = Recorder(plugin.downs)
        run.strategy.plugins.insert(0, probe)
        teach(run, number)
        run.strategy.plugins.remove(probe)
        assert len(probe.live) == 12
        moved = torch.stack(probe.live) - probe.live[0]
        expected = {
            "adapter": moved.mean(0),
            "gradient": torch.stack(probe.gradients).mean(0),  # of the task's loss alone
            "reference": 2 * torch.stack(probe.live[8:]).mean(0),  # the last of three epochs, once for each of 2 layers
        }[plugin.method.signature]
        torch.testing.assert_close(plugin.signatures[number], expected, atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(plugin.past[number], moved.mean(0), atol=1e-7, rtol=1e-4)
    assert plugin.signatures.shape == (2, 2, 2 * 2 * 16)  # tasks, layers, q and v of rank 2 on width 16


def test_a_live_query_compares_with_the_gradient_at_the_kept_lora(begin: Any, teach: Any) -> None:
    """With the kept LoRA put in by hand, an ordinary backward pass gives the same gradient."""
    run = teach(begin(tree(decomposition="none", signature="gradient", query="live")), 0, 1)
    plugin, strategy = guidance(run), run.strategy
    inputs, targets = run.stream.tasks[1].train.batch(torch.arange(16), torch.device("cpu"))
    strategy.mbatch = [inputs, targets, torch.ones_like(targets)]
    arms = torch.tensor([1, 0])
    found = plugin._gradient_at(strategy, arms)
    for layer, arm in zip(plugin.lora.layers, arms.tolist(), strict=True):
        layer.down.data, layer.up.data = layer.bank_down[arm].clone(), layer.bank_up[arm].clone()
    strategy.optimizer.zero_grad()
    strategy.mb_output = strategy.forward()
    strategy.criterion().backward()
    expected = torch.stack([down.grad.flatten() for down in plugin.downs if down.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_budget_merges_signatures_and_adapters(form: Any, begin: Any, teach: Any) -> None:
    free, tight = (begin(tree(decomposition=form, budget_tasks=budget), tasks=4) for budget in (None, 2))
    for run in (free, tight):
        teach(run, 0, 1, 2)
    everything, kept = guidance(free), guidance(tight)
    assert everything.merged == []
    assert (len(everything.past), len(kept.past), len(kept.rows)) == (3, 2, 2)
    ((i,), (j,)) = kept.merged[0]["tasks"]
    assert kept.merged[0]["after"] == 2
    assert sorted(kept.rows) == sorted([[i, j], [({0, 1, 2} - {i, j}).pop()]])
    place = kept.rows.index([i, j])
    torch.testing.assert_close(kept.past[place], everything.past[[i, j]].mean(0))
    if form == "hide":
        mine, whole = kept.lora.layers[0], everything.lora.layers[0]
        torch.testing.assert_close(mine.bank_down[place], whole.bank_down[[i, j]].mean(0))
        torch.testing.assert_close(mine.bank_up[place], whole.bank_up[[i, j]].mean(0))
        assert kept.decomposition is not None
        assert [kept.decomposition.slots[task] for task in (i, j)] == [place, place]
    teach(tight, 3)
    assert (len(kept.past), len(kept.merged)) == (2, 2)
    assert sorted(task for row in kept.rows for task in row) == [0, 1, 2, 3]
    stored = [cost.stored_bytes for cost in tight.state.costs]
    assert stored[3] - stored[2] < stored[1] - stored[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "settings", [{}, {"signature": "gradient", "query": "live"}, {"budget_tasks": 1}], ids=["plain", "live", "budget"]
)
def test_what_is_kept_survives_a_checkpoint(form: Any, settings: Any, begin: Any, teach: Any, weights: Any) -> None:
    method = tree(decomposition=form, search="random", **settings)
    whole = teach(begin(method), 0, 1)
    resumed = begin(method)
    assert resumed.unpack(whole.pack()) == 2
    for name in ("signatures", "past"):
        assert torch.equal(getattr(guidance(resumed), name), getattr(guidance(whole), name))
    teach(whole, 2)
    teach(resumed, 2)
    assert guidance(resumed).notes() == guidance(whole).notes()
    assert resumed.state.scores == whole.state.scores
    mine, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_notes_tell_trees_and_pulls(begin: Any, teach: Any) -> None:
    notes = guidance(teach(begin(tree()))).notes()
    found = notes["tree"]
    assert found["layers"] == ["block 0 k+v", "block 1 k+v"]
    assert [(entry["task"], entry["arms"], entry["root"]["tasks"]) for entry in found["growth"]] == [
        (1, [[0]], [0]),
        (2, [[0], [1]], [0, 1]),
        (None, [[0], [1], [2]], [0, 1, 2]),
    ]
    assert [pull["task"] for pull in found["pulls"]] == [1, 2]
    for pull in found["pulls"]:
        assert [len(epoch) for epoch in pull["shares"]] == [2, 2, 2]  # three epochs of two layers
        assert all(sum(layer) == pytest.approx(1, abs=1e-3) for epoch in pull["shares"] for layer in epoch)
    assert found["merged"] == []
    assert len(notes["gradient_ratio"]) == 2


def test_seconds_of_search_and_penalty_are_told_apart(begin: Any, teach: Any) -> None:
    costs = teach(begin(tree())).state.costs
    assert [sorted(cost.phase_seconds) for cost in costs] == [["search"], ["penalty", "search"], ["penalty", "search"]]
    assert all(0 < seconds < cost.train_seconds for cost in costs for seconds in cost.phase_seconds.values())


@pytest.mark.parametrize(
    ("settings", "marked"), [({}, False), ({"penalty_weight": 1e-5}, True), ({"penalty": "none"}, True)], ids=str
)
def test_a_penalty_that_does_nothing_is_marked(settings: Any, marked: bool, begin: Any, teach: Any) -> None:
    run = teach(begin(tree(decomposition="none", **settings)))
    assert any("penalty inactive" in mark for mark in guidance(run).marks()) == marked
    assert all((ratio < 1e-3) == marked for ratio in guidance(run).ratios)


SETTINGS = [
    *({"search": search} for search in get_args(Search)),
    *(
        {"split": split, "similarity": similarity}
        for split in ("radius", "principal")
        for similarity in ("l1", "inner")
    ),
    {"penalty": "alignment", "ramp": True},
    {"signature": "gradient", "penalty": "alignment", "search": "exhaustive"},
    {"signature": "gradient", "query": "live"},
    {"signature": "reference", "search": "reference", "penalty": "alignment", "ramp": True, "reset": "epoch"},
    {"reset": "epoch", "exploration": 2.0, "exploration_unit": "std"},
    {"budget_tasks": 1},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting_learns_three_tasks(form: Any, settings: Any, begin: Any, teach: Any) -> None:
    run = teach(begin(tree(decomposition=form, **settings)))
    assert len(guidance(run).pulls) == 2
    assert run.state.scores[1][0] > 0.7
    assert all(torch.isfinite(weight).all() for weight in run.model.trainable())


@pytest.mark.parametrize(
    "settings",
    [{"signature": "reference"}, {"query": "live"}, {"query": "live", "signature": "gradient", "search": "exhaustive"}],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings: Any) -> None:
    with pytest.raises(ValidationError, match="needs"):
        tree(**settings)


def test_depth_adapts_the_first_blocks_only(begin: Any, teach: Any) -> None:
    run = teach(begin(tree(depth=1)), 0, 1)
    assert guidance(run).signatures.shape[:2] == (2, 1)
    assert {name for name, weight in run.model.named_parameters() if weight.requires_grad} == {
        *("head.weight", "head.bias"),
        *("body.blocks.0.attn.qkv.down", "body.blocks.0.attn.qkv.up"),
    }


def test_a_ramp_starts_each_epoch_at_nothing(begin: Any, teach: Any) -> None:
    run = teach(begin(tree(ramp=True, penalty_weight=5.0)), 0)
    added: list[float] = []
    plugin = guidance(run)

    def watched(strategy: Any, *args: Any, **kwargs: Any) -> None:
        before = [down.grad.clone() for down in plugin.downs if down.grad is not None]
        Guidance.after_backward(plugin, strategy)
        after = [down.grad for down in plugin.downs if down.grad is not None]
        added.append(sum((b - a).abs().sum().item() for a, b in zip(before, after, strict=True)))

    plugin.after_backward = watched  # type: ignore[method-assign]
    teach(run, 1)
    assert [step for step, value in enumerate(added) if value == 0] == [0, 4, 8]  # three epochs of four steps
    assert all(value > 0 for step, value in enumerate(added) if step % 4)


class NoWaiting(TorchDispatchMode):
    """Raises on the operations that make the host wait for the device."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.FORBIDDEN or any(index is not None and index.dtype == torch.bool for index in indices):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class NoReading(TorchFunctionMode):
    """Raises on the methods of a tensor that hand its numbers to Python."""

    FORBIDDEN = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.FORBIDDEN:
            raise AssertionError(f"{func.__name__} reads the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        *({"search": search} for search in get_args(Search)),
        {"signature": "gradient", "penalty": "alignment", "ramp": True},
        {"exploration_unit": "std"},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(settings: Any, begin: Any, teach: Any) -> None:
    run = teach(begin(tree(**settings)), 0, 1)
    plugin, calls = guidance(run), []

    def guarded(strategy: Any, *args: Any, **kwargs: Any) -> None:
        with NoReading(), NoWaiting():
            Guidance.after_backward(plugin, strategy)
        calls.append("after_backward")

    plugin.after_backward = guarded  # type: ignore[method-assign]
    teach(run, 2)
    assert calls == ["after_backward"] * 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("search", get_args(Search))
def test_no_step_waits_for_a_gpu(search: Any) -> None:
    signatures = torch.randn(9, 5, 64, device="cuda")
    bandit = Bandit(build(signatures), signatures, exploration=0.1, search=search, steps_per_epoch=10)
    current = torch.randn(5, 64, device="cuda")
    bandit.pull(current)  # the first use of a kernel may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            chosen = bandit.pull(current)
            l1_gradient(current, chosen.signatures, l1_scale(signatures))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_guards_notice() -> None:
    with NoReading(), pytest.raises(AssertionError, match="reads the device"):
        float(torch.ones(()))
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(2).nonzero()
