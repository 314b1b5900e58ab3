"""TRACE's files: real formats in small, their oddities counted, and what is said of broken ones."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from clbench.errors import BadValue, ClbenchError, NotAvailable, UnknownName
from clbench.scoring.answers import KINDS
from clbench.suites import _trace
from clbench.text import Row, TextTask

BODIES = {
    "C-STANCE": ("疫苗很好，{我}支持。\n对象：\n疫苗{}号", "A"),
    "FOMC": ("Inflation {x} rises at 3 %.", "B"),
    "MeetingBank": ("Speaker 0: good {0} morning.", "A bill."),
    "Py150": ("<s> import os <EOL> x = { } <EOL> y =", "x [ '<STR_LIT>' ] "),
    "ScienceQA": ("Which?\n\nChoices:\nA. one\nB. two", "B\nBecause two."),
    "NumGLUE-cm": ("How many 1/2 of 4?", "2"),
    "NumGLUE-ds": ("3 + 4.5 = ?", "7.5"),
    "20Minuten": ("Die Bürgerin fährt über die Brücke – größer!", "Sie fährt."),
}


def rows(task: str, part: str, count: int) -> list[dict[str, str]]:
    """Rows in TRACE's form, each with a number of its own."""
    shape, (body, answer) = _trace.TASKS[task], BODIES[task]
    return [{"prompt": f"{shape.prefix}{body} {part}{i}{shape.cue}", "answer": answer} for i in range(count)]


