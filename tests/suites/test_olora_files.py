"""The O-LoRA benchmark's files: prompts word for word, labels, orders, and what is said of broken files."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.suites import _olora, _trace

LABELS = {"NLI": ["neutral", "entailment", "contradiction"], "SC": ["Good", "Bad"], "COPA": ["A", "B"]}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_task(base: Path, name: str, train: int = 30, test: int = 4) -> Path:
    group = _olora.TASKS[name][0]
    labels = LABELS.get(group, ["False", "True"])
    folder = base / group / name
    write(folder / "labels.json", labels)
    for part, count in (("train", train), ("test", test)):
        rows = [{"sentence": f"{name} {part} {i}: größer {{0}} 好 {{", "label": labels[i % 2]} for i in range(count)]
        write(folder / f"{part}.json", rows)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in _olora.TASKS:
        write_task(tmp_path / "CL_Benchmark", name)
    return tmp_path


@pytest.fixture
def mnli(data: Path) -> Path:
    return data / "CL_Benchmark" / "NLI" / "MNLI"


FOUR_A = ["MNLI", "CB", "WiC", "COPA", "QQP", "BoolQA", "RTE", "IMDB"]
FIVE_A = ["MultiRC", "BoolQA", "WiC", "MNLI", "CB", "COPA", "QQP", "RTE", "IMDB", "SST-2"]
SIX_A = ["yelp", "amazon", "MNLI", "CB", "COPA", "QQP", "RTE", "IMDB", "SST-2", "dbpedia"]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (1, ["dbpedia", "amazon", "yahoo", "agnews"]),
        (2, ["dbpedia", "amazon", "agnews", "yahoo"]),
        (3, ["yahoo", "amazon", "agnews", "dbpedia"]),
        (4, [*FOUR_A, "yelp", "amazon", "SST-2", "dbpedia", "agnews", "MultiRC", "yahoo"]),
        (5, [*FIVE_A, "dbpedia", "agnews", "yelp", "amazon", "yahoo"]),
        (6, [*SIX_A, "agnews", "yahoo", "MultiRC", "BoolQA", "WiC"]),
    ],
)
def test_the_published_orders(data: Path, order: int, names: list[str]) -> None:
    assert [task.name for task in _olora.read(data, order)] == names


def test_the_prompts_word_for_word(data: Path) -> None:
    prompts = {task.name: (task.test[0].prompt, task.test[1].answer) for task in _olora.read(data, 4)}
    assert prompts["MNLI"] == (
        'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the option.\n'
        "Option: neutral, entailment, contradiction \nMNLI test 0: größer {0} 好 {\nAnswer:",
        "entailment",
    )
    assert prompts["COPA"] == ("COPA test 0: größer {0} 好 {\nAnswer:", "B")
    assert prompts["IMDB"] == (
        "What is the sentiment of the following paragraph? Choose one from the option.\n"
        "Option: Good, Bad \nIMDB test 0: größer {0} 好 {\nAnswer:",
        "Bad",
    )
    beginnings = {
        "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning? '
        "Choose one from the option.\n",
        "agnews": "What is the topic of the following paragraph? Choose one from the option.\n",
        "BoolQA": "According to the following passage, is the question true or false? Choose one from the option.\n",
        "MultiRC": "According to the following passage and question, is the candidate answer true or false? "
        "Choose one from the option.\n",
        "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence? "
        "Choose one from the option.\n",
    }
    for name, beginning in beginnings.items():
        assert prompts[name][0] == f"{beginning}Option: False, True \n{name} test 0: größer {{0}} 好 {{\nAnswer:"


def test_every_prompt_has_the_ends_of_its_task(data: Path) -> None:
    for task in _olora.read(data, 6):
        assert (task.kind, task.cue, task.answer_tokens) == ("label", "\nAnswer:", 50)
        for row in task.train + task.validation + task.test:
            assert row.prompt.startswith(task.prefix)
            assert row.prompt.endswith(task.cue)
            assert "Task:" not in row.prompt


def test_validation_is_held_out_and_dev_json_is_not_read(data: Path, mnli: Path) -> None:
    (mnli / "dev.json").write_text("torn", encoding="utf-8")
    (task,) = _olora.read(data, 4, ["MNLI"])
    assert (len(task.train), len(task.validation), len(task.test)) == (27, 3, 4)
    assert not set(task.train) & set(task.validation)
    assert task.notes == (
        "The files hold 30/?/4 rows (train/validation/test), the published ones 3000/?/7600.",
        "Validation is 3 of the 30 training rows, held out with a fixed seed.",
    )


def test_rows_without_a_label_are_left_out_and_counted(data: Path, mnli: Path) -> None:
    for part in ("train", "test"):
        rows = json.loads((mnli / f"{part}.json").read_text(encoding="utf-8"))
        rows[0]["label"], rows[2]["label"] = "-", ""
        write(mnli / f"{part}.json", rows)
    (task,) = _olora.read(data, 4, ["MNLI"])
    assert (len(task.train) + len(task.validation), len(task.test)) == (28, 2)
    assert task.notes[1:3] == (
        "2 of 30 training rows have no label and were left out.",
        "2 of 4 test rows have no label and were left out.",
    )


def test_a_part_without_any_label_is_refused(data: Path, mnli: Path) -> None:
    rows = json.loads((mnli / "test.json").read_text(encoding="utf-8"))
    write(mnli / "test.json", [{**row, "label": "-"} for row in rows])
    with pytest.raises(BadValue, match="no test row of task 'MNLI' has an answer"):
        _olora.read(data, 4)


def test_a_label_that_is_no_option_is_named(data: Path, mnli: Path) -> None:
    rows = json.loads((mnli / "test.json").read_text(encoding="utf-8"))
    rows[1]["label"] = rows[3]["label"] = "Neutral"
    write(mnli / "test.json", rows)
    with pytest.raises(BadValue, match=r"MNLI/test.json', row 1 .*'Neutral' is not in labels.json \(neutral, .*1 more"):
        _olora.read(data, 4)


@pytest.mark.parametrize("labels", [{}, [], ["only"], ["twice", "twice"], ["a", 1], ["a", ""]])
def test_labels_that_are_no_options(data: Path, mnli: Path, labels: Any) -> None:
    write(mnli / "labels.json", labels)
    with pytest.raises(BadValue, match=r"MNLI/labels.json' (does not hold a list|holds)"):
        _olora.read(data, 4)


def test_all_missing_files_are_named_at_once(data: Path, mnli: Path) -> None:
    (mnli / "labels.json").unlink()
    (data / "CL_Benchmark" / "TC" / "yahoo" / "test.json").unlink()
    with pytest.raises(NotAvailable, match=r"missing NLI/MNLI/labels.json, TC/yahoo/test.json\. .*--from.*: CB, WiC,"):
        _olora.read(data, 4)
    assert [task.name for task in _olora.read(data / "CL_Benchmark", 4, ["RTE", "CB"])] == ["CB", "RTE"]


@pytest.mark.parametrize(("order", "tasks"), [(7, None), (1, ["MNLI"])])
def test_names_that_are_not_known(data: Path, order: int, tasks: list[str] | None) -> None:
    with pytest.raises(UnknownName, match=r"Known: (1, 2|agnews, amazon)"):
        _olora.read(data, order, tasks)


def test_rows_can_be_drawn(data: Path) -> None:
    (whole,) = _olora.read(data, 4, ["CB"])
    (task,) = _olora.read(data, 4, ["CB"], (10, 3))
    again = _olora.read(data, 5, ["CB"], (10, 3))[0]
    assert task == again
    assert [row for row in whole.train if row in task.train] == list(task.train)
    assert (len(task.train), len(task.test), task.validation) == (10, 3, whole.validation)
    assert task.notes[-2:] == (
        "10 of 27 training rows were drawn, with a fixed seed.",
        "3 of 4 test rows were drawn, with a fixed seed.",
    )
    assert _olora.read(data, 4, ["CB"], (27, 4))[0] == whole


@pytest.fixture
def both(data: Path) -> Path:
    """TRACE's eight tasks beside the fifteen, where BoolQA is large."""
    write_task(data / "CL_Benchmark", "BoolQA", train=600, test=120)
    for variant in ("500", "5000"):
        for name, shape in _trace.TASKS.items():
            rows = [{"prompt": f"{shape.prefix}{i}{shape.cue}", "answer": "1"} for i in range(30)]
            write(data / f"LLM-CL-Benchmark_{variant}" / name / "train.json", rows[:20])
            write(data / f"LLM-CL-Benchmark_{variant}" / name / "test.json", rows[20:])
    return data


