"""Our figures beside published ones: numbers, tolerances, protocols, missing runs, and how they are shown."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clbench import catalog
from clbench.cli import app
from clbench.errors import BadValue, UnknownName
from clbench.metrics import Undefined
from clbench.protocol import digest
from clbench.record import Record
from clbench.report import verdicts
from clbench.store import Store
from clbench.suite import Reference
from clbench.verify import Check, checks, facts, only

CARD = {
    "suite": "exam",
    "stream": "cifar100",
    "backbone": "vit-b16-in21k",
    "transform": "pilot",
    "normalisation": "none",
    "epochs": 20,
    "batch_size": 128,
    "head_masking": "current",
    "data": ["class order: natural", "words without a term"],
}
RECIPE = {"epochs": 20, "optimizer": "adam", "learning_rate": 5e-4}
EVERYTHING: dict[str, str | int | float] = {
    "backbone": "vit-b16-in21k",
    "tasks": 2,
    "class order": "natural",
    "transform": "pilot",
    "normalisation": "none",
    "head masking": "current",
    "epochs": 20,
    "batch size": 128,
    "optimiser": "adam",
    "step size": 5e-4,
    "schedule": "constant",
}
REFERENCE = Reference(
    method="plain", metric="avg_accuracy", value=70.0, tolerance=1.5, source="A paper, table 1", protocol=EVERYTHING
)


def record(last: float = 0.5, seed: int = 0, **changes: Any) -> Record:
    """Average accuracy is half of `last` and 0.9."""
    card = {**CARD, **changes.pop("card", {})}
    fields: dict[str, Any] = {
        "suite": "exam",
        "seed": seed,
        "key": digest([last, seed, str(changes)], 16),
        "protocol": card,
        "suite_protocol": card,
        "suite_hash": digest(card),
        "recipe": RECIPE,
        "scores": ((None, None), (1.0, None), (last, 0.9)),
    }
    return Record.example(**{**fields, **changes})


def one(reference: Reference = REFERENCE, *records: Record) -> Check:
    (check,) = checks("exam", [reference], records)
    return check


def test_mean_spread_and_difference() -> None:
    check = one(REFERENCE, record(0.5, 0), record(0.6, 1))
    assert check.ours == pytest.approx(72.5)
    assert check.std == pytest.approx(5.0 / 2**0.5)
    assert check.n == 2
    assert check.difference == pytest.approx(2.5)
    assert check.within is False
    assert one(replace(REFERENCE, tolerance=2.6), record(0.5, 0), record(0.6, 1)).within is True
    assert one(replace(REFERENCE, tolerance=None), record()).within is None


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("avg_accuracy", 70.0),
        ("avg_accuracy_pooled", 80.0),  # 10 and 30 test samples
        ("avg_incremental_accuracy", 85.0),
        ("forgetting", 50.0),
        ("bwt", -50.0),
        ("bwt_trace", -25.0),
        ("bwt_treelora", -25.0),
        ("train_seconds", 2.0),
    ],
)
def test_every_metric_has_its_unit_and_sign(metric: str, value: float) -> None:
    check = one(replace(REFERENCE, metric=metric), record(0.5))
    assert check.ours == pytest.approx(value)
    assert check.unit == ("s" if metric == "train_seconds" else "%")


def test_equal_protocols() -> None:
    check = one(REFERENCE, record())
    assert (check.protocols, check.differences, check.unstated) == ("equal", (), ())


def test_every_difference_of_the_protocols_is_named() -> None:
    other: dict[str, str | int | float] = {
        "backbone": "vit-b16-ibot21k",
        "tasks": 20,
        "class order": "seed1993",
        "transform": "coda",
        "normalisation": "0.5",
        "head masking": "seen",
        "epochs": 50,
        "batch size": 16,
        "optimiser": "sgd",
        "step size": 0.005,
        "schedule": "coda",
    }
    check = one(replace(REFERENCE, protocol=other), record())
    assert check.protocols == "differ"
    assert check.differences == (
        "backbone vit-b16-in21k, published vit-b16-ibot21k",
        "tasks 2, published 20",
        "class order natural, published seed1993",
        "transform pilot, published coda",
        "normalisation none, published 0.5",
        "head masking current, published seen",
        "epochs 20, published 50",
        "batch size 128, published 16",
        "optimiser adam, published sgd",
        "step size 0.0005, published 0.005",
        "schedule constant, published coda",
    )


def test_what_the_source_leaves_open_is_named() -> None:
    check = one(replace(REFERENCE, protocol={"backbone": "vit-b16-in21k", "step size": 0.0005}), record())
    assert check.protocols == "equal as far as stated"
    assert check.unstated[:3] == ("tasks", "class order", "transform")
    assert "backbone" not in check.unstated


def test_a_method_has_its_own_step_size_and_epochs() -> None:
    own = record(
        card={"epochs": 3, "task_epochs": [2, 4]}, params={"learning_rate": 0.01}, recipe={**RECIPE, "schedule": "coda"}
    )
    found = facts(own)
    assert (found["step size"], found["epochs"], found["schedule"]) == (0.01, "2,4", "coda")


def test_terms_that_do_not_apply_are_no_difference() -> None:
    untrained = record(card={"epochs": 0, "transform": "coda"})
    check = one(replace(REFERENCE, protocol={**EVERYTHING, "epochs": 0}), untrained)
    assert check.differences == ("transform coda, published pilot",)
    plain = one(REFERENCE, record(card={"transform": "none", "normalisation": "none"}))
    assert plain.protocols == "equal"


def test_another_order_seed_is_another_order() -> None:
    check = one(REFERENCE, record(order_seed=2))
    assert check.differences == ("class order natural, seed 2, published natural",)
    unrecorded = one(REFERENCE, record(card={"data": []}))
    assert unrecorded.differences == ("class order not recorded, published natural",)


def test_what_makes_a_run_no_match_for_any_figure_is_named() -> None:
    cut = ["class order: natural", "validation: 0.1 of the training images", "classes of each task: 91,1,8"]
    run = record(
        card={"weights_sha256": "random", "data": cut},
        variant="recipe.lora_rank=4, recipe.epochs=20, recipe.micro_batch=8",
    )
    stated = {**EVERYTHING, "validation": "0 of the training images", "classes of each task": "equal"}
    check = one(replace(REFERENCE, protocol=stated), run)
    assert set(check.differences) == {
        "weights random, published trained",
        "validation 0.1 of the training images, published 0 of the training images",
        "classes of each task 91,1,8, published equal",
        "recipe.lora_rank=4, otherwise than the suite",
    }
    plain = record(card={"data": [*cut[:1], "validation: 0 of the training images", "classes of each task: 10"]})
    assert one(replace(REFERENCE, protocol=stated), plain).protocols == "equal"


def test_the_first_of_codas_orders_is_the_natural_one() -> None:
    def against(published: str, **changes: Any) -> tuple[str, ...]:
        run = record(card={"data": ["class order: coda"]}, **changes)
        return one(replace(REFERENCE, protocol={**EVERYTHING, "class order": published}), run).differences

    assert against("natural") == against("coda") == ()
    assert against("seed1993") == ("class order coda, published seed1993",)
    assert against("natural", order_seed=1) == ("class order coda, seed 1, published natural",)


def test_a_figure_without_a_run_is_missing() -> None:
    check = one()
    assert (check.status, check.protocols, check.n, check.within) == ("missing", "unknown", 0, None)
    assert check.ours == Undefined("no run yet")
    assert one(REFERENCE, record(suite="another")).status == "missing"


def test_failed_and_stale_runs_say_so() -> None:
    failed = one(REFERENCE, record(status="failed", reason="no memory", scores=()))
    assert (failed.status, failed.ours) == ("failed", Undefined("no memory"))
    run = record()
    (stale,) = checks("exam", [REFERENCE], [run], stale=[run.key])
    assert (stale.status, stale.ours) == ("stale", 70.0)


def test_a_row_is_found_by_its_variant_whatever_its_recipe() -> None:
    plain, labelled = record(), record(variant="unmasked")
    shorter = record(variant="recipe.epochs=5", card={"epochs": 5})
    of_plain = checks("exam", [REFERENCE], [plain, labelled, shorter])
    assert sorted(check.differences for check in of_plain) == [(), ("epochs 5, published 20",)]
    of_labelled = one(replace(REFERENCE, variant="unmasked"), plain, labelled)
    assert (of_labelled.n, of_labelled.row) == (1, "plain (unmasked)")


def test_another_score_of_the_same_answers() -> None:
    other = {"lenient": ((None, None), (1.0, None), (0.3, 0.5))}
    asked = replace(REFERENCE, score="lenient")
    assert one(asked, record(other_scores=other)).ours == pytest.approx(40.0)
    assert one(replace(REFERENCE, score="accuracy"), record()).ours == pytest.approx(70.0)
    assert one(asked, record()).ours == Undefined("not marked 'lenient'")


def test_figures_of_other_backbones_may_be_left_out() -> None:
    other = replace(REFERENCE, protocol={"backbone": "vit-b16-dino"})
    unknown = replace(REFERENCE, protocol={})
    listed = [REFERENCE, other, unknown]
    assert len(checks("exam", listed, [record()])) == 3
    kept = checks("exam", listed, [record()], everything=False)
    assert [check.reference for check in kept] == [REFERENCE, unknown]
    assert len(checks("exam", listed, [], everything=False)) == 3
    assert len(checks("exam", [other], [record()], everything=False)) == 1
    assert [check.reference for check in only(checks("exam", listed, []), backbones=["vit-b16-dino"])] == [other]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadValue, match="no metric 'speed'"):
        one(replace(REFERENCE, metric="speed"))
    found = checks("exam", [REFERENCE], [])
    assert only(found, methods=["plain"]) == found
    with pytest.raises(UnknownName, match="Did you mean 'plain'"):
        only(found, methods=["plein"])
    with pytest.raises(UnknownName, match="backbone with a published figure"):
        only(found, backbones=["vit"])


HOSTILE = replace(
    REFERENCE,
    method="other",
    verified=False,
    note="read | <b>off</b>",
    protocol={**EVERYTHING, "epochs": 50},
    source="Recalled\x1b[31m",
)
SHOWN = checks("exam", [REFERENCE, HOSTILE, replace(REFERENCE, metric="train_seconds", tolerance=None)], [
    record(0.5, 0), record(0.52, 1), record(0.4, method="other")
])  # fmt: skip


def test_text() -> None:
    shown = verdicts.render(SHOWN, "text")
    words = [" ".join(line.split()) for line in shown.splitlines()]
    assert "plain avg_accuracy 70.50 ± 0.71 (2) 70.00 +0.50 within ±1.5 equal A paper, table 1" in words
    assert "other avg_accuracy 65.00 ± – (1) 70.00 ? -5.00 OUTSIDE ±1.5 differ [1] Recalled [31m" in words
    assert "1: epochs 20, published 50; read | <b>off</b>" in words
    assert "?: unverified: recalled, and never read in its source" in words
    assert any("not judged" in line and "2.00 s ± 0 s (2)" in line for line in words)
    assert words[-1] == (
        "1 of 2 judged figures lie within their tolerance, 1 of 1 where no difference of protocols is known; "
        "0 have no run of ours."
    )
    assert "\x1b" not in shown
    missing = verdicts.render(checks("exam", [REFERENCE], []), "text")
    assert "–" in missing
    assert "missing" in missing
    assert "1 have no run of ours." in missing


def test_csv_json_and_markdown() -> None:
    rows = list(csv.DictReader(io.StringIO(verdicts.render(SHOWN, "csv"))))
    assert (rows[0]["ours_mean"], rows[0]["published"], rows[0]["difference"]) == ("70.5", "70.0", "0.5")
    assert (rows[0]["within"], rows[0]["protocols"], rows[1]["verified"]) == ("True", "equal", "False")
    assert (rows[1]["differences"], rows[1]["ours_std"]) == ("epochs 20, published 50", "")
    assert rows[2]["tolerance"] == rows[2]["within"] == ""
    told = json.loads(verdicts.render(checks("exam", [REFERENCE], []), "json"))
    assert (told[0]["status"], told[0]["ours_mean"], told[0]["reason"]) == ("missing", None, "no run yet")
    table = verdicts.render(SHOWN, "markdown").splitlines()
    assert table[0].startswith("| Method | Figure | Ours (n) |")
    assert table[1].count("---:") == 3
    assert "* 1: epochs 20, published 50; read | <b>off</b>" in table
    with pytest.raises(UnknownName, match="no format called 'latex'"):
        verdicts.render(SHOWN, "latex")


def ask(store: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["verify", *words, "--store", str(store)])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one run on cifar100."""
    current = catalog.current_fingerprints()["treelora"]
    run = record(0.9, suite="cifar100", method="treelora", fingerprint=current)
    Store.create(tmp_path).publish(run, None)
    return tmp_path


