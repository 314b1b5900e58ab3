"""Imports from systems for images, and of any: from files written here as those systems write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from clbench.arrange import only
from clbench.cli import app
from clbench.errors import ClbenchError
from clbench.imports import SYSTEMS
from clbench.imports.records import imported
from clbench.metrics import Undefined, average_accuracy
from clbench.record import UNKNOWN, Record
from clbench.report import page
from clbench.row import Row
from clbench.significance import contests
from clbench.store import Store
from clbench.table import exams, make_tables


def the(records: list[Record]) -> Record:
    (record,) = records
    return record


# mammoth

ARGUMENTS = {
    "dataset": "seq-cifar100-224", "model": "er", "backbone": "vit", "lr": 0.03, "batch_size": 32, "n_epochs": 1,
    "fitting_mode": "epochs", "buffer_size": 200, "minibatch_size": 16, "joint": 0, "permute_classes": 0, "seed": 0,
    "validation": None, "conf_jobnum": "some-uuid", "conf_timestamp": "2026-01-02 03:04:05.678", "notes": None,
}  # fmt: skip
ACCURACIES = {"accuracy_1_task1": 90.0, "accuracy_1_task2": 60.0, "accuracy_2_task2": 80.0}
MEANS = {"accmean_task1": 90.0, "accmean_task2": 70.0}
LOGGED = {"cpu_memory_usage": [], "forward_transfer": None, "backward_transfer": -30.0, "forgetting": 30.0}


def log(folder: Path, *lines: str | dict[str, Any], setting: str = "class-il") -> Path:
    path = folder / "results" / setting / "seq-cifar100-224" / "er" / "logs.pyd"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def mammoth(**changes: Any) -> dict[str, Any]:
    return {**ARGUMENTS, **MEANS, **ACCURACIES, **LOGGED, **changes}


def test_a_line_of_mammoth(tmp_path: Path) -> None:
    record = the(imported("mammoth", log(tmp_path, mammoth())))
    assert (record.suite, record.method, record.seed, record.system) == ("seq-cifar100-224", "er@mammoth", 0, "mammoth")
    assert record.scores == ((None, None), (0.9, None), (0.6, 0.8))
    assert record.tasks == ("task 1", "task 2")
    assert record.test_sizes == record.costs == ()
    known = {"system": "mammoth", "setting": "class-il", "backbone": "vit", "epochs": 1, "batch_size": 32, "tasks": 2}
    assert known.items() <= record.protocol.items()
    assert record.protocol["buffer_samples"] == 200
    assert record.protocol["task_id_at_test"] is False
    unknown = {name for name, value in record.protocol.items() if value == UNKNOWN}
    assert unknown == {
        "stream_sha256",
        "weights_sha256",
        "transform",
        "normalisation",
        "head_masking",
        "class_statistics",
    }
    assert (record.origin.device_kind, record.origin.threads, record.origin.versions) == (UNKNOWN, 0, {})
    assert record.params == {k: ARGUMENTS[k] for k in ARGUMENTS if k not in ("seed", "notes") and "conf" not in k}
    assert record.marks[0].startswith("imported from mammoth; epochs 1, batch_size 32, schedule sequential")


def test_numbers_as_numpy_writes_them_and_what_is_no_literal(tmp_path: Path) -> None:
    line = (
        str(mammoth(device="cuda"))
        .replace("90.0", "np.float64(90.0)")
        .replace("'cuda'", "device(type='cuda', index=0)")
    )
    record = the(imported("mammoth", log(tmp_path, line.replace("0.03", "__import__('os').getcwd()"))))
    assert record.scores[1] == (0.9, None)
    assert record.params["lr"] == UNKNOWN


def test_settings_of_mammoth_stand_in_tables_of_their_own(tmp_path: Path) -> None:
    log(tmp_path, mammoth())
    log(tmp_path, mammoth(accuracy_1_task2=85.0), setting="task-il")
    records = imported("mammoth", tmp_path)
    assert [record.protocol["task_id_at_test"] for record in records] == [False, True]
    assert [made.differs for made in make_tables(records)] in (
        ["imported from mammoth, class-il", "imported from mammoth, task-il"],
        ["imported from mammoth, task-il", "imported from mammoth, class-il"],
    )


def test_seeds_are_averaged_and_configurations_are_not(tmp_path: Path) -> None:
    more = mammoth(buffer_size=500)
    records = imported("mammoth", log(tmp_path, mammoth(), mammoth(seed=1, accuracy_2_task2=82.0), more))
    assert [record.variant for record in records] == ["buffer_size=200", "buffer_size=200", "buffer_size=500"]
    (made,) = make_tables(records)
    assert sorted((row.label, row.n_seeds) for row in made.rows) == [
        ("er@mammoth (buffer_size=200)", 2),
        ("er@mammoth (buffer_size=500)", 1),
    ]


def test_means_alone_give_an_average_and_no_forgetting(tmp_path: Path) -> None:
    alone = {k: v for k, v in mammoth().items() if k not in ACCURACIES}
    (made,) = make_tables(imported("mammoth", log(tmp_path, alone, setting="domain-il")))
    (row,) = made.rows
    assert row.avg_accuracy_mean == pytest.approx(70)
    assert row.avg_incremental_accuracy_mean == pytest.approx(80)
    assert isinstance(row.forgetting_mean, Undefined)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{'model': 'er', 'accura", "line 2: is torn or no Python dict."),
        ("[1, 2]", "line 2: is no Python dict whose keys are words."),
        ("{**os.environ}", "line 2: is no Python dict whose keys are words."),
        ({**ARGUMENTS}, "line 2: holds neither accuracy_J_taskI nor accmean_taskI"),
        (mammoth(accuracy_2_task2="high"), "line 2: accuracy_2_task2 is 'high', no number from 0 to 100."),
        (mammoth(accuracy_2_task2=180.0), "line 2: accuracy_2_task2 is 180.0, no number from 0 to 100."),
        (mammoth(accuracy_1_task3=50.0, accuracy_2_task3=50.0), "line 2: holds accuracies of 2 tasks after task 3;"),
        (mammoth(accmean_task4=1.0), "line 2: lacks a mean: there are accmean_task 1, 2, 4."),
    ],
)  # fmt: skip
def test_a_malformed_line_of_mammoth_is_named(tmp_path: Path, line: str | dict[str, Any], words: str) -> None:
    path = log(tmp_path, mammoth(), line)
    with pytest.raises(ClbenchError) as error:
        imported("mammoth", path)
    assert str(error.value).startswith(f"'{path}', ")
    assert words in str(error.value)


# PILOT

SETTINGS = {
    "config": "./exps/l2p.json", "prefix": "reproduce", "dataset": "cifar224", "memory_size": 0, "memory_per_class": 0,
    "fixed_memory": False, "shuffle": True, "init_cls": 10, "increment": 10, "model_name": "l2p",
    "backbone_type": "vit_base_patch16_224", "device": "[device(type='cuda', index=0)]", "seed": 1993, "batch_size": 16,
}  # fmt: skip


def pilot(path: Path, *runs: dict[str, Any], matrix: bool = True, whole: bool = True) -> Path:
    said = []
    for changes in runs:
        said += [f"{name}: {value}" for name, value in {**SETTINGS, **changes}.items()]
        said += ["All params: 85810000", "Trainable params: 122980", "No NME accuracy."]
        said += ["CNN: {'total': np.float64(98.0), '00-09': 98.0, 'old': 0, 'new': 98.0}"] * matrix
        said += ["CNN top1 curve: [np.float64(98.0)]", "CNN top5 curve: [99.9]", ""]
        said += ["CNN: {'total': 91.0, '00-09': 90.0, '10-19': 92.0, 'old': 90.0, 'new': 92.0}"] * matrix
        said += ["CNN top1 curve: [98.0, 91.0]", "CNN top5 curve: [99.9, 99.0]", "Average Accuracy (CNN): 94.5 "]
        said += ["Forgetting (CNN): 8.0"] * whole
    head = "2026-03-04 05:06:07,089 [trainer.py] => "
    noise = ["2026-03-04 05:06:07,089 [l2p.py] => Learning on 0-10", "a line of another program"]
    path.write_text("\n".join([*noise, *(head + line for line in said)]), encoding="utf-8")
    return path


def test_a_log_of_pilot(tmp_path: Path) -> None:
    record = the(imported("pilot", pilot(tmp_path / "a.log", {})))
    assert (record.suite, record.method, record.seed, record.order_seed) == ("cifar224", "l2p@pilot", 1993, 1993)
    assert record.tasks == ("00-09", "10-19")
    assert record.scores == ((None, None), (0.98, None), (0.9, 0.92))
    assert record.stated == {"pooled": (0.98, 0.91)}
    assert record.protocol["stream"] == "cifar224, 10 classes first, 10 classes a task"
    assert (record.protocol["buffer_samples"], record.protocol["epochs"]) == (0, UNKNOWN)
    assert len(record.marks) == 1
    (row,) = make_tables([record])[0].rows
    assert (row.avg_accuracy_mean, row.avg_accuracy_pooled_mean) == (pytest.approx(91), pytest.approx(91))
    assert row.forgetting_mean == pytest.approx(8)


def test_several_runs_share_a_log_of_pilot(tmp_path: Path) -> None:
    path = pilot(tmp_path / "a.log", {"shuffle": False}, {"shuffle": False, "seed": 7})
    records = imported("pilot", path)
    assert [record.seed for record in records] == [1993, 7]
    assert {record.order_seed for record in records} == {0}
    (row,) = make_tables(records)[0].rows
    assert row.n_seeds == 2


def test_a_curve_alone_is_no_average_over_tasks(tmp_path: Path) -> None:
    record = the(imported("pilot", pilot(tmp_path / "a.log", {}, matrix=False, whole=False)))
    assert record.marks[1].startswith("the log ends without 'Forgetting (CNN)'")
    (row,) = make_tables([record])[0].rows
    assert row.avg_accuracy_mean == Undefined("no score of each task; over all samples 91.00 %")
    assert row.avg_accuracy_pooled_mean == pytest.approx(91)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("CNN: {'total': 9", "line 1: is torn or no Python dict."),
        ("CNN: {'total': 9.0, '00-09': 9.0, '10-19': 9.0}", "line 1: holds 2 groups of classes after task 1."),
        ("CNN: {'total': 9.0, '00-09': 900}", "line 1: 00-09 is 900, no number from 0 to 100."),
        ("CNN top1 curve: [1.0, 2.0]", "line 1: is no curve of 1 accuracies."),
    ],
)
def test_a_malformed_line_of_pilot_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = pilot(tmp_path / "a.log", {})
    lines = path.read_text(encoding="utf-8").splitlines()
    place = next(i for i, text in enumerate(lines) if "=> CNN" in text and text.partition("=> ")[2][:7] == line[:7])
    lines[place] = f"2026-03-04 05:06:07,089 [trainer.py] => {line}"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ClbenchError) as error:
        imported("pilot", path)
    assert words.replace("line 1", f"line {place + 1}") in str(error.value)


def test_results_without_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("2026-03-04 05:06:07,089 [trainer.py] => CNN top1 curve: [1.0]\n", encoding="utf-8")
    with pytest.raises(ClbenchError, match="line 1: holds results before the settings of their run"):
        imported("pilot", path)
    path.write_text("nothing of it\n", encoding="utf-8")
    with pytest.raises(ClbenchError, match="holds no 'CNN top1 curve' of PILOT"):
        imported("pilot", path)


# what all have in common


def test_seeds_are_told_where_files_are_silent(tmp_path: Path) -> None:
    path = log(tmp_path, mammoth(seed=None))
    assert the(imported("mammoth", path, seed=5)).seed == 5
    path.write_text(f"{mammoth(seed=None)}\n{mammoth(seed=None)}\n", encoding="utf-8")
    with pytest.raises(ClbenchError, match=r"line 1, logs\.pyd, line 2 tells its seed"):
        imported("mammoth", path, seed=5)
    path.write_text(f"{mammoth()}\n", encoding="utf-8")
    with pytest.raises(ClbenchError, match="line 1 tells that the seed was 0; leave --seed 5 out"):
        imported("mammoth", path, seed=5)


def ours() -> Record:
    return Record.example(suite="digits", method="er", key="ours")


def test_imported_runs_never_share_a_table_with_ours(tmp_path: Path) -> None:
    record = the(imported("mammoth", log(tmp_path, mammoth()), suite="digits"))
    first, second = make_tables([record, ours()])
    assert [[row.label for row in made.rows] for made in (first, second)] == [["er"], ["er@mammoth"]]
    assert (first.differs, second.differs) == ("", "imported from mammoth, class-il")
    row: Row = second.rows[0]
    assert row.train_seconds_mean == Undefined("no costs recorded")
    assert dict(second.footnotes)[row.marks[0]] == record.marks[0]
    assert [contest.rows for contest in contests([record, ours()], (), lambda _: None)] == [("er",)]
    assert only([first, second], methods=["er@mammoth"])[0].rows == second.rows


def test_an_imported_run_goes_on_a_page(tmp_path: Path) -> None:
    records = imported("mammoth", log(tmp_path, mammoth()))
    (made,), (groups,) = make_tables(records), exams(records).values()
    first, *_ = page.write([page.Section(made, tuple(groups), {})], tmp_path / "page", [], False)
    text = first.read_text(encoding="utf-8")
    assert "er@mammoth" in text
    assert "imported from mammoth" in text


def test_every_system_can_be_asked_for() -> None:
    said = CliRunner().invoke(app, ["import", "--help"]).stdout
    assert all(system in said for system in SYSTEMS)


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_keeps_marked_records_and_is_safe_to_repeat(tmp_path: Path) -> None:
    path, store = log(tmp_path, mammoth(), mammoth(seed=1)), tmp_path / "store"
    for _ in range(2):
        done = ask("import", "mammoth", path, "--suite", "digits", "--method", "mine", "--store", store)
        assert done.exit_code == 0, done.output
        assert "2 runs imported; see 'clbench table digits'." in done.stderr
    records = Store(store).load("digits").records
    assert [(record.method, record.seed) for record in sorted(records, key=lambda r: r.seed)] == [
        ("mine@mammoth", 0),
        ("mine@mammoth", 1),
    ]
    assert average_accuracy(records[0].scores) == pytest.approx(0.7)
    shown = ask("table", "digits", "--store", store).stdout
    assert "mine@mammoth [a]" in shown
    assert "a: imported from mammoth; epochs 1" in shown
    runs = json.loads(ask("list", "runs", "--format", "json", "--store", store).stdout)
    assert [run["train_seconds"] for run in runs] == [None, None]


def test_nothing_is_kept_of_a_file_that_is_malformed(tmp_path: Path) -> None:
    path, store = log(tmp_path, mammoth(), "torn {"), tmp_path / "store"
    done = ask("import", "mammoth", path, "--store", store)
    assert done.exit_code == 2
    assert done.stderr == f"clbench: '{path}', line 2: is torn or no Python dict.\n"
    assert not store.exists()
