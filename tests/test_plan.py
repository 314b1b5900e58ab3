from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from clbench import catalog
from clbench.method import Method, Workbench
from clbench.plan import Cell, Row, cells, forecast_seconds
from clbench.record import Record

SUITE = catalog.suite("tiny")
STREAM = SUITE.stream()


def planned(*specs: str, seeds: tuple[int, ...] = (0,), device: str = "cpu", **words: dict[str, str]) -> list[Cell]:
    return cells(SUITE, STREAM, catalog.rows(SUITE, list(specs), words), seeds, 0, device)


def test_cells_come_seed_by_seed() -> None:
    found = [(cell.method.name, cell.seed) for cell in planned("seqlora", "ncm", seeds=(0, 1))]
    assert found == [("seqlora", 0), ("ncm", 0), ("seqlora", 1), ("ncm", 1)]


def test_names_are_for_people() -> None:
    (cell,) = planned("seqlora", seqlora={"head_masking": "seen"}, seeds=(3,))
    assert cell.name == "seqlora (head_masking=seen) seed 3"


def other_cells() -> dict[str, Cell]:
    (cell,) = planned("seqlora")
    recipe = replace(cell.suite, recipe=cell.suite.recipe.model_copy(update={"learning_rate": 0.5}))
    return {
        "method": planned("ewc")[0],
        "parameter": planned("seqlora", seqlora={"learning_rate": "0.5"})[0],
        "seed": planned("seqlora", seeds=(1,))[0],
        "device": planned("seqlora", device="cuda")[0],
        "order": replace(cell, order_seed=1),
        "source": replace(cell, fingerprint="edited"),
        "recipe": replace(cell, suite=recipe),
        "protocol": replace(cell, protocol=cell.protocol.model_copy(update={"transform": "flip"})),
    }


@pytest.mark.parametrize("what", other_cells())
def test_the_key_knows_everything_the_result_depends_on(what: str) -> None:
    (cell,) = planned("seqlora")
    assert cell.key == planned("seqlora")[0].key
    assert len(cell.key) == 16
    assert other_cells()[what].key != cell.key


def test_a_variants_words_are_no_part_of_the_key() -> None:
    (cell,) = planned("seqlora")
    assert replace(cell, variant="renamed").key == cell.key


class Copied(Method):
    """It repeats what other code does, where asked to."""

    name = "copied"
    compat_reshape: bool = False
    compat_votes: bool = False
    compatible: bool = True

    def plugins(self, bench: Workbench) -> Sequence[Any]:
        """Nothing."""
        return []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ()),
        ({"compat_votes": True}, ("votes",)),
        ({"compat_votes": True, "compat_reshape": True}, ("reshape", "votes")),
    ],
)
def test_repeated_deviations_are_on_the_card(settings: dict[str, bool], expected: tuple[str, ...]) -> None:
    (cell,) = cells(SUITE, STREAM, [Row(Copied(**settings), "", "")], [0], 0, "cpu")
    assert cell.protocol.compat == expected
    assert (cell.protocol.hash == cell.suite_protocol.hash) == (not expected)


SWITCHES = [
    (name, field)
    for name in catalog.methods()
    for field in catalog.method_type(name).cls.model_fields
    if field.startswith("compat_")
]


def test_no_method_repeats_a_deviation_unasked() -> None:
    methods = [catalog.method_type(name).cls() for name in catalog.methods()]
    assert {method.name for method in methods if method.compat()} == set()
    assert len(SWITCHES) >= 5


@pytest.mark.parametrize(("method", "field"), SWITCHES)
def test_every_switch_for_a_deviation_marks_the_card(method: str, field: str) -> None:
    plain, other = planned(method)[0], planned(method, **{method: {field: "true"}})[0]
    assert other.protocol.compat == (field.removeprefix("compat_"),)
    assert other.protocol.hash not in (plain.protocol.hash, other.suite_protocol.hash)
    assert other.protocol.suite_hash == plain.protocol.suite_hash


@pytest.mark.parametrize(
    ("spec", "terms"),
    [
        ("seqlora", {}),
        ("joint", {"schedule": "joint", "head_masking": "seen"}),
        ("ncm", {"schedule": "none", "epochs": 0, "class_statistics": True}),
        ("replay", {"head_masking": "seen", "buffer_samples": 24, "replay_batch": 8}),
    ],
)
def test_a_cells_card_is_the_suites_with_the_methods_terms(spec: str, terms: dict[str, Any]) -> None:
    (cell,) = planned(spec)
    departures = cell.protocol.departures(cell.suite_protocol)
    assert {name: here for name, (here, _) in departures.items()} == terms
    assert cell.protocol.suite_hash == cell.suite_protocol.suite_hash


def test_a_methods_own_epochs_are_its_terms() -> None:
    (cell,) = planned("seqlora", seqlora={"epochs": "1"})
    assert cell.protocol.departures(cell.suite_protocol) == {"epochs": (1, 3)}


def past(cell: Cell, seconds: float, **changes: Any) -> Record:
    cost = (
        Record.example()
        .costs[0]
        .model_copy(update={"train_seconds": seconds, "warmup_seconds": 0.5, "eval_seconds": 0.5})
    )
    fields = {"suite": "tiny", "method": cell.method.name, "protocol": cell.protocol.model_dump(), "costs": (cost,)}
    return Record.example(**{**fields, **changes})


def test_the_forecast_is_the_mean_of_what_equal_cells_took() -> None:
    (cell,) = planned("seqlora")
    others = [
        past(cell, 100, method="other"),
        past(cell, 100, suite="other"),
        past(cell, 100, protocol={**cell.protocol.model_dump(), "epochs": 9}),
        past(cell, 100, status="failed", reason="broken"),
    ]
    assert forecast_seconds(cell, others) is None
    for name in ("backbone", "stream", "stream_sha256", "transform"):
        assert forecast_seconds(cell, [past(cell, 2, protocol={**cell.protocol.model_dump(), name: "other"})]) is None
    reordered = {**cell.protocol.model_dump(), "order_seed": 1, "stream_sha256": "other"}
    assert forecast_seconds(cell, [past(cell, 2, protocol=reordered)]) == 3
    assert forecast_seconds(cell, [*others, past(cell, 2), past(cell, 4)]) == 4
    assert forecast_seconds(replace(cell, device_kind="cuda"), [past(cell, 2)]) is None
