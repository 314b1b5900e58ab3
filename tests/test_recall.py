"""Recall: exact, only while answers are asked for, and only of the untouched backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch

from clbench import catalog, executors, plan, runner, tiny
from clbench.featurecache import FeatureCache
from clbench.plan import Cell
from clbench.record import Record
from clbench.store import Store
from clbench.strategy import Plugin, Strategy
from clbench.stream import Sealed, Union

CPU = torch.device("cpu")
STREAM = tiny.stream()
TESTS = sum(len(task.test) for task in STREAM)
TRAINED = sum(len(task.train) for task in STREAM)
READS = {"ncm": TRAINED, "l2p": 0, "dualprompt": 0, "hidelora": TRAINED, "hide-prompt": TRAINED, "s-prompt": TRAINED}
"""Of how many training examples each asks the untouched backbone as they are."""


def cell_of(method: str, **recipe: Any) -> Cell:
    suite = replace(tiny.tiny, recipe=tiny.tiny.recipe.model_copy(update=recipe))
    return plan.cells(suite, STREAM, catalog.rows(suite, [method], {}), [0], 0, "cpu")[0]


def running(method: str, kept: FeatureCache, **recipe: Any) -> runner.Run:
    """A run after its first task, of which only the test examples have been asked."""
    run = runner.Run(cell_of(method, **recipe), STREAM, CPU, runner.Silent(), kept)
    run.learn(*run.lessons()[0])
    return run


@pytest.fixture
def kept(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", limit_bytes=10**6)


def unaided(cell: Cell, stream: Any = STREAM) -> tuple[Record, runner.Outcomes]:
    """A run that recalls nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.recall, "made", lambda *args: None)
        return runner.run(cell, stream, device=CPU)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[runner.recall.Frozen]:
    """What counts the looks of each run from here on."""
    found, make = list[runner.recall.Frozen](), runner.recall.made

    def noted(*args: Any) -> Any:
        made = make(*args)
        assert made is not None
        found.append(made)
        return made

    monkeypatch.setattr(runner.recall, "made", noted)
    return found


def same(one: tuple[Record, runner.Outcomes], other: tuple[Record, runner.Outcomes]) -> bool:
    (first, answers), (second, again) = one, other
    facts = ("status", "scores", "other_scores", "weights_sha256", "router_accuracy", "audit")
    assert first.status == "done"
    told = all(getattr(first, fact) == getattr(second, fact) for fact in facts)
    return told and answers.keys() == again.keys() and all((answers[name] == again[name]).all() for name in answers)


@pytest.mark.parametrize("method", READS)
def test_answers_are_the_same_with_it_and_without(method: str, kept: FeatureCache, looks: list[Any]) -> None:
    """Nothing recalled, kept by the run alone, put on the disk, and found there."""
    cell, asked = cell_of(method), TESTS + READS[method]
    plain, alone = unaided(cell), runner.run(cell, STREAM, device=CPU)
    first, second = (runner.run(cell, STREAM, device=CPU, kept=kept) for _ in range(2))
    assert all(same(plain, other) for other in (alone, first, second))
    assert [(frozen.computed, frozen.read) for frozen in looks] == [(asked, 0), (asked, 0), (0, asked)]
    assert {cost.recalled_seconds for cost in plain[0].costs} == {0.0}
    assert all(cost.recalled_seconds != 0.0 for cost in second[0].costs)


@pytest.mark.parametrize("method", ["finetune", "seqlora", "ranpac"])
def test_a_backbone_that_has_learned_is_asked_itself(method: str, kept: FeatureCache, looks: list[Any]) -> None:
    cell = cell_of(method)
    plain, other = unaided(cell), runner.run(cell, STREAM, device=CPU, kept=kept)
    assert same(plain, other)
    assert [(frozen.computed, frozen.read) for frozen in looks] == [(0, 0)]
    assert kept.entries() == []