def test_the_command_reads_a_store_and_leaves_other_backbones_out(store: Path) -> None:
    shown = ask(store, "cifar100", "--published", "--method", "treelora", "--all")
    assert shown.exit_code == 0, shown.output
    line = next(line for line in shown.output.splitlines() if line.startswith("treelora  ") and "88.54" in line)
    assert "90.00 ± – (1)" in line
    assert "within ±1.5" in line
    assert "differ [" in line
    assert "backbone vit-b16-in21k, published vit-b16-ibot21k" in shown.output
    few = ask(store, "cifar100", "--published", "--format", "json")
    assert "figures of backbones that were not run here are left out" in few.stderr
    assert {told["published_backbone"] for told in json.loads(few.stdout)} <= {"vit-b16-in21k", ""}


def test_the_command_shows_missing_runs_and_refuses_wrong_words(store: Path) -> None:
    missing = ask(store, "imagenet-r", "--format", "csv")
    assert missing.exit_code == 0
    assert {row["status"] for row in csv.DictReader(io.StringIO(missing.stdout))} == {"missing"}
    for words, sentence in {
        ("cifar10",): "no suite called 'cifar10'",
        ("quick",): "no published figure is listed for 'quick'",
        ("cifar100", "--format", "latex"): "no format called 'latex'",
        ("cifar100", "--method", "treelorra"): "Did you mean 'treelora'",
        ("cifar100", "--method", "ease", "--backbone", "vit-b16-ibot21k"): "no method with a published figure",
        ("cifar100", "--method", "ranpac", "--backbone", "vit-b16-ibot21k"): "none of these methods has",
    }.items():
        wrong = ask(store, *words)
        assert wrong.exit_code == 2
        assert sentence in wrong.stderr


def test_verifying_loads_no_torch(store: Path) -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom clbench.cli import app\n"
        f"done = CliRunner().invoke(app, ['verify', 'cifar100', '--published', '--store', {str(store)!r}])\n"
        "assert done.exit_code == 0, done.output\n"
        "assert not {'torch', 'timm', 'avalanche'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
