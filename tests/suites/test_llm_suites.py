"""The suites of text: what they are taught by, whose files they read, and what their cards say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clbench import catalog, plan
from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.suite import Files, Suite
from clbench.suites import _olora, _trace

TEXT = [name for name in catalog.suites() if name.startswith(("trace", "olora"))]


def write(folder: Path, answers: str = "AB", rows: int = 20) -> None:
    """A task of one's own: letters, told by the question."""
    folder.mkdir(parents=True)
    for part, count in (("train", rows), ("eval", 4), ("test", 6)):
        said = [{"prompt": f"Which?\n{part}{i}\nAnswer:", "answer": answers[i % len(answers)]} for i in range(count)]
        (folder / f"{part}.json").write_text(json.dumps(said), encoding="utf-8")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        write(tmp_path / "mine" / name)
    return tmp_path / "mine"


def test_all_are_listed() -> None:
    orders = [f"olora-order{order}" for order in _olora.ORDERS]
    assert set(TEXT) == {"trace", "trace-500", "trace-15", "trace-compat", "trace-500-compat", "trace-tiny", *orders}


@pytest.mark.parametrize("name", TEXT)
def test_every_row_can_be_built(name: str) -> None:
    suite = catalog.suite(name)
    rows = catalog.rows(suite, [], {})
    assert len(rows) == len(suite.contenders)
    for row in rows:
        assert row.recipe is not None
        assert len(row.recipe.task_epochs) in (0, len(suite.recipe.task_epochs))


def test_defaults_meant_for_images_are_others_on_text() -> None:
    rows = {row.method.name: row.method for row in catalog.rows(catalog.suite("trace"), ["inflora", "sd-lora"], {})}
    assert rows["inflora"].model_dump()["projections"] == ("q", "v")
    assert rows["sd-lora"].model_dump()["magnitude_rate"] == 10


@pytest.mark.parametrize(
    ("name", "rows"),
    [("trace", 4000), ("trace-500", 400), ("trace-15", 750), ("olora-order1", 3300), ("olora-order4", 5565)],
)
def test_traces_replay_may_keep_the_tenth_of_every_task(name: str, rows: int) -> None:
    kept = [
        dict(one.settings).get("buffer_samples") for one in catalog.suite(name).contenders if one.method == "replay"
    ]
    assert kept == [None, rows]


def test_no_row_is_declined_where_the_files_are_as_published(tmp_path: Path) -> None:
    for name, shape in _trace.TASKS.items():
        (tmp_path / "LLM-CL-Benchmark_500" / name).mkdir(parents=True)
        for part, count in (("train", 500), ("eval", 3), ("test", 3)):
            said = [{"prompt": f"{shape.prefix}{part}{i}{shape.cue}", "answer": "A"} for i in range(count)]
            (tmp_path / "LLM-CL-Benchmark_500" / name / f"{part}.json").write_text(json.dumps(said), encoding="utf-8")
    for name in ("trace-500", "trace-500-compat"):
        suite = catalog.suite(name, files=Files(folder=tmp_path))
        stream = suite.stream()
        assert [why for row in catalog.rows(suite, [], {}) if (why := row.method.unsupported(stream))] == []
        (code,) = [task.train.task for task in stream if task.train.task.kind == "code"]  # type: ignore[attr-defined]
        assert code.answer_tokens == (512 if name.endswith("compat") else 64)


def test_the_passes_are_those_of_the_scripts() -> None:
    suite = catalog.suite("trace")
    assert list(_trace.TASKS)[2] == "MeetingBank"
    assert suite.recipe.task_epochs == (5, 3, 7, 5, 3, 5, 5, 7)
    rows = {(row.method.name, row.variant): row.recipe for row in catalog.rows(suite, [], {})}
    paper = rows["treelora", "paper's epochs"]
    assert paper is not None
    assert sum(suite.recipe.task_epochs) / sum(paper.task_epochs) == 2.5
    assert catalog.suite("olora-order6").recipe.task_epochs[2] == 2  # MNLI


def test_equal_passes_take_the_place_of_those_of_each_task() -> None:
    recipe = catalog.suite("trace", {"epochs": "2"}).recipe
    assert (recipe.epochs, recipe.task_epochs) == (2, ())


def test_the_data_is_looked_for_when_the_stream_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLBENCH_DATA", str(tmp_path))
    for name, where in (("trace", "trace/LLM-CL-Benchmark_5000"), ("olora-order1", "olora/CL_Benchmark")):
        with pytest.raises(NotAvailable, match=str(tmp_path / where)):
            catalog.suite(name).stream()


def test_a_folder_without_the_release_is_a_data_set_of_its_own(own: Path) -> None:
    suite = catalog.suite("trace", files=Files(folder=own))
    assert [task.name for task in suite.stream()] == ["first", "second"]
    assert [task.name for task in suite.of(Files(folder=own, tasks=("second",))).stream()] == ["second"]
    assert (suite.recipe.task_epochs, suite.recipe.epochs) == ((), 5)
    assert not any(contender.recipe for contender in suite.contenders)
    assert suite.references == ()
    assert catalog.suite("trace-500-compat", files=Files(folder=own)).references == ()
    assert catalog.suite("trace-500-compat").references
    (row,) = catalog.rows(suite, ["seqlora"], {})
    assert row.variant == ""  # the recipe is this data's own
    assert any("first: Scored as 'letter'" in note for note in suite.notes(suite.stream()))