def write(folder: Path, part: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """All eight tasks of `_500`, with 20 training, 3 validation and 4 test rows."""
    for task in _trace.TASKS:
        for part, count in (("train", 20), ("eval", 3), ("test", 4)):
            write(tmp_path / "LLM-CL-Benchmark_500" / task, part, rows(task, part, count))
    return tmp_path


@pytest.fixture
def fomc(data: Path) -> Path:
    return data / "LLM-CL-Benchmark_500" / "FOMC"


def read_fomc(fomc: Path) -> TextTask:
    return _trace.read(fomc.parent, "500", ["FOMC"])[0]


def body(prompt: str) -> str:
    return _trace.TASKS["FOMC"].prefix + prompt + _trace.TASKS["FOMC"].cue


def test_eight_tasks_in_the_official_order(data: Path) -> None:
    tasks = _trace.read(data, "500")
    assert [(task.name, task.kind, task.answer_tokens) for task in tasks] == [
        ("C-STANCE", "letter", 8),
        ("FOMC", "letter", 8),
        ("MeetingBank", "summary", 512),
        ("Py150", "code", 64),
        ("ScienceQA", "choice", 512),
        ("NumGLUE-cm", "number", 16),
        ("NumGLUE-ds", "number", 16),
        ("20Minuten", "simplification", 512),
    ]
    assert {(len(task.train), len(task.validation), len(task.test)) for task in tasks} == {(20, 3, 4)}
    assert {task.kind for task in tasks} <= set(KINDS)


def test_rows_are_the_files_to_the_character(data: Path) -> None:
    for task in _trace.read(data, "500"):
        assert [row._asdict() for row in task.test] == rows(task.name, "test", 4)
        assert all(row.prompt.startswith(task.prefix) and row.prompt.endswith(task.cue) for row in task.train)
    stance, python = _trace.read(data, "500", ["C-STANCE", "Py150"])
    assert "\n对象：\n疫苗{}号" in stance.train[0].prompt[len(stance.prefix) : -len(stance.cue)]
    assert python.train[0].prompt.startswith("<s> import os <EOL>")
    assert python.train[0].answer.endswith(" ")


def test_a_choice_of_tasks_keeps_the_order_and_needs_no_other_file(data: Path) -> None:
    (data / "LLM-CL-Benchmark_500" / "MeetingBank" / "train.json").unlink()
    assert [task.name for task in _trace.read(data, "500", ["20Minuten", "FOMC"])] == ["FOMC", "20Minuten"]


def test_all_missing_files_are_named_at_once(data: Path) -> None:
    base = data / "LLM-CL-Benchmark_500"
    for name in ("MeetingBank/train", "Py150/test", "20Minuten/eval"):
        (base / f"{name}.json").unlink()
    with pytest.raises(NotAvailable) as caught:
        _trace.read(data, "500")
    said = str(caught.value)
    assert f"'{base}': missing MeetingBank/train.json, Py150/test.json. " in said
    assert "--from" in said
    assert "$CLBENCH_DATA" in said
    assert said.endswith("can be chosen: C-STANCE, FOMC, ScienceQA, NumGLUE-cm, NumGLUE-ds, 20Minuten.")


def test_a_folder_that_is_not_there_lacks_every_file(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable) as caught:
        _trace.read(tmp_path / "nowhere", "5000")
    assert str(caught.value).count(".json") == 16
    assert "can be chosen" not in str(caught.value)


@pytest.mark.parametrize("arguments", [("50",), ("500", ["FOMO"]), ("500", [])])
def test_names_that_are_not_known(data: Path, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((UnknownName, BadValue), match=r"FOMC|5000"):
        _trace.read(data, *arguments)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"prompt": "a", "answer"', "is not whole JSON"),
        ("", "is not whole JSON"),
        ("{}", "holds an object; needed is a list"),
        ("[]", "holds an empty list"),
        ('[{"prompt": "a", "answer": "b"}, ["a"]]', r"row 1 \(counted from 0\): is a list, not an object"),
        ('[{"prompt": "a"}, null]', r"row 0 .*: has no 'answer', only 'prompt'; 1 more malformed"),
        ('[{"prompt": "a", "answer": 5}]', "row 0 .*: 'answer' is a number, not a string"),
        (r'[{"prompt": "\ud83d", "answer": "b"}]', "row 0 .*: 'prompt' holds half a surrogate pair"),
    ],
)
def test_a_broken_file_is_named(fomc: Path, content: str, words: str) -> None:
    (fomc / "train.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadValue, match=f"FOMC/train.json'.*{words}"):
        read_fomc(fomc)


def test_utf_8_is_told_from_other_encodings(fomc: Path) -> None:
    text = json.dumps(rows("FOMC", "train", 20))
    (fomc / "train.json").write_bytes(text.encode("utf-8-sig"))
    assert len(read_fomc(fomc).train) == 20
    (fomc / "train.json").write_bytes(text.replace("rises", "fällt").encode("latin-1"))
    with pytest.raises(BadValue, match=r"train.json' is not UTF-8 \(byte \d+\)"):
        read_fomc(fomc)


def test_other_sizes_than_the_published_are_noted(fomc: Path) -> None:
    expected = "The files hold 20/3/4 rows (train/validation/test), the published ones 500/100/100."
    assert read_fomc(fomc).notes == (expected,)
    for part, count in (("train", 500), ("eval", 100), ("test", 100)):
        write(fomc, part, rows("FOMC", part, count))
    assert read_fomc(fomc).notes == ()


def test_repeated_prompts_and_overlaps_are_counted_and_kept(fomc: Path) -> None:
    test = rows("FOMC", "test", 4)
    train = rows("FOMC", "train", 5)
    write(fomc, "train", [*train, *train, test[1], test[1]])
    write(fomc, "test", [*test, test[1]])
    task = read_fomc(fomc)
    assert task.notes[1:] == (
        "The 12 training rows hold 6 different prompts.",
        "The 5 test rows hold 4 different prompts.",
        "2 of 5 test rows (different prompts: 1) ask what a training row asks; both stay.",
    )


def test_an_empty_answer_is_not_learned_but_scored(fomc: Path) -> None:
    for part in ("train", "eval", "test"):
        content = rows("FOMC", part, 4)
        content[1]["answer"], content[2]["answer"] = "", " \n"
        write(fomc, part, content)
    task = read_fomc(fomc)
    assert (len(task.train), len(task.validation), len(task.test)) == (2, 4, 4)
    assert task.notes[1:] == (
        "2 of 4 training rows have no answer and were left out.",
        "2 of 4 test rows have no answer; they are asked and scored all the same.",
    )


def test_an_empty_body_is_counted_and_kept(fomc: Path) -> None:
    write(fomc, "train", [*rows("FOMC", "train", 4), {"prompt": body(" "), "answer": "A"}])
    task = read_fomc(fomc)
    assert len(task.train) == 5
    assert task.notes[1:] == (
        "1/0/0 rows (train/validation/test) have nothing between instruction and cue; they stay.",
    )


def test_validation_holds_no_test_prompt(fomc: Path) -> None:
    write(fomc, "eval", [*rows("FOMC", "eval", 3), rows("FOMC", "test", 1)[0]])
    task = read_fomc(fomc)
    assert len(task.validation) == 3
    assert task.notes[1:] == ("1 of 4 validation rows ask what a test row asks and were left out.",)


def test_where_validation_is_the_test_set_training_rows_are_held_out(fomc: Path) -> None:
    write(fomc, "eval", rows("FOMC", "test", 4)[::-1])
    task = read_fomc(fomc)
    assert (len(task.train), len(task.validation)) == (18, 2)
    assert task.notes[1:] == (
        "4 of 4 validation rows ask what a test row asks and were left out.",
        "Validation is 2 of the 20 training rows, held out with a fixed seed.",
    )


def test_held_out_rows_are_whole_prompts_and_the_same_each_time(fomc: Path) -> None:
    (fomc / "eval.json").unlink()
    content = [row for row in rows("FOMC", "train", 10) for _ in range(3)] + rows("FOMC", "test", 2)
    write(fomc, "train", content)
    task = read_fomc(fomc)
    held = {row.prompt for row in task.validation}
    assert len(task.validation) == 3
    assert not held & {row.prompt for row in (*task.train, *task.test)}
    assert sorted(task.train + task.validation) == sorted(Row(**row) for row in content)
    assert "There is no eval.json." in task.notes
    write(fomc, "train", content[::-1])
    assert {row.prompt for row in read_fomc(fomc).validation} == held


def test_too_few_prompts_to_hold_any_out(fomc: Path) -> None:
    (fomc / "eval.json").unlink()
    write(fomc, "train", rows("FOMC", "train", 1) * 5)
    with pytest.raises(BadValue, match="'FOMC' has too few different training prompts"):
        read_fomc(fomc)


def test_a_prompt_without_the_published_cue_shortens_it_for_all(fomc: Path) -> None:
    content = rows("FOMC", "train", 4)
    content[2]["prompt"] = content[2]["prompt"].replace("\nStance:", " Stance:")
    write(fomc, "train", content)
    task = read_fomc(fomc)
    assert (task.prefix, task.cue) == (_trace.TASKS["FOMC"].prefix, "Stance:")
    assert task.notes[1:] == ("Prompts without the published instruction or cue: 1, first train.json row 2.",)


# ------------------------------------------------------------------------------------------------ folders of one's own


def own(folder: Path, answers: list[str], card: Any = None) -> Path:
    content = [{"prompt": f"Do {{it}}.\nText:\nThe {i}th?\nGo:", "answer": answer} for i, answer in enumerate(answers)]
    for part, offset in (("train", 0), ("test", 1)):
        write(folder, part, [{**row, "prompt": row["prompt"].replace("th", f"th{offset}")} for row in content])
    if card is not None:
        write(folder, "task", card)
    return folder


@pytest.mark.parametrize(
    ("answers", "kind", "tokens"),
    [
        (list("ABAB"), "letter", 8),
        (["1", "-2.5", "3,000", ""], "number", 16),
        (["A\nfor one", "B\nfor two\nand more"], "choice", 512),
        (["positive", "negative"] * 5, "label", 50),
    ],
)
def test_answers_that_leave_no_doubt(tmp_path: Path, answers: list[str], kind: str, tokens: int) -> None:
    own(tmp_path / "mine", answers)
    (task,) = _trace.read_folder(tmp_path)
    assert (task.name, task.kind, task.answer_tokens) == ("mine", kind, tokens)
    assert (task.prefix, task.cue) == ("Do {it}.\nText:\n", "\nGo:")
    assert task.notes[0] == f"Scored as '{kind}', which its answers look like."


@pytest.mark.parametrize("answers", [["a summary", "another one"], ["A", "b"], ["yes\nno"] * 10])
def test_answers_in_doubt_are_asked_for(tmp_path: Path, answers: list[str]) -> None:
    own(tmp_path / "mine", answers)
    with pytest.raises(BadValue, match=r"do not show how .* write '.*mine/task.json' with .*kind.* one of .*summary"):
        _trace.read_folder(tmp_path)


def test_a_card_overrides_the_guess(tmp_path: Path) -> None:
    own(tmp_path / "mine", list("ABAB"), {"kind": "code", "prefix": "Do ", "cue": "", "answer_tokens": 3})
    (task,) = _trace.read_folder(tmp_path)
    assert (task.kind, task.prefix, task.cue, task.answer_tokens) == ("code", "Do ", "", 3)
    assert not any("look like" in note for note in task.notes)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"kind": "sumary"}, "Did you mean 'summary'"),
        ({"kind": 3}, r"task.json': kind: .* that may hold kind, prefix, cue, answer_tokens"),
        ({"answer_tokens": 0}, r"task.json': answer_tokens: "),
        ({"colour": "red"}, r"task.json': colour: "),
        ([], r"task.json': the file: "),
        ({"prefix": "Don't"}, r"8 prompts in '.*mine', first train.json row 0, do not begin with \"Don't\""),
    ],
)
def test_a_card_with_a_mistake(tmp_path: Path, card: Any, words: str) -> None:
    own(tmp_path / "mine", list("ABAB"), card)
    with pytest.raises(ClbenchError, match=words):
        _trace.read_folder(tmp_path)


