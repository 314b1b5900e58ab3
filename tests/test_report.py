from __future__ import annotations

import csv
import doctest
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from rich.console import Console

from clbench import files
from clbench.errors import ClbenchError, UnknownName
from clbench.record import Record
from clbench.report import grid, leaderboard, markup
from clbench.report.leaderboard import frame
from clbench.report.render import FORMATS, SUFFIXES, format_of, render, write
from clbench.report.text import print_text, text
from clbench.row import columns
from clbench.table import REFERENCE_METHOD, Table, make_tables

CARD = {"suite": "digits", "epochs": 5, "head_masking": "current", "schedule": "sequential"}
HOSTILE = "[red]x[/red] a|b 50%_&$#{}~^\\ <i>*bold*`\nsecond\x1b[31m line"
NAME = "".join(c for c in HOSTILE if c not in "/\\\n\x1b")  # the most that a record's method or suite can be called


def run(method: str, seed: int = 0, last: tuple[float, float] = (0.5, 0.9), **changes: Any) -> Record:
    protocol = {**CARD, **changes.pop("protocol", {})}
    scores = ((None, None), (1.0, None), last)
    return Record.example(
        **{"method": method, "seed": seed, "protocol": protocol, "suite_protocol": CARD, "scores": scores, **changes}
    )


def example() -> tuple[Table, ...]:
    """A table with every kind of row."""
    joint = ((None, None), (None, None), (1.0, 0.98))
    records = [run(REFERENCE_METHOD, seed) for seed in range(3)]
    records += [run("ewc", seed, last=(0.6 + 0.1 * seed, 0.9)) for seed in range(2)]
    records += [
        run(REFERENCE_METHOD, last=(0.0, 0.5), variant="head_masking=seen", protocol={"head_masking": "seen"}),
        run("joint", scores=joint, costs=Record.example().costs[:1], protocol={"schedule": "joint"}),
        run("gem", status="unsupported", reason="needs a buffer", scores=(), costs=()),
        run("l2p", status="failed", reason="the loss is not finite", scores=(), costs=()),
        run("old", key="old"),
    ]
    return make_tables(records, stale={"old"})


def hostile() -> tuple[Table, ...]:
    return make_tables([run(NAME, variant=HOSTILE, suite=NAME), run("y", suite=NAME, status="failed", reason=HOSTILE)])


@pytest.mark.parametrize("width", [100, 120])
def test_text_is_readable(width: int) -> None:
    shown = text(example()[0], width)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0] == "digits · protocol bbbb · 2 tasks · cpu"
    assert "\x1b" not in shown
    words = {tuple(line.split()[:2]): " ".join(line.split()) for line in lines}
    assert words["2", "ewc"] == "2 ewc 77.50 ± 3.54 (2) 35.00 -35.00 2.00 1.00 1.00 50.0 1k 0.0038"
    assert words["1", "joint"].startswith("1 joint [a] 99.00 ± – (1) – – 1.00")
    assert words["gem", "[e]"].startswith("gem [e] unsupported – –")
    assert "a: schedule joint instead of sequential" in lines
    assert "e: unsupported: needs a buffer" in lines
    assert "–: Forgetting, BWT of joint: not measured after every task" in lines


def test_text_on_a_console_is_bold_where_best() -> None:
    file = io.StringIO()
    print_text(example()[0], Console(file=file, width=120, force_terminal=True, color_system="standard"))
    bold = [part.split("\x1b[0m")[0].strip() for part in file.getvalue().split("\x1b[1m")[1:]]
    assert "99.00 ± – (1)" in bold
    assert "35.00" in bold
    assert "77.50 ± 3.54 (2)" not in bold


def test_equal_numbers_have_no_best() -> None:
    shown = grid.grid(example()[0])
    best = {shown.headings[i] for line in shown.lines for i, cell in enumerate(line) if cell.best}
    assert best == {"Average accuracy % ± std (n)", "Forgetting", "BWT", "Train s"}