AFTER = ["dbpedia", "amazon", "yahoo", "agnews", "yelp", "BoolQA", "QQP"]


def test_fifteen_tasks_begin_with_trace(both: Path) -> None:
    tasks = _olora.read_after_trace(both, both, "500")
    assert [task.name for task in tasks] == [*_trace.TASKS, *AFTER]
    assert {task.name: (len(task.train), len(task.test)) for task in tasks}["BoolQA"] == (500, 100)
    whole = _olora.read_after_trace(both, both, "5000", ["FOMC", "BoolQA"])
    assert [(task.name, len(task.train), len(task.test)) for task in whole] == [("FOMC", 18, 10), ("BoolQA", 540, 120)]
    assert [task.name for task in _olora.read_after_trace(both, both, "500", ["QQP"])] == ["QQP"]


def test_the_files_missing_from_both_are_named_at_once(both: Path) -> None:
    (both / "LLM-CL-Benchmark_500" / "FOMC" / "test.json").unlink()
    (both / "CL_Benchmark" / "QQP" / "QQP" / "train.json").unlink()
    with pytest.raises(NotAvailable, match=r"missing FOMC/test.json\. .*missing QQP/QQP/train.json\. "):
        _olora.read_after_trace(both, both, "500")
    with pytest.raises(UnknownName, match="no variant of TRACE called '50'"):
        _olora.read_after_trace(both, both, "50")


