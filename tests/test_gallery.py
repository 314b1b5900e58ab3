"""Gallery: one page, its pictures, and equal bytes for equal records."""

from __future__ import annotations

import io
import re
from pathlib import Path

import altair as alt
import pytest
from PIL import Image

from clbench.record import Record
from clbench.report import gallery
from clbench.report.gallery import Chapter, Entry, command, page, write
from clbench.table import make_tables

BARS = alt.Chart(alt.InlineData(values=[{"a": "x", "b": 1}]), mark="bar").encode(x="a:N", y="b:Q")


def run(method: str, seed: int, **changes: object) -> Record:
    return Record.example(method=method, seed=seed, key=f"{method}{seed}{len(changes)}", **changes)


def chapters() -> list[Chapter]:
    first = [run("ewc", 0), run("ewc", 1), run("gem", 0)]
    second = [run("ewc", 0, order_seed=3, suite_hash="cccc")]
    digits = [
        Entry(make_tables(records)[0], tuple(records), {"curves": BARS}, {"curves": "Up."})
        for records in (first, second)
    ]
    letters = [run("<b>|", 0, suite="l|<i>")]
    return [
        Chapter("digits", "ten digits", tuple(digits)),
        Chapter("l|<i>", "", (Entry(make_tables(letters)[0], tuple(letters), {}),)),
    ]


def test_the_page_has_tables_facts_commands_and_pictures() -> None:
    shown = page(chapters(), ["ranks"], ["regret.png"])
    lines = shown.splitlines()
    assert lines[0] == "# Results"
    assert "* [digits](#digits): ten digits" in lines
    assert any(line.startswith("| 1 | ewc | **70.00 ± 0.00 (2)** |") for line in lines)
    assert "n: seeds that other rows have and these lack: gem: 1" in lines
    facts = "Runs of 2026-01-01, clbench 0, an unknown commit; on cpu, 1 thread."
    assert f"{facts} Again: `clbench run digits --seed 0 --seed 1 --publish`" in lines
    assert f"{facts} Again: `clbench run digits --seed 0 --order-seed 3 --publish`" in lines
    assert re.findall(r"\]\((\S+png)\)", shown) == [
        "figures/digits-curves.png",
        "figures/digits-cccc-curves.png",
        "figures/over-all-ranks.png",
        "tables/regret.png",
    ]
    assert lines.count("Up.") == 2
    assert r"## l\|&lt;i&gt;" in lines
    assert "<b>" not in shown


def test_where_runs_were_made_is_told_once() -> None:
    origin = Record.example().origin.model_copy(
        update={"commit": "0123456789abcdef", "dirty": True, "versions": {"torch": "2", "timm": "1"}, "threads": 2}
    )
    later = origin.model_copy(update={"started": "2026-02-03T00:00:00", "dirty": False})
    shown = gallery._facts([Record.example(origin=origin), Record.example(origin=later)])
    assert shown == (
        "Runs of 2026-01-01 to 2026-02-03, clbench 0, torch 2, commit 0123456789, "
        "commit 0123456789 with local changes; on cpu, 2 threads."
    )


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    def made(folder: str) -> dict[str, bytes]:
        place = tmp_path / folder
        (place / "tables").mkdir(parents=True)
        (place / "tables" / "speed.png").write_bytes(b"")
        assert write(chapters(), {"ranks": BARS}, place / "README.md") == 3
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    first = made("a")
    assert first == made("b")
    assert sorted(first) == [
        "README.md",
        *("figures/digits-cccc-curves.png", "figures/digits-curves.png", "figures/over-all-ranks.png"),
        "tables/speed.png",
    ]
    assert b"tables/speed.png" in first["README.md"]
    picture = Image.open(io.BytesIO(first["figures/digits-curves.png"]))
    assert picture.mode == "P"
    assert picture.width > 20


def test_the_page_alone_is_the_same_page(tmp_path: Path) -> None:
    write(chapters(), {}, tmp_path / "a" / "README.md")
    assert write(chapters(), {}, tmp_path / "b" / "README.md", pictures=False) == 0
    assert (tmp_path / "b" / "README.md").read_bytes() == (tmp_path / "a" / "README.md").read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["README.md"]


@pytest.mark.parametrize("order", [0, 2])
def test_the_command_names_seeds_and_order(order: int) -> None:
    made = command([run("a", 5, order_seed=order), run("b", 0, order_seed=order), run("c", 5, order_seed=order)])
    assert made == f"clbench run digits --seed 0 --seed 5{' --order-seed 2' if order else ''} --publish"
