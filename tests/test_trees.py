"""The tree of past tasks that a record holds: as text, as pictures, as a page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clbench.errors import ClbenchError
from clbench.record import Record
from clbench.report import charts, trees
from clbench.report.tree_notes import read
from clbench.report.tree_text import choices, text

NAMES = ("Greek 1", "Cyrillic 1", "Greek 2", "Cyrillic 2")


def leaf(*rows: int, depth: int) -> dict[str, Any]:
    return {"tasks": list(rows), "depth": depth, "smoothness": [0.0, 0.0], "threshold": None, "children": []}


def joint(left: Mapping[str, Any], right: Mapping[str, Any], smoothness: list[float], depth: int) -> dict[str, Any]:
    tasks = sorted([*left["tasks"], *right["tasks"]])
    return {"tasks": tasks, "depth": depth, "smoothness": smoothness, "threshold": -1.5, "children": [left, right]}


def step(task: int | None, root: Mapping[str, Any], arms: list[list[int]] | None = None) -> dict[str, Any]:
    return {"task": task, "arms": arms or [[row] for row in range(len(root["tasks"]))], "root": root}


PAIR = joint(leaf(0, depth=1), leaf(1, depth=1), [8.0, 2.0], 0)
THREE = joint(joint(leaf(0, depth=2), leaf(2, depth=2), [4.0, 0.25], 1), leaf(1, depth=1), [12.3, 3.0], 0)
GROWTH = [step(1, leaf(0, depth=0)), step(2, PAIR), step(3, THREE)]
PULLS = [
    {"task": 1, "shares": [[[1.0], [1.0]]]},
    {"task": 2, "shares": [[[0.5, 0.5], [0.25, 0.75]], [[0.7, 0.3], [0.0, 1.0]]]},
    {"task": 3, "shares": []},
]


def tree_record(names: tuple[str, ...] = NAMES, **changes: Any) -> Record:
    note = {"layers": ["block 0", "block 1"], "growth": GROWTH, "pulls": PULLS, **changes}
    return Record.example(
        tasks=names,
        test_sizes=(10,) * len(names),
        scores=((0.5,) * len(names),) * (len(names) + 1),
        notes={"tree": note},
    )


def test_the_whole_text() -> None:
    assert text(tree_record()) == (
        "digits/plain/seed0 · 0123456789ab\n"
        "\n"
        "Tree before Cyrillic 2\n"
        "  3 tasks, split by block 0, smoothness 12.3\n"
        "  ├─ 2 tasks, split by block 1, smoothness 0.250\n"
        "  │  ├─ Greek 1\n"
        "  │  └─ Greek 2\n"
        "  └─ Cyrillic 1\n"
        "\n"
        "Growth: a bar stands where a group was split\n"
        "  before Cyrillic 1  Greek 1\n"
        "  before Greek 2     Greek 1 | Cyrillic 1\n"
        "  before Cyrillic 2  (Greek 1 | Greek 2) | Cyrillic 1\n"
        "\n"
        "Chosen most often: per layer (lines) and learned task (columns)\n"
        "           Cyrillic 1       Greek 2\n"
        "  block 0  Greek 1 (100 %)  Greek 1 (60 %)\n"
        "  block 1  Greek 1 (100 %)  Cyrillic 1 (88 %)"
    )


def test_columns_that_do_not_fit_go_below() -> None:
    assert text(tree_record(), width=30).endswith(
        "           Cyrillic 1\n"
        "  block 0  Greek 1 (100 %)\n"
        "  block 1  Greek 1 (100 %)\n"
        "\n"
        "           Greek 2\n"
        "  block 0  Greek 1 (60 %)\n"
        "  block 1  Cyrillic 1 (88 %)"
    )


def test_merged_tasks_are_one_arm() -> None:
    arms = [[0, 2], [1]]
    last = step(None, PAIR, arms)
    record = tree_record(growth=[*GROWTH, last], merged=[{"after": 2, "tasks": [[0], [2]]}])
    shown = text(record)
    assert "Tree after the last task\n  3 tasks, split by block 0, smoothness 8.00\n  ├─ Greek 1 + Greek 2\n" in shown
    assert "  after the last task  Greek 1 + Greek 2 | Cyrillic 1\n" in shown
    assert "Merged\n  after Greek 2: Greek 1 with Greek 2\n" in shown
    pulled = tree_record(growth=[step(3, PAIR, arms)], pulls=[{"task": 3, "shares": [[[1.0, 0.0], [0.0, 1.0]]]}])
    assert [(choice.layer, choice.arm, choice.share) for choice in choices(pulled)] == [
        ("block 0", "Greek 1 + Greek 2", 1.0),
        ("block 1", "Cyrillic 1", 1.0),
    ]


def test_one_past_task_and_no_choices() -> None:
    record = tree_record(growth=GROWTH[:1], pulls=[])
    shown = text(record)
    assert "Tree before Cyrillic 1\n  Greek 1\n" in shown
    assert shown.endswith("Chosen most often: no choices were recorded")
    drawn = trees.charts(record)
    assert list(drawn) == ["tree", "growth"]
    assert colours(charts.png(drawn["tree"])) > 1


def test_a_leaf_may_hold_tasks_that_no_layer_parted() -> None:
    assert "  ├─ Greek 1, Greek 2\n" in text(
        tree_record(growth=[step(3, joint(leaf(0, 2, depth=1), leaf(1, depth=1), [1.0, 1.0], 0))], pulls=[])
    )


def test_equal_names_are_told_apart_and_control_characters_are_gone() -> None:
    history = read(tree_record(("a", "a", "b\x1b[31m", "c\nd")))
    assert history.names == ("a [1]", "a [2]", "b [31m [3]", "c d [4]")
    assert read(tree_record(("a", "e", "b", "c\nd"))).names == ("a", "e", "b", "c d")


def data(spec: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of a part of a chart, which keeps those of all parts in one place."""
    rows: list[dict[str, Any]] = spec["datasets"][part["data"]["name"]]
    return rows


