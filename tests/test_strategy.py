"""The strategy: Avalanche's template with our loaders, optimiser, loss and measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clbench import backbones, catalog
from clbench.answers import Answers
from clbench.errors import BadValue, Diverged, UnknownName
from clbench.loader import Loader
from clbench.meter import Meter
from clbench.method import Workbench
from clbench.recipe import Recipe
from clbench.strategy import Plugin, Strategy
from clbench.stream import ImageSet
from clbench.tiny import stream as tiny_stream

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=1e-2, lora_rank=2, lora_alpha=2)


def learner(method: str = "seqlora", recipe: Recipe = RECIPE, extra: Sequence[Any] = (), **fields: Any) -> Strategy:
    """A strategy for the tiny stream with a listed method's plugins, and then `extra`."""
    torch.manual_seed(0)
    model = backbones.build("tiny-vit", 6, 0)
    model.freeze_body()
    answer = catalog.method_type(method).cls(**fields)
    plugins = [*answer.plugins(Workbench(model, recipe, CPU, 3, 0)), *extra]
    strategy = Strategy(model=model, recipe=recipe, plugins=plugins, meter=Meter(CPU), device=CPU, seed=0)
    strategy.head_masking = answer.head_masking
    return strategy


def learn(strategy: Strategy, tasks: int = 1) -> None:
    for index, task in enumerate(tiny_stream().tasks[:tasks]):
        strategy.learn(index, task)


