"""Imports from systems for language models, from files written here as those systems write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clbench.errors import ClbenchError, UnknownName
from clbench.imports.records import imported
from clbench.record import UNKNOWN, Record


def the(records: list[Record]) -> Record:
    (record,) = records
    return record


# TRACE


def trace(folder: Path, scores: dict[tuple[int, int], dict[str, Any]], names: tuple[str, ...]) -> Path:
    folder.mkdir()
    for (after, task), found in scores.items():
        content = {"eval": found, "prompts": ["?"] * 4, "results": ["A"] * 4, "labels": ["A"] * 4}
        (folder / f"results-{after}-{task}-{names[task]}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


NAMES = ("ScienceQA", "20Minuten", "Py150", "MeetingBank")
QA = {"bleu-1": 0.4, "rouge-L": 0.3, "accuracy": 0.75}
SARI = {"bleu-1": 0.1, "rouge-L": 0.2, "sari": [{"sari": 40.0}]}


def test_predictions_of_trace(tmp_path: Path) -> None:
    found: dict[tuple[int, int], dict[str, Any]] = {
        **{(after, 0): QA for after in range(4)},
        **{(after, 1): SARI for after in range(1, 4)},
        **{(after, 2): {"similarity": 55.0} for after in (2, 3)},
        (3, 3): {"bleu-1": 0.1, "rouge-L": 0.25},
    }
    path = trace(tmp_path / "predictions", found, NAMES)
    record = the(imported("trace", path, method="lora", seed=3))
    assert (record.suite, record.method, record.seed) == ("trace", "lora@trace", 3)
    assert record.tasks == NAMES
    assert record.scores[4] == (0.75, 0.4, 0.55, 0.25)
    assert record.scores[1] == (0.75, None, None, None)
    assert record.test_sizes == (4, 4, 4, 4)
    assert record.score_name == "accuracy / sari / similarity / rouge-L"
    assert record.notes["imported"]["scores"]["Py150"] == "similarity"


def test_rounds_that_were_not_inferred_stay_unmeasured(tmp_path: Path) -> None:
    path = trace(tmp_path / "p", {(1, 0): QA, (1, 1): SARI}, NAMES)
    assert the(imported("trace", path, method="m", seed=0)).scores == ((None, None), (None, None), (0.75, 0.4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"eval": {"accuracy": 0.5,\n"resu', "line 2: is torn or no JSON."),
        ('{"eval": {"F1": 0.5}}', "'eval' holds none of accuracy, sari, similarity, rouge-L."),
        ('{"eval": {"accuracy": 55.0}}', "accuracy is 55.0, no number from 0 to 1."),
        ('{"eval": {"accuracy": NaN}}', "accuracy is nan, no number from 0 to 1."),
        ("[]", "holds no JSON object."),
    ],
)
def test_a_malformed_file_of_trace_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = trace(tmp_path / "p", {(0, 0): QA, (1, 0): QA, (1, 1): SARI}, NAMES)
    (path / "results-1-0-ScienceQA.json").write_text(text, encoding="utf-8")
    with pytest.raises(ClbenchError) as error:
        imported("trace", path, method="m", seed=0)
    assert "results-1-0-ScienceQA.json'" in str(error.value)
    assert words in str(error.value)


def test_tasks_of_trace_that_do_not_fit(tmp_path: Path) -> None:
    path = trace(tmp_path / "p", {(0, 0): QA, (2, 2): QA}, NAMES)
    with pytest.raises(ClbenchError, match="holds no file of task 1"):
        imported("trace", path, method="m", seed=0)
    path = trace(tmp_path / "q", {(0, 0): QA, (1, 1): QA}, NAMES)
    (path / "results-1-0-Other.json").write_text('{"eval": {"accuracy": 1.0}}', encoding="utf-8")
    with pytest.raises(ClbenchError, match="task 0 is called 'Other' here and 'ScienceQA' in another file"):
        imported("trace", path, method="m", seed=0)


# O-LoRA


def outputs(folder: Path, *results: tuple[str, dict[str, float]], epoch: float = 1.0) -> Path:
    for number, (name, scores) in enumerate(results, 1):
        place = folder / "outputs" / f"{number}-{name}"
        place.mkdir(parents=True)
        told = {f"predict_exact_match_for_{task}": score for task, score in scores.items()}
        content = {"epoch": epoch, "predict_exact_match": 1.0, "train_runtime": 9.5, "train_samples": 7, **told}
        (place / "all_results.json").write_text(json.dumps(content, indent=4), encoding="utf-8")
    return folder


TWO = (
    ("dbpedia", {"TC": 98.0, "dbpedia": 98.0}),
    ("amazon", {"SC": 50.0, "TC": 96.0, "dbpedia": 96.0, "amazon": 50.0}),
)


def test_outputs_of_o_lora(tmp_path: Path) -> None:
    path = outputs(tmp_path / "order1", *TWO)
    lines = [{"Task": "TC", "Dataset": "dbpedia"}] * 3 + [{"Task": "SC", "Dataset": "amazon"}]
    kept = path / "predict_eval_predictions.jsonl"
    kept.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    record = the(imported("olora", path, method="olora", suite="order1", seed=0))
    assert (record.suite, record.method, record.score_name) == ("order1", "olora@olora", "exact match")
    assert record.tasks == ("dbpedia", "amazon")
    assert record.scores == ((None, None), (0.98, None), (0.96, 0.5))
    assert record.test_sizes == (3, 1)
    assert (record.protocol["epochs"], record.protocol["backbone"]) == (1, UNKNOWN)
    assert record.notes["imported"]["train_runtime"] == [9.5, 9.5]
    kept.write_text('{"Dataset": "dbpedia"}\n{"Dat', encoding="utf-8")
    with pytest.raises(ClbenchError, match=r"predictions\.jsonl', line 2: is torn"):
        imported("olora", path / "outputs", method="m", seed=0)


def test_outputs_of_o_lora_that_do_not_fit(tmp_path: Path) -> None:
    path = outputs(tmp_path / "a", *TWO, epoch=0.99)
    assert the(imported("olora", path / "outputs", method="m", seed=0)).protocol["epochs"] == UNKNOWN
    (path / "outputs" / "1-dbpedia" / "all_results.json").write_text('{\n"epoch": 1.0,\n', encoding="utf-8")
    with pytest.raises(ClbenchError, match=r"1-dbpedia/all_results\.json', line 3: is torn or no JSON"):
        imported("olora", path, method="m", seed=0)
    (path / "outputs" / "1-dbpedia").rename(path / "outputs" / "3-dbpedia")
    with pytest.raises(ClbenchError, match="holds folders of tasks 2, 3, where 1-NAME, 2-NAME"):
        imported("olora", path, method="m", seed=0)
    with pytest.raises(ClbenchError, match="nothing was predicted"):
        imported("olora", outputs(tmp_path / "b", ("dbpedia", {})), method="m", seed=0)


def test_what_the_files_do_not_tell_must_be_told(tmp_path: Path) -> None:
    path = outputs(tmp_path / "a", *TWO)
    with pytest.raises(ClbenchError, match="does not tell the method of its run; pass --method"):
        imported("olora", path, seed=0)
    with pytest.raises(ClbenchError, match="the seed of a is not told; pass --seed N"):
        imported("olora", path, method="m")
    with pytest.raises(ClbenchError, match="'a/b' cannot name a suite; pass --suite"):
        imported("olora", path, method="m", seed=0, suite="a/b")
    with pytest.raises(ClbenchError, match=r"there is no '.*nowhere'; name the file or folder"):
        imported("olora", tmp_path / "nowhere")
    with pytest.raises(UnknownName, match=r"no system called 'mamoth'\. Did you mean 'mammoth'"):
        imported("mamoth", path)