def colours(png: bytes) -> int:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(png)) as image:
        found = image.convert("RGB").getcolors(1 << 24)
    assert found is not None
    return len(found)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures of a record whose names are full of markup."""
    folder = tmp_path_factory.mktemp("drawn") / "new" / "folder"
    record = tree_record(("<b>Greek</b>", "</script><script>alert(1)", "a\"b'&amp;", "{c}"))
    paths = charts.write(trees.charts(record), folder, "<i>one</i> & two", "tree.html")
    assert [path.name for path in paths] == ["tree.png", "growth.png", "pulls.png", "tree.html"]
    assert sorted(folder.iterdir()) == sorted(paths)
    return folder


class Elements(HTMLParser):
    """The elements that a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("name", ["tree", "growth", "pulls"])
def test_pictures_are_not_blank(drawn: Path, name: str) -> None:
    assert colours((drawn / f"{name}.png").read_bytes()) > 2


def test_the_page_loads_nothing_and_shows_markup_as_text(drawn: Path) -> None:
    page = (drawn / "tree.html").read_text(encoding="utf-8")
    seen = Elements(page)
    assert [tag for tag, _ in seen.found] == [
        *("html", "head", "meta", "meta", "title", "style", "script", "body", "h1"),
        *("figure", "figure", "figure", "script"),
    ]
    assert [attributes for _, attributes in seen.found if {"src", "href"} & set(attributes)] == []
    assert "<title>&lt;i&gt;one&lt;/i&gt; &amp; two</title>" in page
    assert "<h1>&lt;i&gt;one&lt;/i&gt; &amp; two</h1>" in page
    head, _, rest = page.rpartition("const charts = ")
    assert "alert(1)" not in head
    specs = json.loads(rest.partition(";\nfor (")[0])
    assert list(specs) == ["tree", "growth", "pulls"]
    cells = data(specs["pulls"], specs["pulls"])
    assert {cell["past"] for cell in cells} == {"<b>Greek</b>", "</script><script>alert(1)"}


def test_the_charts_hold_what_was_recorded() -> None:
    spec = json.loads(charts.spec(trees.pulls(tree_record())))
    cells = data(spec, spec)
    assert len(cells) == 2 + 2 * 2 * 2
    assert {"layer": "block 1", "learned": "Greek 2", "epoch": 2, "past": "Cyrillic 1", "share": 1.0} in cells
    spec = json.loads(charts.spec(trees.dendrogram(tree_record())))
    _, joints, *_, leaves = (data(spec, layer) for layer in spec["layer"])
    assert [(each["tasks"], each["layer"], each["x"], each["y"]) for each in joints] == [
        ("Greek 1, Greek 2", "block 1", 1, 0.5),
        ("Greek 1, Cyrillic 1, Greek 2", "block 0", 0, 1.25),
    ]
    assert [(each["tasks"], each["y"]) for each in leaves] == [("Greek 1", 0), ("Greek 2", 1), ("Cyrillic 1", 2)]
    panels = json.loads(charts.spec(trees.growth(tree_record())))["concat"]
    assert [panel["title"]["text"] for panel in panels] == ["before Cyrillic 1", "before Greek 2", "before Cyrillic 2"]


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ClbenchError, match="it is a file; name a folder"):
        charts.write(trees.charts(tree_record()), tmp_path / "out", "", "tree.html")
    with pytest.raises(ClbenchError, match="needs a folder where a file stands"):
        charts.write({}, tmp_path / "out" / "below", "", "tree.html")


def test_a_record_without_a_tree() -> None:
    with pytest.raises(ClbenchError, match=r"digits/plain/seed0/0123456789ab recorded no tree.*'notes\.tree'"):
        read(Record.example())


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"growth": []}, "notes.tree.growth"),
        ({"layers": []}, "notes.tree.layers"),
        ({"layers": ["one", "one"]}, "different names"),
        ({"layers": ["one"]}, "one smoothness for each layer"),
        ({"growth": [step(1, leaf(0, depth=0), [[9]])]}, "task 9 is none of 4"),
        ({"growth": [step(2, PAIR, [[0]])]}, "every arm once"),
        ({"growth": [step(2, {**PAIR, "children": [leaf(0, depth=1)] * 2})]}, "share its tasks between them"),
        ({"growth": [step(2, {**PAIR, "children": [leaf(0, depth=2), leaf(1, depth=1)]})]}, "one deeper"),
        ({"merged": [{"after": 7, "tasks": [[0], [1]]}]}, "task 7 is none of 4"),
        ({"pulls": [{"task": 1, "shares": [[[1.0]]]}]}, "[layers, arms]"),
        ({"pulls": [{"task": 1, "shares": [[[0.5, 0.5]] * 2]}]}, "[layers, arms]"),
        ({"pulls": [{"task": 0, "shares": [[[1.0]] * 2]}]}, "[layers, arms]"),
        ({"pulls": [{"task": 1, "shares": [[[2.0], [1.0]]]}]}, "notes.tree.pulls.0.shares.0.0.0"),
    ],
)
def test_a_damaged_tree_is_named(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ClbenchError, match="no readable tree.*" + re.escape(where)) as caught:
        read(tree_record(**changes))
    assert "\n" not in str(caught.value)


def test_a_tree_that_is_something_else() -> None:
    with pytest.raises(ClbenchError, match=r"'notes\.tree' is not as expected"):
        read(Record.example(notes={"tree": [1, 2]}))
