from __future__ import annotations

import doctest
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clbench import row
from clbench.metrics import Undefined
from clbench.record import Audit, Record, TaskCosts
from clbench.row import Row, columns
from clbench.table import REFERENCE_METHOD, Table, make_tables

CARD = {
    "suite": "digits",
    "order_seed": 0,
    "epochs": 5,
    "batch_size": 32,
    "head_masking": "current",
    "schedule": "sequential",
    "task_id_at_test": False,
    "buffer_samples": 0,
}


def costs(seconds: float = 1.0, **changes: Any) -> tuple[TaskCosts, TaskCosts]:
    cost = Record.example().costs[0].model_copy(update={"train_seconds": seconds, **changes})
    return cost, cost


def run(method: str, seed: int = 0, *, last: tuple[float, float] = (0.5, 0.9), **changes: Any) -> Record:
    """A finished run on two tasks whose first task was learned to 1.0."""
    protocol = {**CARD, **changes.pop("protocol", {})}
    origin = Record.example().origin.model_copy(update=changes.pop("origin", {}))
    defaults: dict[str, Any] = {
        "key": f"{method}-{changes.get('variant', '')}-{seed}",
        "suite_protocol": CARD,
        "scores": ((None, None), (1.0, None), last),
        "costs": costs(),
    }
    return Record.example(
        **{**defaults, "method": method, "seed": seed, "protocol": protocol, "origin": origin, **changes}
    )


def only(records: list[Record], **options: Any) -> Table:
    (made,) = make_tables(records, **options)
    return made


def rows(records: list[Record], **options: Any) -> dict[str, Row]:
    return {line.label: line for line in only(records, **options).rows}


def notes(made: Table, label: str) -> list[str]:
    (line,) = [line for line in made.rows if line.label == label]
    return [dict(made.footnotes)[mark] for mark in line.marks]


def test_a_row_averages_its_seeds() -> None:
    line = rows([run("ewc", 0), run("ewc", 1, last=(0.7, 0.9), costs=costs(3.0))])["ewc"]
    assert line.n_seeds == 2
    assert line.avg_accuracy_mean == pytest.approx((70 + 80) / 2)
    assert line.avg_accuracy_std == pytest.approx(50**0.5)
    assert line.avg_accuracy_pooled_mean == pytest.approx((80 + 85) / 2)
    assert line.avg_incremental_accuracy_mean == pytest.approx((85 + 90) / 2)
    assert line.learning_accuracy_mean == pytest.approx(95)
    assert line.forgetting_mean == pytest.approx((50 + 30) / 2)
    assert line.bwt_mean == pytest.approx(-40)
    assert line.bwt_trace_mean == line.bwt_treelora_mean == pytest.approx(-20)
    assert line.train_seconds_mean == pytest.approx((2 + 6) / 2)
    assert line.train_seconds_std == pytest.approx(8**0.5)
    assert line.train_seconds_per_sample == pytest.approx((0.001 + 0.003) / 2)
    assert line.eval_seconds_mean == pytest.approx(0.4)
    assert line.peak_memory_mib == 50.0
    assert line.trainable_parameters == 1000
    assert line.stored_mib == pytest.approx(4000 / 2**20)
    assert line.flops_per_step == Undefined("FLOPs were not counted")
    assert (line.status, line.reason, line.rank, line.device) == ("done", "", 1, "cpu")


def test_memory_and_parameters_are_of_the_highest_task_and_storage_of_the_last() -> None:
    first, last = costs(peak_memory_mib=90.0, trainable_parameters=7, stored_bytes=2**20, flops_per_step=10.0)
    last = last.model_copy(update={"peak_memory_mib": 50.0, "trainable_parameters": 3, "stored_bytes": 2**21})
    line = rows([run("ewc", costs=(first, last))])["ewc"]
    assert (line.peak_memory_mib, line.trainable_parameters, line.stored_mib) == (90.0, 7, 2.0)
    assert line.flops_per_step == 10.0


def test_one_seed_has_no_spread() -> None:
    line = rows([run("ewc")])["ewc"]
    assert line.avg_accuracy_std == line.bwt_std == Undefined("one run only")


def test_the_router_accuracy_is_that_after_the_last_task_averaged_over_seeds() -> None:
    made = rows(
        [
            run("hide", 0, router_accuracy=(1.0, 0.5)),
            run("hide", 1, router_accuracy=(None, 0.75)),
            run("ewc"),
            run("late", router_accuracy=(1.0, None)),
        ]
    )
    assert made["hide"].router_accuracy_mean == pytest.approx(62.5)
    assert made["ewc"].router_accuracy_mean == made["late"].router_accuracy_mean == Undefined("infers no task")