class Seen(Plugin):
    """Notes what a step left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizers: list[torch.optim.Optimizer] = []
        self.batches: list[Tensor] = []
        self.losses: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
        self.optimizers.append(strategy.optimizer)

    def after_training_iteration(self, strategy: Strategy, **kwargs: Any) -> None:
        self.batches.append(strategy.mb_x)
        self.losses.append(float(strategy.loss.detach()))
        self.dtypes.add(strategy.mb_output.dtype)


# plugins


def test_a_misspelt_hook_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match=r"'before_trainig_exp'\. Did you mean 'before_training_exp'"):
        type("Typo", (Plugin,), {"before_trainig_exp": lambda self, strategy: None})


def test_a_hook_misspelt_in_a_mixin_is_refused_too() -> None:
    mixin = type("Mixin", (), {"after_forwards": lambda self, strategy: None})
    with pytest.raises(UnknownName, match="after_forwards"):
        type("Mixed", (mixin, Plugin), {})


# optimiser


def test_the_optimiser_is_new_for_each_task_and_holds_what_is_trainable() -> None:
    seen = Seen()
    strategy = learner(extra=[seen])
    learn(strategy, tasks=2)
    first, second = seen.optimizers
    assert first is not second
    held = [p for group in second.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in strategy.model.parameters() if p.requires_grad}
    assert 0 < len(held) < len(list(strategy.model.parameters()))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_step_is_that_of_the_plain_optimiser(name: str) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": name, "epochs": 1, "batch_size": 64, "weight_decay": 0.1})
    strategy, twin = learner(recipe=recipe), learner(recipe=recipe)
    task = tiny_stream().tasks[0]
    strategy.learn(0, task)
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    optimizer = plain(twin.model.trainable(), lr=recipe.learning_rate, weight_decay=0.1)
    logits = twin.model(task.train.batch(torch.arange(64), CPU)[0])[:, :2]
    torch.nn.functional.cross_entropy(logits, task.train.targets).backward()
    untaught = {row: row[2:].detach().clone() for row in twin.model.head.parameters()}
    optimizer.step()
    with torch.no_grad():
        for row, kept in untaught.items():  # which the plain optimiser decays
            row[2:] = kept
    for ours, theirs in zip(strategy.model.trainable(), twin.model.trainable(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_method_that_leaves_nothing_to_train_is_told_so() -> None:
    strategy = learner("ncm")
    with pytest.raises(BadValue, match="nothing to train"):
        learn(strategy)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_plugin_may_slow_some_parameters_down(name: str) -> None:
    class Slow(Plugin):
        def learning_rate_factors(self, model: Any) -> dict[Any, float]:
            return dict.fromkeys(model.body.parameters(), 0.1)

    moved = []
    for extra in ([], [Slow()]):
        strategy = learner(
            recipe=RECIPE.model_copy(update={"optimizer": name, "epochs": 1, "batch_size": 64}), extra=extra
        )
        before = [p.detach().clone() for p in strategy.model.trainable()]
        learn(strategy)
        moved.append([p.detach() - old for p, old in zip(strategy.model.trainable(), before, strict=True)])
        assert [group["lr"] for group in strategy.optimizer.param_groups] == [
            1e-2 * f for f in ([0.1, 1] if extra else [1])
        ]
    head = {id(p) for p in strategy.model.head.parameters()}
    for p, plain, slow in zip(strategy.model.trainable(), *moved, strict=True):
        torch.testing.assert_close(slow, plain if id(p) in head else 0.1 * plain, atol=1e-6, rtol=1e-3)


# loader


def numbered(count: int) -> ImageSet:
    return ImageSet(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.zeros(count, dtype=torch.int64))


def order(seed: int | None, epoch: int = 0) -> list[int]:
    loader = Loader(numbered(50), torch.arange(50), 16, CPU, seed)
    loader.epoch = epoch
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    assert all(torch.equal(x.flatten().long(), tasks) for x, _, tasks in batches)
    return torch.cat([tasks for _, _, tasks in batches]).tolist()


def test_the_order_depends_on_seed_and_epoch_alone_and_holds_every_sample_once() -> None:
    assert order(None) == list(range(50))
    assert order(1, 3) == order(1, 3)
    assert sorted(order(1, 3)) == list(range(50))
    assert len({tuple(order(*which)) for which in [(1, 0), (1, 1), (2, 0)]}) == 3


def test_a_plugin_that_reads_the_loader_changes_no_order() -> None:
    class Reader(Plugin):
        def before_training_epoch(self, strategy: Strategy, **kwargs: Any) -> None:
            assert sum(1 for _ in strategy.dataloader) == 4

    plain, read = Seen(), Seen()
    learn(learner(extra=[plain]))
    learn(learner(extra=[Reader(), read]))
    assert len(plain.batches) == 8
    assert all(torch.equal(a, b) for a, b in zip(plain.batches, read.batches, strict=True))
    assert not torch.equal(plain.batches[0], plain.batches[4])


def test_a_plugin_that_changes_the_data_gets_a_loader_of_it() -> None:
    class Half(Plugin):
        def after_train_dataset_adaptation(self, strategy: Strategy, **kwargs: Any) -> None:
            strategy.adapted_dataset = strategy.adapted_dataset.subset(range(0, 64, 2))

    seen = Seen()
    learn(learner(extra=[Half(), seen]))
    assert sum(map(len, seen.batches)) == 2 * 32


# loss


@pytest.mark.parametrize(("masking", "classes"), [("current", [2, 3]), ("seen", [0, 1, 2, 3])])
def test_the_loss_sees_the_logits_it_should(masking: Any, classes: list[int]) -> None:
    class Check(Plugin):
        def before_backward(self, strategy: Strategy, **kwargs: Any) -> None:
            chosen = torch.tensor(classes if strategy.task_index == 1 else [0, 1])
            targets = torch.searchsorted(chosen, strategy.mb_y)
            expected = torch.nn.functional.cross_entropy(strategy.mb_output[:, chosen], targets)
            torch.testing.assert_close(strategy.loss, expected[None])

    learn(learner(head_masking=masking, extra=[Check()]), tasks=2)


def test_scoring_answers_among_seen_classes_with_its_margin_and_leaves_training_data_alone() -> None:
    strategy = learner()
    learn(strategy, tasks=2)
    test = tiny_stream().tasks[0].test
    answers = strategy.answer(test, torch.zeros(len(test), dtype=torch.int64))
    strategy.model.eval()
    with torch.no_grad():
        logits = strategy.model(test.batch(torch.arange(len(test)), CPU)[0])[:, :4]
    best = logits.topk(2).values
    assert torch.equal(answers.predictions, logits.argmax(1))
    torch.testing.assert_close(answers.margins, best[:, 0] - best[:, 1])
    assert answers.tasks is None
    alone = strategy.answer(test, torch.zeros(len(test), dtype=torch.int64), batch_size=1)
    assert torch.equal(answers.predictions, alone.predictions)
    assert strategy.examples.targets.tolist() == tiny_stream().tasks[1].train.targets.tolist()


class Router(Plugin):
    """Infers what a test says of each scoring batch, by its number."""

    def __init__(self, infer: Callable[[int, Strategy], Any]) -> None:
        super().__init__()
        self.infer, self.batches = infer, 0
        self.cleared: list[object] = []

    def before_eval_forward(self, strategy: Strategy, **kwargs: Any) -> None:
        self.cleared.append(strategy.inferred)
        inferred = self.infer(self.batches, strategy)
        if inferred is not None:
            strategy.inferred = inferred
        self.batches += 1


def routed(infer: Callable[[int, Strategy], Any]) -> tuple[Answers, Router]:
    """The answers to 32 examples in batches of 12, 12 and 8, after two tasks."""
    router = Router(infer)
    strategy = learner("ncm", extra=[router])
    for index, task in enumerate(tiny_stream().tasks[:2]):
        strategy.task_index = index
        strategy.see(task)
    test = tiny_stream().tasks[0].test
    answers = strategy.answer(test, torch.zeros(len(test), dtype=torch.int64), batch_size=12)
    assert strategy.inferred is None
    return answers, router


def test_inferred_tasks_come_back_in_the_order_of_the_examples() -> None:
    wanted = torch.arange(32) % 2
    answers, router = routed(lambda batch, strategy: wanted[12 * batch : 12 * batch + len(strategy.mb_y)])
    assert answers.tasks is not None
    assert torch.equal(answers.tasks, wanted)
    assert router.cleared == [None] * 3


@pytest.mark.parametrize(
    ("infer", "words"),
    [
        (lambda batch, strategy: torch.zeros(5, dtype=torch.int64), r"torch\.int64 \[5\] for a batch of 12; set it"),
        (lambda batch, strategy: torch.zeros(len(strategy.mb_y), 1, dtype=torch.int64), r"torch\.int64 \[12, 1\]"),
        (lambda batch, strategy: torch.zeros(len(strategy.mb_y)), r"torch\.float32 \[12\]"),
        (lambda batch, strategy: [0] * len(strategy.mb_y), r"set 'inferred' to \[0, 0"),
        (lambda batch, strategy: torch.zeros(12, dtype=torch.int64) if batch == 1 else None, "in 1 of 3 batches"),
        (lambda batch, strategy: torch.full_like(strategy.mb_y, 2), "inferred task 2, and tasks 0 to 1"),
        (lambda batch, strategy: torch.full_like(strategy.mb_y, -1), "inferred task -1"),
    ],
)
def test_anything_but_a_task_for_every_example_is_refused(infer: Any, words: str) -> None:
    with pytest.raises(BadValue, match=words):
        routed(infer)


def test_a_loss_that_is_not_finite_in_one_step_ends_the_run_at_the_end_of_the_epoch() -> None:
    class Poison(Plugin):
        steps = 0

        def before_backward(self, strategy: Strategy, **kwargs: Any) -> None:
            self.steps += 1
            if self.steps == 6:
                strategy.loss *= math.nan

    poison = Poison()
    with pytest.raises(Diverged, match="nan in epoch 2 of task 1; lower"):
        learn(learner(extra=[poison]))
    assert poison.steps == 8


def test_a_masked_target_is_told_apart_from_divergence() -> None:
    class Past(Plugin):
        def before_forward(self, strategy: Strategy, **kwargs: Any) -> None:
            strategy.mbatch[1] = torch.full_like(strategy.mb_y, 5)

    with pytest.raises(BadValue, match="head_masking 'seen'"):
        learn(learner(extra=[Past()]))


def test_progress_is_told_each_epoch_with_the_mean_loss() -> None:
    seen, told = Seen(), []
    strategy = learner(extra=[seen])
    strategy.on_epoch = lambda *facts: told.append(facts)
    learn(strategy)
    assert [(epoch, epochs) for epoch, epochs, _ in told] == [(1, 2), (2, 2)]
    assert told[0][2] == pytest.approx(sum(seen.losses[:4]) / 4)
    assert told[1][2] == pytest.approx(sum(seen.losses[4:]) / 4)


# precision and waiting


def test_bfloat16_runs_the_forward_pass_in_it_and_the_loss_in_float32() -> None:
    seen = Seen()
    inside: set[torch.dtype] = set()
    strategy = learner(recipe=RECIPE.model_copy(update={"precision": "bfloat16"}), extra=[seen])
    strategy.model.body.blocks[0].mlp.fc1.register_forward_hook(lambda module, args, out: inside.add(out.dtype))
    learn(strategy)
    assert inside == {torch.bfloat16}
    assert seen.dtypes == {torch.float32}
    assert seen.losses[-1] < seen.losses[0]
    assert {p.dtype for p in strategy.model.parameters()} == {torch.float32}


class NoWaiting(TorchDispatchMode):
    """Raises at operations that would wait for a GPU: reading a value back, or a size that depends on one."""

    WAITING = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2"}
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name in self.WAITING:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


class Guarded(Strategy):
    """A strategy whose steps after the first may not wait."""

    steps = 0

    def _training_step(self, **kwargs: Any) -> None:
        self.steps += 1
        with NoWaiting():
            super()._training_step(**kwargs)


def test_the_guard_sees_a_read_value() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(()).item()


@pytest.mark.parametrize("method", ["seqlora", "replay", "ewc", "olora", "l2p", "treelora", "ease", "slca"])
def test_no_step_waits_for_the_device(method: str) -> None:
    fields = {"l2p": {"pool": 4, "length": 1, "top": 2}, "ewc": {"fisher_samples": 8}}.get(method, {})
    strategy = learner(method, **fields)
    strategy.__class__ = Guarded
    learn(strategy, tasks=3)
    assert isinstance(strategy, Guarded)
    assert strategy.steps == 3 * 2 * 4


# cost


def test_the_first_step_is_counted_and_timed_apart_and_counting_changes_no_number() -> None:
    class Uncounted(Meter):
        def first_step(self) -> Any:
            return torch.enable_grad()

    def trained(meter: Meter) -> tuple[Strategy, list[Tensor]]:
        strategy = learner()
        strategy.meter = meter
        learn(strategy)
        return strategy, [p.detach().clone() for p in strategy.model.trainable()]

    counted, weights = trained(Meter(CPU))
    _, others = trained(Uncounted(CPU))
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    reading = counted.meter.stop()
    assert reading.first_step_seconds > 0
    assert reading.seconds > 0
    assert reading.flops is not None
    assert reading.flops > 0


def test_the_experience_tells_plugins_which_one_it_is() -> None:
    told: list[tuple[int, set[int], set[int]]] = []

    class Look(Plugin):
        def before_training_exp(self, strategy: Strategy, **kwargs: Any) -> None:
            e = strategy.experience
            told.append((e.current_experience, e.classes_in_this_experience, e.previous_classes))

    learn(learner(extra=[Look()]), tasks=2)
    assert told == [(0, {0, 1}, set()), (1, {2, 3}, {0, 1})]
