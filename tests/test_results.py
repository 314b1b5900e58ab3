"""The published records: complete, current, and as any sane comparison must come out."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from clbench import catalog, metrics
from clbench.record import Record
from clbench.store import Store

RESULTS = Path(__file__).resolve().parent.parent / "results"
SEEDS = {0, 1, 2}
ABLATIONS = ["treelora-ablation", "treelora-depth", "treelora-epochs", "treelora-sensitivity"]
CHANCE = 0.5
"""Guessing between the two classes of a task."""


def published(suite: str) -> dict[tuple[str, str], list[Record]]:
    loaded = Store.existing(RESULTS).load(suite, published=True)
    assert loaded.problems == []
    rows = defaultdict(list)
    for record in loaded.records:
        rows[record.method, record.variant].append(record)
        assert loaded.outcomes(record) is not None
    return dict(rows)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], list[Record]]:
    return published("quick")


def mean(records: list[Record], metric: str) -> float:
    values = [getattr(metrics, metric)(record.scores) for record in records]
    assert all(isinstance(value, float) for value in values), values
    return sum(values) / len(values)


@pytest.mark.parametrize("suite", ["quick", "glyphs", *ABLATIONS])
def test_every_contender_has_at_least_three_finished_seeds_of_today(suite: str) -> None:
    rows, found = published(suite), catalog.suite(suite)
    assert {(row.method.name, row.variant) for row in catalog.rows(found, [], {})} <= set(rows)
    for records in rows.values():
        assert {record.seed for record in records} >= SEEDS
        assert {record.status for record in records} == {"done"}
        assert {record.fingerprint for record in records} == {catalog.current_fingerprint(records[0].method)}
        assert suite != "quick" or not any(record.contended for record in records)


def test_all_rows_share_one_protocol_and_pass_the_audit(rows: dict[tuple[str, str], list[Record]]) -> None:
    everything = [record for records in rows.values() for record in records]
    assert len({record.suite_hash for record in everything}) == 1
    for record in everything:
        assert record.audit is not None
        assert (record.audit.batch_flips, record.audit.label_flips) == (0, 0)


def test_joint_is_above_all_sequential_rows(rows: dict[tuple[str, str], list[Record]]) -> None:
    joint = mean(rows["joint", ""], "average_accuracy")
    others = {row: mean(records, "average_accuracy") for row, records in rows.items() if row[0] not in ("joint", "ncm")}
    assert joint > max(others.values()), others


def test_replay_forgets_less_than_seqlora(rows: dict[tuple[str, str], list[Record]]) -> None:
    assert mean(rows["replay", ""], "forgetting") < mean(rows["seqlora", ""], "forgetting")


def test_unmasked_seqlora_forgets_nearly_everything(rows: dict[tuple[str, str], list[Record]]) -> None:
    past = [score for record in rows["seqlora", "unmasked"] for score in record.scores[-1][:-1]]
    assert None not in past
    assert sum(score or 0 for score in past) / len(past) < 0.1
    assert mean(rows["seqlora", "unmasked"], "forgetting") > 0.9


def test_every_method_beats_chance_on_its_first_task(rows: dict[tuple[str, str], list[Record]]) -> None:
    for row, records in rows.items():
        for record in records:
            first = record.scores[1][0] if record.protocol["schedule"] != "joint" else record.scores[-1][0]
            assert first is not None
            assert first > 1.5 * CHANCE, (row, record.seed, first)


def test_the_glyphs_suite_tells_methods_apart() -> None:
    rows = published("glyphs")
    assert 0.60 <= mean(rows["ncm", ""], "average_accuracy") <= 0.85
    assert mean(rows["joint", ""], "average_accuracy") >= 0.90


def test_every_method_for_images_is_published_on_glyphs() -> None:
    stream = catalog.suite("tiny").stream()
    images = {name for name in catalog.methods() if catalog.method_type(name).cls().unsupported(stream) is None}
    assert {method for method, _ in published("glyphs")} == images


def spread(records: list[Record]) -> float:
    return statistics.stdev(float(metrics.average_accuracy(record.scores)) for record in records)


def test_treelora_keeps_on_glyphs_what_plain_lora_forgets() -> None:
    rows = published("glyphs")
    accuracy = {row: mean(records, "average_accuracy") for row, records in rows.items()}
    mine, host = ("treelora", ""), ("hidelora", "")
    assert all(accuracy[mine] > accuracy[other, ""] for other in ("seqlora", "ewc", "olora", "l2p"))
    assert accuracy[mine] >= accuracy[host] - spread(rows[mine])
    assert mean(rows[mine], "forgetting") < mean(rows["seqlora", ""], "forgetting") / 3


def test_only_a_row_without_a_penalty_is_marked_as_inactive() -> None:
    for suite in ABLATIONS:
        for (_, variant), records in published(suite).items():
            marked = any("penalty inactive" in mark for record in records for mark in record.marks)
            assert marked == (variant == "penalty=none"), (suite, variant)
            assert all(record.router_accuracy[-1] is not None for record in records)