def test_methods_and_seeds_share_the_features(kept: FeatureCache, looks: list[Any]) -> None:
    runner.run(cell_of("ncm"), STREAM, device=CPU, kept=kept)
    for cell in (cell_of("l2p"), replace(cell_of("dualprompt"), seed=7), replace(cell_of("hidelora"), seed=7)):
        runner.run(cell, STREAM, device=CPU, kept=kept)
        assert looks[-1].read == TESTS + READS[cell.method.name]
    assert len(kept.entries()) == 2 * len(STREAM)


def test_where_nothing_fits_the_run_still_remembers(tmp_path: Path, looks: list[Any]) -> None:
    none = FeatureCache(tmp_path / "features", limit_bytes=0)
    plain = unaided(cell_of("ncm"))
    small = runner.run(cell_of("ncm"), STREAM, device=CPU, kept=none)
    assert same(plain, small)
    assert looks[-1].computed == TESTS + TRAINED
    assert none.entries() == []


@pytest.mark.parametrize("how", ["torn", "another width", "others' features", "not a number"])
def test_a_file_that_is_not_right_is_computed_anew_and_said(
    how: str, kept: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: list[Any]
) -> None:
    cell = cell_of("l2p")
    plain = runner.run(cell, STREAM, device=CPU, kept=kept)
    path = kept.entries()[0].path
    good = kept.get(path.stem)
    assert good is not None
    bad = {"another width": good[:, 1:], "others' features": np.flip(good, 0), "not a number": good + np.nan}
    path.write_bytes(path.read_bytes()[:200]) if how == "torn" else kept.put(path.stem, bad[how])
    monkeypatch.setattr(FeatureCache, "wanted", classmethod(lambda cls: kept))

    class Listener(executors.Quiet):
        heard: tuple[str, ...] = ()

        def message(self, text: str) -> None:
            self.heard += (text,)

    listener = Listener()
    summary = executors.inline([cell], STREAM, Store.create(tmp_path / "store"), CPU, listener)
    assert summary.made[0].scores == plain[0].scores
    assert looks[-1].read == TESTS - 32
    (sentence,) = listener.heard
    assert sentence == f"the kept features {path.stem} are torn or not this backbone's; they were computed anew."
    mended = kept.get(path.stem)
    assert mended is not None
    assert np.array_equal(mended[:, :-1], good[:, :-1])


@pytest.mark.parametrize("other", ["transform", "normalisation", "weights", "recipe", "backbone"])
def test_other_circumstances_have_another_file(other: str, kept: FeatureCache) -> None:
    cell = cell_of("ncm")
    running("ncm", kept).exam.score(0)
    before = {entry.path for entry in kept.entries()}
    run = runner.Run(cell if other != "recipe" else cell_of("ncm", eval_batch_size=8), STREAM, CPU, runner.Silent())
    if other in ("transform", "normalisation", "backbone"):
        cell = replace(cell, protocol=cell.protocol.model_copy(update={other: "another"}))
    if other == "weights":
        with torch.no_grad():
            run.model.body.get_parameter("cls_token")[..., 0] += 1e-3
    frozen = runner.recall.made(run.cell if other == "recipe" else cell, run.model, kept)
    made = runner.recall.of(frozen, [STREAM.tasks[0].test])
    assert frozen is not None
    assert made is not None
    with made.answering(), torch.no_grad():
        inputs, _ = STREAM.tasks[0].test.batch(torch.arange(4), CPU)
        made.note(inputs, torch.arange(4))
        run.model.eval()
        run.model.query(inputs)
    assert frozen.computed == 32
    assert len({entry.path for entry in kept.entries()} - before) == 1


def test_pixels_of_another_decoder_have_another_file(kept: FeatureCache) -> None:
    """A data set is the same by its encoded images, whose decoded pixels may differ in the last bit."""
    run, keys = running("ncm", kept), []
    for pixels in ("one", "other", "one"):
        held = Sealed(Decoded(STREAM.tasks[0].test, pixels), run.vault)
        assert run.frozen is not None
        with run.vault.open():
            run.frozen.rows(Union([held]))
        keys.append({entry.path for entry in kept.entries()})
    assert len(keys[1] - keys[0]) == 1
    assert keys[2] == keys[1]