def test_which_folders_are_tasks_and_in_which_order(data: Path) -> None:
    base = data / "LLM-CL-Benchmark_500"
    own(base / "another", list("ABAB"))
    for name in ("Lima", ".git", "__MACOSX"):
        (base / name).mkdir()
    assert [task.name for task in _trace.read_folder(base)] == [*_trace.TASKS, "another"]
    assert _trace.read_folder(base)[1].notes == ()
    assert [task.name for task in _trace.read_folder(base, ["another", "FOMC"])] == ["another", "FOMC"]


def test_half_a_folder_is_not_taken_for_whole(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="no task in"):
        _trace.read_folder(tmp_path / "nowhere")
    own(tmp_path / "mine", list("ABAB"))
    (tmp_path / "theirs").mkdir()
    with pytest.raises(NotAvailable, match=r"missing theirs/train.json, theirs/test.json\..*chosen: mine\."):
        _trace.read_folder(tmp_path)


# ------------------------------------------------------------------------------------------------ the published files


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("CLBENCH_TEST_DATA")
    if not folder:
        pytest.skip("CLBENCH_TEST_DATA does not name the folder that holds trace.tar.xz")
    target = tmp_path_factory.mktemp("trace")
    with tarfile.open(Path(folder) / "trace.tar.xz") as archive:
        archive.extractall(target, filter="data")
    return target / "trace"


