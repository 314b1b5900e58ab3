from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clbench.methods.seqlora import SeqLoRA
from clbench.methods.treelora.bandit import Search
from clbench.methods.treelora.method import TreeLoRA
from clbench.strategy import Plugin


@pytest.mark.parametrize("settings", [{"penalty_weight": 0.0}, {"penalty": "none", "penalty_weight": 5.0}])
def test_without_a_penalty_it_is_the_baseline_to_the_bit(settings: Any, begin: Any, teach: Any, weights: Any) -> None:
    run = teach(begin(TreeLoRA(**settings)))
    plain = weights(teach(begin(SeqLoRA())))
    mine = weights(run)
    assert mine.keys() == plain.keys()
    assert all(torch.equal(mine[name], plain[name]) for name in plain)
    assert len(run.plugins[0].notes()["pull_shares"]) == 2  # it has searched all the same


@pytest.mark.parametrize("penalty", ["l1", "alignment"])
def test_a_penalty_changes_what_is_learned(penalty: Any, begin: Any, teach: Any, weights: Any) -> None:
    mine = weights(teach(begin(TreeLoRA(penalty=penalty, penalty_weight=5.0)), 0, 1))
    plain = weights(teach(begin(SeqLoRA()), 0, 1))
    assert not torch.equal(mine["body.blocks.0.attn.qkv.down"], plain["body.blocks.0.attn.qkv.down"])


def test_the_first_task_is_learned_as_by_the_baseline(begin: Any, teach: Any, weights: Any) -> None:
    mine, plain = weights(teach(begin(TreeLoRA(penalty_weight=5.0)), 0)), weights(teach(begin(SeqLoRA()), 0))
    assert all(torch.equal(mine[name], plain[name]) for name in plain)


def test_the_penalty_draws_the_displacement_to_the_past_one(begin: Any, teach: Any) -> None:
    distances = []
    for weight in (0.0, 5.0):
        first, second = teach(begin(TreeLoRA(penalty_weight=weight)), 0, 1).plugins[0].past
        distances.append((second - first).abs().sum().item())
    assert distances[1] < 0.9 * distances[0]


class Recorder(Plugin):
    """What A is before each step, and its gradient after it; the method's own plugin comes first."""

    def __init__(self, downs: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.downs = downs
        self.live: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.live.append(torch.stack([down.detach().flatten() for down in self.downs]).clone())

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.gradients.append(torch.stack([down.grad.flatten() for down in self.downs]).clone())


@pytest.mark.parametrize("signature", ["adapter", "gradient"])
def test_a_signature_is_the_mean_over_the_steps(signature: Any, begin: Any, teach: Any) -> None:
    run = begin(TreeLoRA(signature=signature))
    plugin = run.plugins[0]
    for number in range(2):
        probe = Recorder(plugin.downs)
        run.strategy.plugins.append(probe)
        teach(run, number)
        run.strategy.plugins.remove(probe)
        assert len(probe.live) == 12
        moved = torch.stack(probe.live) - probe.live[0]
        expected = moved.mean(0) if signature == "adapter" else torch.stack(probe.gradients).mean(0)
        torch.testing.assert_close(plugin.signatures[number], expected, atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(plugin.past[number], moved.mean(0), atol=1e-7, rtol=1e-4)
    assert plugin.signatures.shape == (2, 2, 2 * 2 * 16)  # tasks, layers, q and v of rank 2 on width 16


@pytest.mark.parametrize("signature", ["adapter", "gradient"])
def test_what_is_kept_survives_a_checkpoint(signature: Any, begin: Any, teach: Any, weights: Any) -> None:
    method = TreeLoRA(signature=signature, search="random")
    whole = teach(begin(method), 0, 1)
    resumed = begin(method)
    assert resumed.unpack(whole.pack()) == 2
    for name in ("signatures", "past"):
        assert torch.equal(getattr(resumed.plugins[0], name), getattr(whole.plugins[0], name))
    teach(whole, 2)
    teach(resumed, 2)
    assert resumed.plugins[0].notes() == whole.plugins[0].notes()
    mine, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_notes_tell_trees_and_pulls(begin: Any, teach: Any) -> None:
    notes = teach(begin(TreeLoRA())).plugins[0].notes()
    assert [tree["tasks"] for tree in notes["tree_growth"]] == [[0], [0, 1]]
    assert [len(layer) for shares in notes["pull_shares"] for layer in shares] == [1, 1, 2, 2]
    assert all(sum(layer) == pytest.approx(1) for shares in notes["pull_shares"] for layer in shares)


SETTINGS = [
    *({"search": search} for search in get_args(Search)),
    *(
        {"split": split, "similarity": similarity}
        for split in ("radius", "principal")
        for similarity in ("l1", "inner")
    ),
    {"penalty": "alignment", "ramp": True},
    {"signature": "gradient", "penalty": "alignment", "search": "exhaustive"},
    {"reset": "epoch", "exploration": 2.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting_learns_three_tasks(settings: Any, begin: Any, teach: Any) -> None:
    run = teach(begin(TreeLoRA(**settings)))
    assert len(run.plugins[0].shares) == 2
    assert run.state.scores[1][0] > 0.7
    assert all(torch.isfinite(weight).all() for weight in run.model.trainable())


def test_depth_adapts_the_first_blocks_only(begin: Any, teach: Any) -> None:
    run = teach(begin(TreeLoRA(depth=1)), 0, 1)
    assert run.plugins[0].signatures.shape[:2] == (2, 1)
    assert {name for name, weight in run.model.named_parameters() if weight.requires_grad} == {
        *("head.weight", "head.bias"),
        *("body.blocks.0.attn.qkv.down", "body.blocks.0.attn.qkv.up"),
    }


def test_a_ramp_starts_each_epoch_at_nothing(begin: Any, teach: Any) -> None:
    run = teach(begin(TreeLoRA(ramp=True, penalty_weight=5.0)), 0)
    added: list[float] = []
    plugin = run.plugins[0]
    inner = plugin.before_backward

    def watched(strategy: Any, *args: Any, **kwargs: Any) -> None:
        before = strategy.loss.item()
        inner(strategy)
        added.append(strategy.loss.item() - before)

    plugin.before_backward = watched
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


@pytest.mark.parametrize("settings", [{}, {"signature": "gradient", "penalty": "alignment", "ramp": True}], ids=str)
def test_no_step_waits_for_the_device(settings: Any, begin: Any, teach: Any) -> None:
    run = teach(begin(TreeLoRA(**settings)), 0, 1)
    plugin, calls = run.plugins[0], []

    def guarded(hook: Any) -> Any:
        def inside(strategy: Any, *args: Any, **kwargs: Any) -> None:
            with NoReading(), NoWaiting():
                hook(strategy)
            calls.append(hook.__name__)

        return inside

    plugin.before_backward = guarded(plugin.before_backward)
    plugin.after_backward = guarded(plugin.after_backward)
    teach(run, 2)
    assert calls == ["before_backward", "after_backward"] * 12


def test_the_guards_notice() -> None:
    with NoReading(), pytest.raises(AssertionError, match="reads the device"):
        float(torch.ones(()))
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(2).nonzero()