def test_a_joint_run_has_accuracy_and_no_forgetting() -> None:
    scores = ((None, None), (None, None), (0.9, 0.9))
    line = rows([run("joint", scores=scores, costs=costs()[:1], protocol={"schedule": "joint"})])["joint"]
    assert line.avg_accuracy_mean == pytest.approx(90)
    assert line.forgetting_mean == line.bwt_mean == Undefined("not measured after every task")
    assert line.train_seconds_per_sample == pytest.approx(0.001)


def test_no_training_samples_is_not_free_training() -> None:
    line = rows([run("ncm", costs=costs(train_samples=0)), run("ewc", costs=())])
    assert line["ncm"].train_seconds_per_sample == Undefined("no timed training samples")
    assert line["ewc"].train_seconds_mean == Undefined("no costs recorded")


def test_failed_runs_are_named_and_never_zero() -> None:
    bad = {"status": "failed", "reason": "the loss is not finite", "scores": (), "costs": ()}
    made = only([run("ewc", 0), run("ewc", 1), run("ewc", 2, **bad), run("gem", 0, **bad)])
    good, failed = made.rows
    assert (good.label, good.n_seeds, good.status, good.avg_accuracy_mean) == ("ewc", 2, "done", 70.0)
    assert good.reason == "1 of 3 runs failed: the loss is not finite"
    assert notes(made, "ewc") == [good.reason]
    assert (failed.label, failed.n_seeds, failed.status) == ("gem", 0, "failed")
    assert failed.avg_accuracy_mean == Undefined("failed: the loss is not finite")
    assert isinstance(failed.rank, Undefined)


def test_unsupported_cells_say_why() -> None:
    (line,) = only([run("gem", status="unsupported", reason="needs a buffer", scores=(), costs=())]).rows
    assert (line.status, line.reason, line.n_seeds) == ("unsupported", "unsupported: needs a buffer", 0)


def test_stale_runs_are_never_averaged_with_fresh_ones() -> None:
    fresh, old = run("ewc", 0), run("ewc", 1, last=(0.0, 0.0), fingerprint="old", key="old")
    made = only([fresh, old], stale={"old"})
    assert (made.rows[0].n_seeds, made.rows[0].avg_accuracy_mean) == (1, 70.0)
    assert notes(made, "ewc") == ["1 stale run of an older source left out"]


def test_only_stale_runs_are_shown_as_stale_and_not_ranked() -> None:
    older = run("ewc", 1, last=(0.0, 0.0), fingerprint="older", key="x", origin={"started": "2025-01-01T00:00:00"})
    made = only([run("ewc", key="y"), older, run("gem")], stale={"x", "y"})
    gem, ewc = made.rows
    assert (gem.label, gem.rank) == ("gem", 1)
    assert (ewc.status, ewc.n_seeds, ewc.avg_accuracy_mean) == ("stale", 1, 70.0)
    assert isinstance(ewc.rank, Undefined)
    assert ewc.overhead == Undefined("stale")
    assert notes(made, "ewc")[0].startswith("stale: ")


def test_a_seed_counts_once_and_a_finished_run_before_a_failed_one() -> None:
    failed = run("ewc", status="failed", reason="x", scores=(), costs=(), origin={"started": "2027-01-01"})
    late = run("ewc", last=(0.9, 0.9), origin={"started": "2026-06-01"})
    line = rows([failed, late, run("ewc")])["ewc"]
    assert (line.n_seeds, line.avg_accuracy_mean, line.reason) == (1, 90.0, "")


def test_protocols_never_share_a_table() -> None:
    other = {**CARD, "order_seed": 1, "epochs": 9}
    records = [run("ewc", order_seed=1, suite_hash="aaaa", suite_protocol=other, protocol=other), run("ewc")]
    first, second = make_tables(records)
    assert (first.suite_hash, first.differs) == ("bbbb", "order_seed 0")
    assert (second.suite_hash, second.differs) == ("aaaa", "order_seed 1")
    assert [len(made.rows) for made in (first, second)] == [1, 1]
    assert make_tables(reversed(records)) == (first, second)
    assert only(records[:1]).differs == ""


def test_departures_from_the_suites_protocol_are_marked_in_words() -> None:
    masked = {"head_masking": "seen", "buffer_samples": 200}
    made = only(
        [
            run(REFERENCE_METHOD, last=(0.9, 0.9)),
            run(REFERENCE_METHOD, variant="head_masking=seen", protocol=masked, params={"head_masking": "seen"}),
            run("ewc", protocol={"epochs": 9, "task_id_at_test": True}, last=(0.1, 0.1)),
            run("replay", protocol=masked, last=(0.2, 0.2)),
        ]
    )
    assert made.footnotes == (
        ("a", "head_masking seen instead of current; buffer_samples 200 instead of 0"),
        ("b", "epochs 9 instead of 5; task_id_at_test yes instead of no"),
    )
    assert [(line.method, line.marks, line.epochs_differ) for line in made.rows] == [
        (REFERENCE_METHOD, (), False),
        (REFERENCE_METHOD, ("a",), False),
        ("replay", ("a",), False),
        ("ewc", ("b",), True),
    ]