def _cudnn(wanted: bool) -> None:
    torch.backends.cudnn.deterministic = wanted


SWITCHES = {
    "timm's attention": (timm.layers.config.set_fused_attn, timm.layers.use_fused_attn),
    "PyTorch's attention": (torch.backends.cuda.enable_math_sdp, torch.backends.cuda.math_sdp_enabled),
    "deterministic": (_cudnn, lambda: torch.backends.cudnn.deterministic),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_other_kernels_have_another_file(name: str, kept: FeatureCache) -> None:
    switch, state = SWITCHES[name]
    run, before = running("ncm", kept), bool(state())
    assert run.frozen is not None
    counts = []
    for wanted in (before, not before, before):
        switch(wanted)
        try:
            with run.vault.open():
                run.frozen.rows(run.stream.tasks[0].test)
        finally:
            switch(before)
        counts.append(len(kept.entries()))
    assert counts[1:] == [counts[0] + 1] * 2


def test_another_source_has_other_files(kept: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transform may be another under its old name."""
    before = {entry.path for entry in entries_of_a_run(kept)}
    assert {entry.path for entry in entries_of_a_run(kept)} == before
    monkeypatch.setattr(runner.recall, "_sources_sha256", lambda: "edited")
    assert len(entries_of_a_run(kept)) == 2 * len(before)


def entries_of_a_run(kept: FeatureCache) -> list[Any]:
    runner.run(cell_of("ncm"), STREAM, device=CPU, kept=kept)
    return kept.entries()


@dataclass
class Decoded:
    """Examples that tell their pixels' hash."""

    examples: Any
    pixels_sha256: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.examples, name)


class Spy(Plugin):
    """Looks at what the model would recall."""

    def __init__(self) -> None:
        super().__init__()
        self.recalled: list[bool] = []
        self.recalled_in_training: list[bool] = []

    @torch.no_grad()
    def _recalls(self, strategy: Strategy) -> bool:
        recall = strategy.model.recall
        strategy.model.eval()
        return recall is not None and recall(strategy.mb_x) is not None

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.recalled.append(self._recalls(strategy))

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        self.recalled_in_training.append(self._recalls(strategy))


def test_no_step_of_training_recalls_anything(kept: FeatureCache) -> None:
    """A step's examples are augmented; what a pass over them took is what it takes."""
    run, spy = runner.Run(cell_of("s-prompt"), STREAM, CPU, runner.Silent(), kept), Spy()
    run.strategy.plugins.append(spy)
    run.learn(*run.lessons()[0])
    assert len(spy.recalled_in_training) > 2
    assert not any(spy.recalled_in_training)
    assert all(spy.recalled)


def test_a_lesson_recalls_its_own_examples_alone(kept: FeatureCache) -> None:
    """Neither test examples nor those of another task are known while one is learned."""
    known: list[Any] = []

    class Nosy(Plugin):
        def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
            known.append(strategy.model.recall.__self__.parts)

    run = runner.Run(cell_of("ncm"), STREAM, CPU, runner.Silent(), kept)
    run.strategy.plugins.append(Nosy())
    for lesson in run.lessons():
        run.learn(*lesson)
    assert known == [(task.train,) for task in run.stream]


def test_an_audit_recalls_nothing(kept: FeatureCache) -> None:
    run, spy = running("ncm", kept), Spy()
    run.strategy.plugins.append(spy)
    assert run.model.recall is None
    run.exam.score(0)
    assert spy.recalled == [True]
    assert run.model.recall is None
    spy.recalled.clear()
    run.exam.audit()
    assert len(spy.recalled) > 2
    assert not any(spy.recalled)


def test_only_the_very_inputs_that_were_asked_are_recalled(kept: FeatureCache) -> None:
    run = running("ncm", kept)
    recall, test = run.recall, STREAM.tasks[0].test
    assert recall is not None
    run.model.eval()
    with recall.answering(), torch.no_grad():
        inputs, _ = test.batch(torch.tensor([3, 1]), CPU)
        recall.note(inputs, torch.tensor([3, 1]))
        assert torch.equal(run.model.query(inputs), run.model._untouched(inputs.clone()))
        of = run.model.recall
        assert of is not None
        assert of(inputs) is not None
        assert of(inputs.clone()) is None
        with torch.enable_grad():
            assert of(inputs) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert of(inputs) is None
        inputs += 1
        assert of(inputs) is None


def test_the_seconds_that_are_saved_are_charged(kept: FeatureCache) -> None:
    run = running("ncm", kept)
    assert run.recall is not None
    key = kept.entries()[-1].path.stem  # of the test examples, asked last
    rows = kept.get(key)
    assert rows is not None
    rows[:, -1] = 2.0
    kept.put(key, rows)
    run.recall.forget()
    assert 63 < run.exam.score(0).uncounted_seconds < 64  # 32 examples, and less than a second to read them
    assert run.exam.score(0).uncounted_seconds == pytest.approx(64, abs=0.5)
    run.exam.recall = None
    assert run.exam.score(0).uncounted_seconds == 0


def test_what_a_lesson_recalls_is_charged_to_it(kept: FeatureCache) -> None:
    runner.run(cell_of("ncm"), STREAM, device=CPU, kept=kept)
    for entry in kept.entries():
        rows = kept.get(entry.path.stem)
        assert rows is not None
        rows[:, -1] = 2.0
        kept.put(entry.path.stem, rows)
    record, _ = runner.run(cell_of("ncm"), STREAM, device=CPU, kept=kept)
    charged = [2.0 * len(task.train) for task in STREAM]
    assert [cost.train_seconds for cost in record.costs] == pytest.approx(charged, abs=0.5)
    asked = [2.0 * sum(len(task.test) for task in STREAM.tasks[: index + 1]) for index in range(len(STREAM))]
    recalled = [a + b for a, b in zip(charged, asked, strict=True)]
    assert [cost.recalled_seconds for cost in record.costs] == pytest.approx(recalled, abs=0.5)


def test_a_lesson_that_moves_the_weights_recalls_nothing_afterwards(kept: FeatureCache) -> None:
    """Though the plugin froze the backbone while it asked before, and an optimiser leaves no trace but the numbers."""
    recalled: list[bool] = []

    class Moves(Plugin):
        def _look(self, strategy: Strategy) -> None:
            inputs, *_ = next(iter(strategy.dataloader))
            strategy.model.eval()
            with torch.no_grad():
                recalled.append(strategy.model.recall(inputs) is not None)

        def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
            self._look(strategy)
            strategy.model.train()

        def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
            self._look(strategy)

        def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
            parameter = strategy.model.body.get_parameter("cls_token")
            parameter.grad = torch.ones_like(parameter)
            torch.optim.SGD([parameter], lr=0.1, fused=True).step()
            parameter.grad = None

    run = runner.Run(cell_of("s-prompt", epochs=1), STREAM, CPU, runner.Silent(), kept)
    run.strategy.plugins.append(Moves())
    run.learn(*run.lessons()[0])
    assert recalled == [True, False]


def test_weights_that_change_while_answers_are_asked_for_are_seen(kept: FeatureCache) -> None:
    run = running("ncm", kept)
    run.model.eval()
    assert run.recall is not None
    with run.recall.answering(), torch.no_grad():
        inputs, _ = STREAM.tasks[0].test.batch(torch.arange(4), CPU)
        run.recall.note(inputs, torch.arange(4))
        of = run.model.recall
        assert of is not None
        assert of(inputs) is not None
        run.model.body.get_parameter("cls_token").add_(1)
        assert of(inputs) is None
