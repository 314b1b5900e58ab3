"""Every listed method obeys every law, and a method that breaks one is caught by exactly that one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin

from clbench import catalog, tiny
from clbench.conformance import LAWS, Verdict, check
from clbench.method import Method, Resources, Workbench
from clbench.methods import CONTENTS
from clbench.strategy import Plugin, Strategy

NAMES = ["defaults", *(law.name for law in LAWS)]
TEXT = [f"text: {law.name}" for law in LAWS]
NOT_APPLICABLE = {
    *(("finetune", "frozen"), ("slca", "frozen"), ("joint", "first task"), ("pertask", "task labels")),
    ("icl", "text: learns"),
}


@cache
def verdicts(method: str) -> dict[str, Verdict]:
    listed = catalog.method_type(method)
    return {verdict.law: verdict for verdict in check(listed.cls, listed.fingerprint)}


def declines(method: str, suite: Any) -> str | None:
    """Why the method does not run on a suite."""
    cls = catalog.method_type(method).cls
    return cls(**suite.settings.get(method, {})).unsupported(suite.stream())


@pytest.mark.parametrize("method", CONTENTS)
@pytest.mark.parametrize("law", [*NAMES, *TEXT])
def test_every_listed_method_obeys_the_law(law: str, method: str) -> None:
    suite = tiny.tiny_text if law in TEXT else tiny.tiny
    reason = declines(method, suite) if law != "defaults" else None
    if reason is not None:
        expected = {law: None} if law.endswith("runs") else {}
        found = verdicts(method)
        assert {name: found[name].passed for name in (law,) if name in found} == expected
        assert not expected or found[law].reason == reason
        return
    verdict = verdicts(method)[law]
    exempt = {(method, law), (method, law.removeprefix("text: "))} & NOT_APPLICABLE
    assert verdict.passed is (None if exempt else True), verdict.reason
    assert bool(verdict.reason) is (verdict.passed is None)


@pytest.mark.parametrize("method", CONTENTS)
def test_a_method_runs_on_one_kind_at_least_and_declines_in_one_line(method: str) -> None:
    reasons = [declines(method, suite) for suite in (tiny.tiny, tiny.tiny_text)]
    assert None in reasons
    assert all("\n" not in reason and reason == reason.strip() and len(reason) > 20 for reason in reasons if reason)


class Behaviour(Plugin):
    """Does nothing wrong."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__()
        self.bench = bench
        self.memory = torch.zeros(())

    def state(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state(self, state: dict[str, Any]) -> None:
        self.memory = state["memory"]


class Honest(Method):
    """Runs on text, too."""

    name = "honest"

    def plugins(self, bench: Workbench) -> Sequence[Any]:
        bench.lora()
        return [self.behaviour(bench)]

    def behaviour(self, bench: Workbench) -> Any:
        return Behaviour(bench)


class ImagesOnly(Honest):
    """So that a cheat may reach for a head, and is tried once."""

    def unsupported(self, stream: Any) -> str | None:
        return "it needs images" if stream.is_text else None


class TextOnly(Honest):
    def unsupported(self, stream: Any) -> str | None:
        return None if stream.is_text else "it needs text"


def failed(method: type[Method]) -> dict[str, str]:
    return {verdict.law: verdict.reason for verdict in check(method) if verdict.passed is False}


def declined(method: type[Method]) -> set[str]:
    return {verdict.law for verdict in check(method) if verdict.passed is None}


def test_an_honest_method_passes_everything() -> None:
    found = list(check(Honest))
    assert [verdict.law for verdict in found] == [*NAMES, *TEXT]
    assert [verdict.line for verdict in found][1:] == [law.line for law in LAWS] * 2
    assert all(verdict.passed and not verdict.reason for verdict in found)


class NeedsAField(ImagesOnly):
    required: int


class Crashes(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Crash(Behaviour):
            def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                raise ZeroDivisionError("one by nothing")

        return Crash(bench)


class CrashesAtOnce(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        raise KeyError("nothing there")


class Unseeded(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Chance(Behaviour):
            @torch.no_grad()
            def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                strategy.model.head.bias.add_(1e-3 * random.SystemRandom().random())

        return Chance(bench)


class Idle(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Nothing(Behaviour):
            def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                strategy.loss *= 0

        return Nothing(bench)


class TouchesFrozenWeights(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Touch(Behaviour):
            @torch.no_grad()
            def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                if strategy.task_index == bench.tasks_expected - 1:
                    strategy.model.body.norm.bias.add_(1e-7)

        return Touch(bench)


class Clairvoyant(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Future(Behaviour):
            def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                if bench.tasks_expected == 1:
                    strategy.loss *= 0

        return Future(bench)


class ForgetsToSaveItsAnswer(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Shift(Behaviour):
            shift = 0.0

            def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.shift = torch.arange(6.0)[: strategy.model.classes] / 4

            def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                strategy.mb_output = strategy.mb_output + self.shift

        return Shift(bench)


class ForgetsToSaveItsMemory(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Count(Behaviour):
            tasks = 0

            def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                strategy.loss += 0.1 * self.tasks * strategy.model.head.weight.square().sum()

            def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.tasks += 1

        return Count(bench)


class Votes(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Vote(Behaviour):
            def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                logits = strategy.mb_output
                strategy.mb_output = logits + 3 * (logits - logits.mean(dim=0))

        return Vote(bench)


class UsesTheTask(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Oracle(Behaviour):
            def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                own = torch.arange(strategy.model.classes) // 2 == strategy.mbatch[2][:, None]
                strategy.mb_output = strategy.mb_output.masked_fill(~own, float("-inf"))

        return Oracle(bench)


class DeclaresTheTask(UsesTheTask):
    def resources(self) -> Resources:
        return Resources(task_id_at_test=True)


class Hoards(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Hoard(Behaviour):
            def kept_samples(self) -> int:
                return 10

        return Hoard(bench)


class HoardsSilently(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Hide(Behaviour):
            def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.memory = strategy.examples.batch(torch.arange(10), strategy.device)[0]

        return Hide(bench)


class HoardsTextSilently(TextOnly):
    behaviour = HoardsSilently.behaviour


class Swells(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Pile(Behaviour):
            def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.memory = torch.zeros((strategy.task_index + 1) * 2**19)

        return Pile(bench)


class RemembersTests(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Remember(Behaviour):
            def after_eval_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.memory = strategy.mb_x.float().mean()

        return Remember(bench)


class LearnsFromTests(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Learn(Behaviour):
            curious = False

            @torch.no_grad()
            def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                strategy.model.head.bias[-1] += 1e-5 * self.memory
                self.curious = True

            def after_eval_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                if self.curious:
                    self.memory = strategy.mb_x.float().mean()
                    self.curious = False

        return Learn(bench)


class ReadsTests(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Thief(Behaviour):
            loot: Any = ()

            def after_eval_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.loot = strategy.dataloader

            def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                for _ in self.loot:
                    break

        return Thief(bench)


class IdleOnText(TextOnly):
    behaviour = Idle.behaviour


class TouchesTheVocabulary(TextOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Touch(Behaviour):
            @torch.no_grad()
            def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                strategy.model.body.get_input_embeddings().weight[0] += 1e-7

        return Touch(bench)


class ForgetsToSaveText(TextOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Count(Behaviour):
            tasks = 0

            def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                strategy.loss *= 1 + self.tasks * strategy.mb_output.square().mean().detach()

            def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.tasks += 1

        return Count(bench)


class PeeksAtTheOtherTests(TextOnly):
    def behaviour(self, bench: Workbench) -> Plugin:
        class Remember(Behaviour):
            def after_eval_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
                self.memory = strategy.mb_x.float().mean()

        return Remember(bench)


@pytest.mark.parametrize(
    ("method", "law", "reason"),
    [
        (IdleOnText, "text: learns", "a constant answer reaches 71% once in 100 times"),
        (TouchesTheVocabulary, "text: frozen", "embed_tokens.weight has changed though it is frozen"),
        (ForgetsToSaveText, "text: resume", "state() is missing something"),
        (PeeksAtTheOtherTests, "text: test data", "changed what it has learned while it answered"),
        (NeedsAField, "defaults", "ValidationError"),
        (Crashes, "runs", "ZeroDivisionError: one by nothing"),
        (CrashesAtOnce, "runs", "KeyError: 'nothing there'"),
        (Unseeded, "deterministic", "differs"),
        (Idle, "learns", "guessing reaches 71% once in 100 times"),
        (TouchesFrozenWeights, "frozen", "norm.bias has changed though it is frozen"),
        (Clairvoyant, "first task", "differ between streams of 1 and 3 tasks"),
        (ForgetsToSaveItsAnswer, "save and load", "answers otherwise"),
        (ForgetsToSaveItsMemory, "resume", "state() is missing something"),
        (Votes, "batches", "of 32 answers change when a sample is scored alone"),
        (UsesTheTask, "task labels", "of 32 answers change when the task labels are shuffled"),
        (Hoards, "resources", "keeps 10 samples and declared 0"),
        (HoardsSilently, "resources", "10 inputs lie among what it keeps, by their shape, and it declared 0 samples"),
        (HoardsTextSilently, "text: resources", "10 inputs lie among what it keeps"),
        (Swells, "resources", "stored 2.00 MiB more after a task and declared 1.00"),
        (RemembersTests, "test data", "changed what it has learned while it answered test examples"),
        (LearnsFromTests, "test data", "depends on the test examples"),
        (ReadsTests, "test data", "test examples were read while learning"),
    ],
)
def test_a_cheat_is_caught_by_the_law_it_breaks(method: type[Method], law: str, reason: str) -> None:
    found = failed(method)
    assert list(found) == [law], found
    assert reason in found[law]


def test_a_method_that_is_told_the_task_may_say_so() -> None:
    assert failed(DeclaresTheTask) == {}
    assert declined(DeclaresTheTask) == {"task labels", "text: runs"}


class Foreign(ImagesOnly):
    def behaviour(self, bench: Workbench) -> Any:
        return SupervisedPlugin()


def test_a_plugin_that_cannot_tell_its_state_is_not_asked_for_it() -> None:
    assert failed(Foreign) == {}
    assert declined(Foreign) == {"save and load", "resume", "text: runs"}


class Declines(Honest):
    def unsupported(self, stream: Any) -> str | None:
        return "it needs sound"


def test_a_method_that_declines_is_not_failed_and_says_so_once() -> None:
    found = [(verdict.law, verdict.passed, verdict.reason) for verdict in check(Declines)]
    refused = [("runs", None, "it needs sound"), ("text: runs", None, "it needs sound")]
    assert found == [("defaults", True, ""), *refused]