def test_a_part_of_the_download_that_is_no_release_is_a_data_set_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "LLM-CL-Benchmark_Reasoning" / "MeetingBank")
    suite = catalog.suite("trace", files=Files(folder=tmp_path / "LLM-CL-Benchmark_Reasoning"))
    assert [task.train.task.kind for task in suite.stream()] == ["summary"]  # type: ignore[attr-defined]


def test_the_release_is_read_in_the_form_that_the_suite_names(tmp_path: Path) -> None:
    shape = _trace.TASKS["FOMC"]
    for variant, rows in (("500", 12), ("5000", 30)):
        folder = tmp_path / f"LLM-CL-Benchmark_{variant}" / "FOMC"
        folder.mkdir(parents=True)
        for part in ("train", "eval", "test"):
            said = [{"prompt": f"{shape.prefix}{part}{i}{shape.cue}", "answer": "A"} for i in range(rows)]
            (folder / f"{part}.json").write_text(json.dumps(said), encoding="utf-8")
    files = Files(folder=tmp_path, tasks=("FOMC",))
    for name, rows in (("trace", 30), ("trace-500", 12), ("trace-500-compat", 12)):
        suite = catalog.suite(name, files=files)
        assert [len(task.train) for task in suite.stream()] == [rows]
        assert suite.recipe.task_epochs == (3,)
    with pytest.raises(NotAvailable, match=r"C-STANCE/train\.json"):
        catalog.suite("trace-500", files=Files(folder=tmp_path)).stream()


def test_tasks_are_shuffled_by_the_seed_of_the_order(own: Path) -> None:
    for name in ("third", "fourth"):
        write(own / name)
    suite = catalog.suite("trace", files=Files(folder=own))
    orders = {tuple(task.name for task in suite.stream(seed)) for seed in range(5)}
    assert len(orders) > 1
    assert len({frozenset(order) for order in orders}) == 1


def test_passes_of_each_task_need_the_natural_order(own: Path) -> None:
    suite = catalog.suite("trace", {"task_epochs": "1,2"}, files=Files(folder=own), backbone="nano-lm")
    rows, stream = catalog.rows(suite, ["seqlora"], {}), suite.stream(1)
    with pytest.raises(BadValue, match="the order seed 1 shuffles them"):
        plan.cells(suite, stream, rows, [0], 1, "cpu")
    assert len(plan.cells(suite, stream, rows, [0], 0, "cpu")) == 1


@pytest.mark.parametrize(
    ("name", "files", "error", "words"),
    [
        ("trace-tiny", Files(tasks=("Stance",)), BadValue, "leave out --from and --task"),
        ("quick", Files(folder=Path()), BadValue, "leave out --from and --task"),
        ("trace", Files(folder=Path("nowhere")), NotAvailable, "no folder at 'nowhere'"),
        ("trace", Files(tasks=("FOMX",)), UnknownName, "Did you mean 'FOMC'"),
    ],
)
def test_wrong_files_are_refused(name: str, files: Files, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        catalog.suite(name, files=files)


def card(suite: Suite, own: Path) -> tuple[str, tuple[str, ...], str]:
    changed = suite.of(Files(folder=own))
    found = catalog.suite(suite.name, {}, files=changed.files, backbone="nano-lm").protocol(changed.stream(), 0)
    return found.transform, found.marks, found.suite_hash


def test_what_repeats_other_code_marks_the_card(own: Path) -> None:
    plain, compat = (card(catalog.suite(name), own) for name in ("trace", "trace-compat"))
    assert plain[0] == "text: questions of at most 1024 tokens, cut: body; answers of at most 512"
    assert "cut: left" in compat[0]
    assert plain[1] == ()
    assert len(compat[1]) == 3
    words = {"truncation": "left", "temperature": "0.1", "carry_optimizer": "true"}
    by_hand = catalog.suite("trace", words, files=Files(folder=own), backbone="nano-lm")
    assert by_hand.protocol(by_hand.stream(), 0).marks == compat[1]


def test_the_recipes_limits_are_on_the_card(own: Path) -> None:
    suite = catalog.suite("trace", {"prompt_tokens": "77"}, files=Files(folder=own), backbone="nano-lm")
    assert "at most 77 tokens" in suite.protocol(suite.stream(), 0).transform


def test_other_backbones_and_weights() -> None:
    suite = catalog.suite("trace-tiny", backbone="nano-lm", weights="random")
    assert (suite.backbone, suite.weights) == ("nano-lm", "random")
    protocol = suite.protocol(suite.stream(), 0)
    assert protocol.marks == ("random weights: for timing alone",)
    assert protocol.suite_hash != catalog.suite("trace-tiny", backbone="nano-lm").protocol(suite.stream(), 0).suite_hash
    for backbone, words in (("nano-ml", "Did you mean 'nano-lm'"), ("hg:x", "no family of backbones called 'hg'")):
        with pytest.raises(UnknownName, match=words):
            catalog.suite("trace-tiny", backbone=backbone)
    with pytest.raises(UnknownName, match="choice of weights"):
        catalog.suite("trace-tiny", weights="4bit")


def test_the_twin_fits_its_backbone() -> None:
    suite = catalog.suite("trace-tiny")
    longest = max(len(f"{row.prompt}{row.answer}".encode()) for task in suite.stream() for row in task.train.rows)
    assert longest + 2 < suite.recipe.prompt_tokens <= 256


def test_naming_a_suite_loads_no_torch() -> None:
    program = (
        "import sys\nfrom clbench import catalog\n"
        f"for name in {TEXT}:\n    catalog.suite(name)\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