def test_router_accuracy_is_shown_where_some_row_has_it_and_always_in_the_leaderboard() -> None:
    plain = make_tables([run("ewc")])
    routed = make_tables([run("ewc"), run("hide", router_accuracy=(1.0, 0.875)), run("hidden")])
    assert "Router" not in grid.grid(plain[0]).headings
    shown = grid.grid(routed[0])
    cells = {line[1].text: line[shown.headings.index("Router")].text for line in shown.lines}
    assert cells == {"ewc": grid.DASH, "hide": "87.50", "hidden": grid.DASH}
    assert (grid.DASH, "Router of ewc, hidden: infers no task") in shown.footnotes
    for tables, numbers in ((plain, {"ewc": ""}), (routed, {"ewc": "", "hide": "87.5", "hidden": ""})):
        lines = csv.DictReader(io.StringIO(render(tables, "csv")))
        assert {line["method"]: line["router_accuracy_mean"] for line in lines} == numbers


def test_several_devices_are_named_and_seconds_not_compared() -> None:
    gpu = Record.example().origin.model_copy(update={"device": "H200", "device_kind": "cuda"})
    slow = tuple(cost.model_copy(update={"train_seconds": 9.0}) for cost in Record.example().costs)
    (made,) = make_tables([run("ewc"), run("ewc", costs=slow, origin=gpu)])
    shown = grid.grid(made)
    assert {line[1].text for line in shown.lines} == {"ewc, on cpu", "ewc, on H200"}
    assert not any(line[shown.headings.index("Train s")].best for line in shown.lines)


def test_markdown() -> None:
    lines = render(example(), "markdown").splitlines()
    assert lines[0] == "**digits · protocol bbbb · 2 tasks · cpu**"
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {12}
    assert table[2].startswith("| 1 | joint<sup>a</sup> | **99.00 ± – (1)** | – | – | **1.00** |")
    assert r"| seqlora (head\_masking=seen)<sup>" in "\n".join(table)


def test_latex() -> None:
    made = render(example(), "latex")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{digits $\cdot$ protocol bbbb"):
        assert part in made
    assert r"1 & joint\textsuperscript{a} & \textbf{99.00 $\pm$ -- (1)} & -- & --" in made
    assert r"seqlora (head\_masking=seen)" in made
    assert "$-$35.00" in made
    rows = [line for line in made.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in rows} == {10}


def test_csv_has_all_columns_percent_and_empty_where_undefined() -> None:
    lines = list(csv.DictReader(io.StringIO(render(example(), "csv"))))
    assert list(lines[0]) == [column.name for column in columns(REFERENCE_METHOD)]
    ewc = next(line for line in lines if line["method"] == "ewc")
    assert (ewc["avg_accuracy_mean"], ewc["avg_accuracy_std"], ewc["n_seeds"]) == ("77.5", "3.53553", "2")
    assert (ewc["trainable_parameters"], ewc["rank"], ewc["epochs_differ"]) == ("1000", "2", "False")
    joint = next(line for line in lines if line["method"] == "joint")
    assert joint["forgetting_mean"] == joint["avg_accuracy_std"] == ""
    assert joint["marks"] == "a: schedule joint instead of sequential"
    gem = next(line for line in lines if line["method"] == "gem")
    assert (gem["n_seeds"], gem["avg_accuracy_mean"], gem["train_seconds_mean"], gem["rank"]) == ("0", "", "", "")
    assert gem["reason"] == "unsupported: needs a buffer"


def test_json_has_null_where_undefined() -> None:
    lines = json.loads(render(example(), "json"))
    assert [line["method"] for line in lines][:2] == ["joint", "ewc"]
    assert lines[0]["forgetting_mean"] is None
    assert lines[0]["rank"] == 1
    assert lines[-1]["avg_accuracy_mean"] is None


def test_the_frame_is_typed() -> None:
    made = frame(example())
    assert made["avg_accuracy_mean"].dtype == "float64"
    assert made["trainable_parameters"].dtype == made["rank"].dtype == pandas.Int64Dtype()
    assert made["epochs_differ"].dtype == bool
    assert len(frame([])) == 0
    assert list(frame([])) == list(made)


def test_ties_are_listed_with_semicolons() -> None:
    made = example()[0]
    line = leaderboard.lines([replace(made, rows=(replace(made.rows[0], tied_with=("ewc", "gem (a=1)")),))])[0]
    assert line["tied_with"] == "ewc; gem (a=1)"


def test_untrusted_names_are_shown_as_text() -> None:
    shown = text(hostile()[0], 400)
    assert "[red]x[/red] a|b 50%_&$#{}~^\\ <i>*bold*` second [31m line" in shown
    assert "\x1b" not in shown
    for_readers = render(hostile(), "markdown")
    assert {line.replace(r"\|", "").count("|") for line in for_readers.splitlines() if line.startswith("|")} == {12}
    assert r"\[red\]x\[/red\] a\|b 50%\_&amp;$#{}\~^\\ &lt;i&gt;\*bold\*\`" in for_readers
    typeset = render(hostile(), "latex")
    assert r"{[}red{]}x{[}/red{]} a\textbar{}b 50\%\_\&\$\#\{\}\textasciitilde{}\textasciicircum{}" in typeset
    assert r"\textbackslash{} \textless{}i\textgreater{}*bold*` second" in typeset
    variant = next(csv.DictReader(io.StringIO(render(hostile(), "csv"))))["variant"]
    assert variant == HOSTILE.replace("\x1b", " ")
    assert json.loads(render(hostile(), "json"))[0]["variant"] == HOSTILE


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_renders_many_tables_and_none(format: str) -> None:
    two = make_tables([run("ewc"), run("ewc", suite_hash="cccc")])
    assert all(name in render(two, format) for name in ("bbbb", "cccc"))
    assert isinstance(render((), format), str)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"no format called 'markdwn'\. Did you mean 'markdown'"):
        render(example(), "markdwn")