# ------------------------------------------------------------------------------------------------ the published files

WHOLE = {
    "MNLI": (2800, 200, 7469),
    "CB": (225, 25, 56),
    "WiC": (1800, 200, 638),
    "COPA": (360, 40, 100),
    "QQP": (1800, 200, 7600),
    "BoolQA": (1800, 200, 3270),
    "RTE": (1800, 200, 277),
    "amazon": (4800, 200, 7600),
    "SST-2": (1800, 200, 872),
    "agnews": (3800, 200, 7600),
}
"""The ten tasks of order 4 that have both files: training rows, those held out of them, test rows with a label."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CLBENCH_TEST_DATA does not name the folder that holds cl_benchmark.tar.xz")
    target = tmp_path_factory.mktemp("olora")
    with tarfile.open(Path(folder) / "cl_benchmark.tar.xz") as archive:
        archive.extractall(target, filter="data")
    return target


@pytest.mark.real_data
def test_the_ten_published_tasks(published: Path) -> None:
    tasks = _olora.read(published, 4, list(WHOLE))
    assert {task.name: (len(task.train), len(task.validation), len(task.test)) for task in tasks} == WHOLE
    notes = {task.name: task.notes for task in tasks}
    assert "131 of 7600 test rows have no label and were left out." in notes["MNLI"]
    assert not any("files hold" in note for said in notes.values() for note in said)
    assert {name for name, said in notes.items() if any("different prompts" in note for note in said)} <= {"RTE"}


@pytest.mark.real_data
def test_the_published_copy_says_what_it_lacks(published: Path) -> None:
    with pytest.raises(NotAvailable) as caught:
        _olora.read(published, 4)
    said = str(caught.value)
    missing = "SC/IMDB/test.json, SC/yelp/test.json, TC/dbpedia/train.json, MultiRC/MultiRC/test.json, "
    assert f"missing {missing}TC/yahoo/train.json, TC/yahoo/test.json. " in said
    assert said.endswith(f"can be chosen: {', '.join(WHOLE)}.")