def test_settings_that_differ_are_never_averaged() -> None:
    made = only([run("ewc", recipe={"epochs": 5}), run("ewc", 1, recipe={"epochs": 1})])
    assert [line.n_seeds for line in made.rows] == [1, 1]


def test_devices_and_precisions_are_never_averaged() -> None:
    h200 = {"device": "NVIDIA H200", "device_kind": "cuda"}
    made = only([run("ewc"), run("ewc", 1, origin=h200), run("ewc", 2, origin={**h200, "precision": "bfloat16"})])
    assert made.devices == ("NVIDIA H200", "NVIDIA H200, bfloat16", "cpu")
    assert [line.n_seeds for line in made.rows] == [1, 1, 1]


def test_overhead_pairs_the_seeds_with_the_reference() -> None:
    made = rows(
        [
            run(REFERENCE_METHOD, 0, costs=costs(1.0)),
            run(REFERENCE_METHOD, 1, costs=costs(2.0)),
            run(REFERENCE_METHOD, 2, costs=costs(100.0), contended=True),
            run(REFERENCE_METHOD, 0, costs=costs(7.0), variant="rank=4", params={"rank": 4}),
            run("ewc", 0, costs=costs(1.5)),
            run("ewc", 1, costs=costs(4.0)),
            run("ewc", 2, costs=costs(1.0)),
            run("ewc", 3, costs=costs(50.0)),
        ]
    )
    assert made["ewc"].overhead == pytest.approx((1.5 + 2.0) / 2)
    assert made[REFERENCE_METHOD].overhead == 1.0
    assert made[f"{REFERENCE_METHOD} (rank=4)"].overhead == pytest.approx(7.0)


def test_overhead_takes_the_reference_under_the_same_recipe() -> None:
    short, word = {"epochs": 1}, "recipe.epochs=1"
    made = rows(
        [
            run(REFERENCE_METHOD, costs=costs(9.0)),
            run(REFERENCE_METHOD, variant=word, recipe=short, costs=costs(1.0)),
            run("ewc", variant=word, recipe=short, costs=costs(2.0)),
        ]
    )
    assert made[f"ewc ({word})"].overhead == pytest.approx(2.0)


def test_overhead_is_undefined_with_the_reason() -> None:
    def overhead(*records: Record, **options: Any) -> Any:
        return rows(list(records), **options)["ewc"].overhead

    gpu = {"device": "NVIDIA H200", "device_kind": "cuda"}
    base = run(REFERENCE_METHOD)
    missing = Undefined(f"no finished run of {REFERENCE_METHOD} on this device")
    assert overhead(run("ewc")) == missing
    assert overhead(run("ewc", origin=gpu), base) == missing
    assert overhead(run("ewc"), base, stale={base.key}) == missing
    assert overhead(run("ewc", contended=True), base) == Undefined("no timed run of it that had the device to itself")
    uncommon = Undefined(f"no seed and thread count in common with {REFERENCE_METHOD}")
    assert overhead(run("ewc", 1), base) == uncommon
    assert overhead(run("ewc", origin={"threads": 2}), base) == uncommon
    assert overhead(run("ewc", costs=costs(2.0)), run("gem"), reference="gem") == pytest.approx(2.0)


def test_contended_runs_and_mixed_threads_are_marked() -> None:
    made = only([run("ewc", 0, contended=True), run("ewc", 1, origin={"threads": 4})])
    assert notes(made, "ewc") == [
        "1 of 2 runs shared the device with others; not in the overhead",
        "seconds are of runs with 1 and 4 threads",
    ]


@pytest.mark.parametrize(
    ("batch", "labels", "declared", "words"),
    [
        (0, 0, False, None),
        (3, 0, False, "failed audit: answers depend on the batch they came in (3 of 50 changed)"),
        (0, 2, False, "failed audit: answers depend on the task labels (2 of 50 changed)"),
        (0, 2, True, None),
    ],
)
def test_a_failed_audit_is_marked(batch: int, labels: int, declared: bool, words: str | None) -> None:
    audit = Audit(samples=50, batch_flips=batch, label_flips=labels)
    made = only([run("ewc", audit=audit, protocol={"task_id_at_test": declared})])
    assert [note for note in notes(made, "ewc") if "audit" in note] == ([words] if words else [])