@pytest.mark.real_data
def test_the_published_500_lacks_one_file_and_says_so(published: Path) -> None:
    with pytest.raises(NotAvailable, match=r"missing MeetingBank/train.json\. "):
        _trace.read(published, "500")


@pytest.mark.real_data
def test_the_published_500(published: Path) -> None:
    tasks = _trace.read(published, "500", [name for name in _trace.TASKS if name != "MeetingBank"])
    assert [(task.name, len(task.train), len(task.validation), len(task.test)) for task in tasks] == [
        ("C-STANCE", 500, 100, 100),
        ("FOMC", 500, 84, 100),
        ("Py150", 500, 100, 100),
        ("ScienceQA", 500, 100, 100),
        ("NumGLUE-cm", 500, 41, 81),
        ("NumGLUE-ds", 500, 100, 100),
        ("20Minuten", 500, 100, 100),
    ]
    assert {task.name: task.notes for task in tasks if task.notes} == {
        "FOMC": (
            "16 of 100 validation rows ask what a test row asks and were left out.",
            "The 500 training rows hold 496 different prompts.",
            "1 of 100 test rows (different prompts: 1) ask what a training row asks; both stay.",
        ),
        "Py150": (
            "The 500 training rows hold 482 different prompts.",
            "The 100 test rows hold 96 different prompts.",
            "5 of 100 test rows (different prompts: 3) ask what a training row asks; both stay.",
        ),
        "NumGLUE-cm": ("The 500 training rows hold 256 different prompts.",),
        "NumGLUE-ds": (
            "The 500 training rows hold 490 different prompts.",
            "6 of 100 test rows (different prompts: 6) ask what a training row asks; both stay.",
        ),
    }


@pytest.mark.real_data
def test_the_published_5000(published: Path) -> None:
    tasks = _trace.read(published, "5000", ["C-STANCE", "FOMC", "NumGLUE-cm", "NumGLUE-ds"])
    stance, policy, cm, ds = tasks
    assert [(len(task.train), len(task.validation), len(task.test)) for task in (stance, cm, ds)] == [
        (5000, 2000, 2000),
        (5000, 41, 81),
        (5000, 162, 325),
    ]
    assert stance.notes == ()
    assert cm.notes == ("The 5000 training rows hold 282 different prompts.",)
    assert ds.notes == (
        "2 of 164 validation rows ask what a test row asks and were left out.",
        "The 5000 training rows hold 1069 different prompts.",
        "The 325 test rows hold 321 different prompts.",
        "34 of 325 test rows (different prompts: 32) ask what a training row asks; both stay.",
    )
    rest = len(policy.validation)
    assert 200 <= rest < 220
    assert (len(policy.train), len(policy.test)) == (5000 - rest, 496)
    assert len({row.prompt for row in policy.train + policy.validation}) == 1915
    assert policy.notes[0] == "496 of 496 validation rows ask what a test row asks and were left out."
    assert policy.notes[-1] == "16 of 496 test rows (different prompts: 16) ask what a training row asks; both stay."


@pytest.mark.real_data
def test_the_published_prompts_have_the_ends_that_the_table_says(published: Path) -> None:
    """Also MeetingBank's, whose training file is missing."""
    for name, shape in _trace.TASKS.items():
        assert _trace._misfits(shape, _trace._parts(published / "LLM-CL-Benchmark_500" / name)) == []