def test_writing_leaves_the_whole_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("before")
    write(render(example(), "csv"), path)
    assert path.read_text(encoding="utf-8") == render(example(), "csv")
    assert [file.name for file in tmp_path.iterdir()] == ["all.csv"]


def test_the_name_of_a_file_says_its_format() -> None:
    assert set(SUFFIXES.values()) == set(FORMATS)
    assert format_of(Path("a.b.tex")) == "latex"
    with pytest.raises(
        ClbenchError, match=r"'all\.doc' does not say .* end its name in \.txt, \.csv, .* pass --format"
    ):
        format_of(Path("all.doc"))


def tied_table() -> Table:
    """Two rows that are right on the same examples, and a third."""
    labels = np.zeros(200, dtype=int)
    shares = {"ewc": 0.9, "gem": 0.895, "olora": 0.5}

    def answers(record: Record) -> dict[str, Any]:
        right = np.arange(200) < shares[record.method] * 200
        return {"labels": labels, "tasks": labels, "round_2": np.where(right, 0, 1)}

    (made,) = make_tables([run(name, last=(share, share)) for name, share in shares.items()], outcomes=answers)
    return made


def test_the_best_is_bold_and_what_is_tied_with_it_underlined() -> None:
    shown = grid.grid(tied_table())
    assert [(line[0].text, line[2].best, line[2].tied) for line in shown.lines] == [
        ("1", True, False),
        ("1", False, True),
        ("3", False, False),
    ]
    assert "<u>89.50 ± – (1)</u>" in render([tied_table()], "markdown")
    assert r"\textbf{90.00 $\pm$ -- (1)}" in render([tied_table()], "latex")
    assert r"\underline{89.50 $\pm$ -- (1)}" in render([tied_table()], "latex")
    file = io.StringIO()
    print_text(tied_table(), Console(file=file, width=120, force_terminal=True, color_system="standard"))
    assert "\x1b[4m" in file.getvalue()


def test_seeds_that_a_row_lacks_are_named() -> None:
    assert (
        "n",
        "seeds that other rows have and these lack: ewc: 2; joint: 1, 2; seqlora (head_masking=seen): 1, 2",
    ) in (grid.grid(example()[0]).footnotes)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent" / "all.csv"
    with pytest.raises(ClbenchError, match=f"'{absent.parent}' does not exist; create the folder"):
        write("x", absent)
    assert not absent.parent.exists()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ClbenchError, match="is not a folder"):
        write("x", file / "all.csv")
    with pytest.raises(ClbenchError, match="it is a folder"):
        write("x", tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(ClbenchError, match=r"all\.csv' is not writable"):
        write("x", tmp_path / "all.csv")


def test_printing_a_table_loads_neither_pandas_nor_torch() -> None:
    code = (
        "import sys; from clbench.record import Record; from clbench.table import make_tables;"
        "from clbench.report.render import render; render(make_tables([Record.example()]), 'text');"
        "print([m for m in ('torch', 'pandas', 'scipy', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [grid, markup])
def test_doctests(module: Any) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted
    assert outcome.failed == 0