def test_what_a_method_says_of_its_runs_is_a_footnote_once() -> None:
    inactive, small = "penalty inactive: its gradient is small", "3 tasks were merged"
    made = only(
        [
            run("a", 0, marks=(inactive, small)),
            run("a", 1, marks=(small,)),
            run("a", 2, status="failed", reason="x", scores=(), costs=()),
            run("b", last=(0.1, 0.1), marks=(small,)),
        ]
    )
    assert notes(made, "a") == ["1 of 3 runs failed: x", f"1 of 2 runs: {inactive}", small]
    assert notes(made, "b") == [small]
    assert [words for _, words in made.footnotes].count(small) == 1


def answers(share: float, n: int = 400) -> Mapping[str, NDArray[Any]]:
    """Outcomes right on the first `share` of each of two tasks."""
    labels, position = np.zeros(n, dtype=int), np.tile(np.arange(n // 2), 2)
    return {
        "labels": labels,
        "tasks": np.repeat([0, 1], n // 2),
        "round_2": np.where(position < share * n / 2, 0, 1),
    }


def test_rank_and_ties() -> None:
    shares = {"ewc": 0.9, "gem": 0.895, "olora": 0.5}
    records = [run(name, last=(share, share)) for name, share in shares.items()]
    made = only(records, outcomes=lambda record: answers(shares[record.method]))
    assert [(line.method, line.rank, line.tied_with) for line in made.rows] == [
        ("ewc", 1, ("gem",)),
        ("gem", 1, ("ewc",)),
        ("olora", 3, ()),
    ]
    assert made.untested == ""


def test_without_outcomes_nothing_is_tied_and_the_table_says_so() -> None:
    made = only([run("ewc", last=(0.9, 0.9)), run("gem")])
    assert [(line.rank, line.tied_with) for line in made.rows] == [(1, ()), (2, ())]
    assert made.untested == "ewc, gem: no outcomes per example"


def test_ties_across_devices_name_the_device() -> None:
    gpu = {"device": "H200", "device_kind": "cuda"}
    made = only([run("ewc"), run("ewc", key="k", origin=gpu)], outcomes=lambda record: answers(0.7))
    assert [line.tied_with for line in made.rows] == [("ewc on cpu",), ("ewc on H200",)]


def test_seeds_that_other_rows_of_the_device_have() -> None:
    gpu = {"device": "H200", "device_kind": "cuda"}
    bad = {"status": "failed", "reason": "x", "scores": (), "costs": ()}
    records = [run("ewc", 0), run("ewc", 2), run("gem", 2), run("l2p", 5, **bad), run("far", 7, origin=gpu)]
    assert only(records).seeds_missing == "gem on cpu: 0"
    assert only([run("ewc"), run("gem")]).seeds_missing == ""


def test_a_table_names_its_backbone() -> None:
    assert only([run("ewc", suite_protocol={**CARD, "backbone": "small-vit"})]).backbone == "small-vit"


def test_order_of_records_does_not_matter() -> None:
    records = [run(name, seed, last=(0.1 * seed, 0.5)) for name in ("ewc", "gem", "olora") for seed in range(3)]
    assert make_tables(records) == make_tables(records[::-1])
    assert make_tables([]) == ()


def test_many_marks() -> None:
    records = [run(f"m{i:02}", protocol={"buffer_samples": i + 1}) for i in range(28)]
    assert [mark for mark, _ in only(records).footnotes][-3:] == ["z", "aa", "ab"]


def test_the_columns_are_the_rows_fields_and_the_issues() -> None:
    names = [column.name for column in columns(REFERENCE_METHOD)]
    assert [column.attribute for column in columns(REFERENCE_METHOD)] == [f.name for f in fields(Row)]
    assert all(column.meaning for column in columns(REFERENCE_METHOD))
    assert names == [
        "suite",
        "protocol",
        "method",
        "variant",
        "n_seeds",
        "avg_accuracy_mean",
        "avg_accuracy_std",
        "avg_accuracy_pooled_mean",
        "avg_incremental_accuracy_mean",
        "avg_incremental_accuracy_std",
        "learning_accuracy_mean",
        "forgetting_mean",
        "forgetting_std",
        "bwt_mean",
        "bwt_std",
        "bwt_trace_mean",
        "bwt_treelora_mean",
        "router_accuracy_mean",
        "train_seconds_mean",
        "train_seconds_std",
        "train_seconds_per_sample",
        "overhead_vs_seqlora",
        "eval_seconds_mean",
        "peak_memory_mib",
        "trainable_parameters",
        "stored_mib",
        "flops_per_step",
        "device",
        "epochs_differ",
        "marks",
        "status",
        "reason",
        "rank",
        "tied_with",
    ]


def test_doctests() -> None:
    outcome = doctest.testmod(row)
    assert outcome.attempted
    assert outcome.failed == 0
