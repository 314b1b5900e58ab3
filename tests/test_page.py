"""The page of `clbench report`: what stands in it, and what it does in a real browser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from typer.testing import CliRunner

from clbench.cli import app
from clbench.errors import ClbenchError
from clbench.protocol import digest
from clbench.record import Record, TaskCosts
from clbench.report import page, palette
from clbench.report.figures import figures, gallery_figures
from clbench.report.page import Section
from clbench.report.series import series
from clbench.store import Store
from clbench.suite import Reference
from clbench.table import exams, make_tables
from clbench.verify import checks

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><b>bold</b> {{ 7 * 7 }} </script><script>alert(1)</script>"
NAME = HOSTILE.replace("/", "")
"""The most that a record's method or suite can be called."""
CARD = {"suite": "digits", "epochs": 5, "head_masking": "current", "schedule": "sequential"}
LEAF = {"tasks": [0], "depth": 0, "smoothness": [0.0]}
TREE = {"tree": {"layers": ["one"], "growth": [{"task": 1, "arms": [[0]], "root": LEAF}]}}


def cost(seconds: float, **changes: Any) -> TaskCosts:
    return Record.example().costs[0].model_copy(update={"train_seconds": seconds, **changes})


def run(method: str, seed: int = 0, last: tuple[float, float] = (0.5, 0.9), **changes: Any) -> Record:
    card = {**CARD, **changes.pop("protocol", {})}
    scores = ((None, None), (1.0, None), last)
    fixed = {"key": digest([method, seed, str(changes)]), "protocol": card, "suite_protocol": CARD}
    return Record.example(**{"method": method, "seed": seed, "scores": scores, **fixed, **changes})


def sections(records: Sequence[Record], stale: Sequence[str] = (), **links: str) -> list[Section]:
    tables, behind = make_tables(records, stale=stale), exams(records, stale).values()
    return [Section(table, tuple(groups), links) for table, groups in zip(tables, behind, strict=True)]


def example() -> list[Record]:
    """Rows of every kind; 'steady' is best, 'cheap' is fastest, 'kept' departs from the protocol."""
    joint = ((None, None), (None, None), (0.9, 0.8))
    costs = (cost(2, phase_seconds={"search": 0.5}), cost(4))
    return [
        *(run("steady", seed, (0.8 + 0.05 * seed, 0.9), costs=costs) for seed in (0, 1)),
        run("cheap", 0, (0.3, 0.6), costs=(cost(0.5), cost(0.5)), notes=TREE),
        run("kept", 0, (0.4, 0.8), costs=(cost(2), cost(3)), protocol={"head_masking": "seen"}),
        run("whole", 0, scores=joint, costs=(cost(3),)),
        run("gone", 0, status="failed", reason="the loss is not finite", scores=(), costs=()),
    ]  # fmt: skip


class Elements(HTMLParser):
    """The elements that a browser would see, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_numbers_behind_the_figures() -> None:
    (groups,) = exams(example()).values()
    rows = {row.label: row for row in series(groups)}
    assert list(rows) == ["steady", "whole", "kept", "cheap"]
    steady, whole = rows["steady"], rows["whole"]
    assert [(p.x, p.mean, p.low, p.high) for p in steady.curve()] == [
        (1, 100, 100, 100),
        (2, *map(pytest.approx, (86.25, 85, 87.5))),
    ]
    assert steady.matrix() == [[100, None], [pytest.approx(82.5), pytest.approx(90)]]
    assert steady.forgotten() == [pytest.approx(17.5)]
    assert [number for step in steady.progress() for number in step] == pytest.approx([2, 50, 6, 86.25])
    assert steady.phases() == {"train": 5.5, "search": 0.5, "first steps": pytest.approx(0.2), "evaluation": 0.4}
    assert [number for point in whole.curve() for number in (point.x, point.mean)] == pytest.approx([2, 85])
    assert [number for step in whole.progress() for number in step] == pytest.approx([3, 85])
    assert whole.forgotten() == [None]
    assert [label for label, row in rows.items() if row.departs] == ["kept"]


def test_every_figure_is_made_and_each_says_what_is_seen() -> None:
    (section,) = sections(example())
    drawn = figures(section.series, palette.styles({row.label: row.name for row in section.series}, []))
    names = ["curves", "matrices", "forgetting", "pareto", "budget", "cost", "peak", "stored"]
    assert [figure.name for figure in drawn] == names
    assert all(figure.caption.endswith(".") for figure in drawn)
    front = {v["row"]: v["front"] for v in next(iter(drawn[3].chart.to_dict()["datasets"].values()))}
    assert front == {"steady": True, "whole": True, "kept": False, "cheap": True}
    assert [name for name, _, _ in gallery_figures(example())] == ["curves", "pareto", "forgetting", "cost"]
    assert gallery_figures([run("gone", status="failed", reason="full", scores=(), costs=())]) == []


def test_seconds_of_two_devices_never_share_a_figure() -> None:
    fast = Record.example().origin.model_copy(update={"device": "H200", "device_kind": "cuda"})
    (section,) = sections([run("a"), run("a", origin=fast)])
    drawn = figures(section.series, palette.styles({row.label: row.name for row in section.series}, ["a"]))
    assert {figure.name: figure.title for figure in drawn if figure.name.startswith("cost")} == {
        "cost-1": "Where the seconds go, on H200",
        "cost-2": "Where the seconds go, on cpu",
    }
    assert set(section.labels) == {row.label for row in section.series} == {"a, on H200", "a, on cpu"}


def test_a_method_looks_the_same_on_every_page() -> None:
    order = [f"listed-{i}" for i in range(40)]
    all_of_them = palette.styles({name: name for name in [*order, "mine"]}, order)
    assert len(set(all_of_them.values())) == 41
    assert palette.styles({"listed-30": "listed-30"}, order)["listed-30"] == all_of_them["listed-30"]
    crowd = palette.styles({str(i): str(i) for i in range(2 * palette.SLOTS)}, [])
    assert len(set(crowd.values())) == palette.SLOTS


def test_the_page_has_its_parts_and_loads_nothing() -> None:
    made = sections(example(), **{example()[0].key: "../records/a%20b.json"})
    text = page.page(made, ["steady"])
    assert text == page.page(sections(example(), **{example()[0].key: "../records/a%20b.json"}), ["steady"])
    seen = Elements(text)
    assert [tag for tag, attributes in seen.found if "src" in attributes or tag in ("link", "iframe", "img")] == []
    assert {a["href"] for a in seen.of("a")} == {"../records/a%20b.json"}
    policy = next(meta["content"] for meta in seen.of("meta") if "http-equiv" in meta)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert all(heading["scope"] in ("col", "row") for heading in seen.of("th"))
    assert [heading["aria-sort"] for heading in seen.of("th") if "aria-sort" in heading][:2] == ["ascending", "none"]
    assert len(seen.of("figure")) == len(seen.of("figcaption")) == 8 + 2
    assert len(seen.of("tr")) == 1 + 5 + 1 + 1 + 4 + 1 + 1 + 1 + 6
    words = " ".join(seen.words)
    for part in ("≠ seen", "First: steady, with 86.25 ± 1.77 % average accuracy over 2 seeds", "failed: the loss is"):
        assert part in words


def test_stale_rows_departures_and_marks_are_named() -> None:
    marked = {**CARD, "marks": ["the weights are random"]}
    text = page.page(sections([run("old", key="k", suite_protocol=marked), run("new", suite_protocol=marked)], ["k"]))
    words = " ".join(Elements(text).words)
    assert "the weights are random" in words
    assert "the method's source has changed since these runs" in words


def test_a_tree_that_cannot_be_read_is_named_and_the_rest_is_shown() -> None:
    text = page.page(sections([run("a", notes={"tree": [1]})]))
    assert "has no readable tree" in " ".join(Elements(text).words)


def test_markup_in_names_is_text() -> None:
    records = [run(NAME, variant=HOSTILE, suite=NAME, tasks=(HOSTILE, "b")), run("y", suite=NAME)]
    records += [run("z", suite=NAME, status="failed", reason=HOSTILE, scores=(), costs=())]
    text = page.page(sections(records))
    seen = Elements(text)
    assert seen.of("img") == []
    assert [tag for tag, _ in seen.found if tag in ("script", "title")].count("script") == 8 + 2
    assert "49" not in "".join(re.findall(r"bold&lt;/b&gt; (.*?) &lt;/script", text))
    assert "alert(1)" in " ".join(seen.words)


def test_every_row_stands_in_the_legend() -> None:
    (section,) = sections([run(f"method-{m}") for m in range(37)])
    curves, *_ = figures(section.series, palette.styles({row.label: row.name for row in section.series}, []))
    spec = {name: part for name, part in curves.chart.to_dict().items() if name != "config"}
    legends = list(_parts(spec, "legend"))
    assert legends
    assert {(legend["symbolLimit"], legend["columns"]) for legend in legends} == {(0, 3)}


def _parts(spec: Any, key: str) -> Iterator[Any]:
    """What stands under `key` anywhere in a chart's specification."""
    if isinstance(spec, dict):
        yield from (value for name, value in spec.items() if name == key and isinstance(value, dict))
    for below in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ():
        yield from _parts(below, key)


def test_published_figures_and_further_marks_stand_on_the_page() -> None:
    after = {"lenient": ((None, None), (0.75, None), (0.25, 0.75)), "invalid": ((None, None), (0.0, None), (0.5, 0.25))}
    records = [run("steady", 0, other_scores=after, floors=(0.25, 0.5))]
    theirs = Reference(method="steady", metric="avg_accuracy", value=71.0, tolerance=1.5, source="A paper, Table 1")
    (section,) = sections(records)
    found = tuple(checks("digits", [theirs], records))
    text = " ".join(Elements(page.page([replace(section, checks=found)])).words)
    assert "Beside published figures" in text
    assert "within ±1.5" in text
    assert "A paper, Table 1" in text
    assert re.search(r"Always giving the most frequent training answer scores\s+37.50 %", text)
    assert re.search(r"steady\s+37.50\s+50.00", text)  # invalid, then lenient, after the last task
    plain = page.page(sections([run("steady", 0)]))
    assert "Beside published figures" not in plain
    assert "Other marks" not in plain


def test_what_is_known_of_the_data_stands_on_the_card() -> None:
    said = ["a: The 9 training rows hold 8 different prompts.", "b: 1 of 5 test rows ask what a training row asks."]
    plain = run("steady", 0)
    card = {**plain.suite_protocol, "data": said}
    text = page.page(sections([plain.model_copy(update={"suite_protocol": card, "protocol": card})]))
    assert f"<dd>{said[0]} {said[1]}</dd>" in text


def test_twenty_methods_of_three_seeds_fit() -> None:
    tasks = tuple(f"task number {i}" for i in range(20))
    rows = [tuple(0.9 - 0.01 * abs(t - j) if j < t else None for j in range(20)) for t in range(21)]
    records = [
        run(f"method-{m}", seed, tasks=tasks, test_sizes=(10,) * 20, scores=tuple(rows), costs=(cost(m + 1),) * 20)
        for m in range(20)
        for seed in range(3)
    ]
    text = page.page(sections(records))
    assert "Too large for this page" not in text
    assert len(text.encode()) <= 3 * 10**6


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the example's runs, the folder of its page beside it, and a hostile suite."""
    store = Store(tmp_path_factory.mktemp("place") / "results")
    for record in [*example(), run(NAME, suite="z", variant=HOSTILE)]:
        store.cell(record.suite, "a method", record.key).save(record, {})
    done = CliRunner().invoke(app, ["report", "--out", str(store.root.parent / "site"), "--store", str(store.root)])
    assert done.exit_code == 0, done.output
    return store.root


def test_the_command_links_records_that_lie_beside(planted: Path, tmp_path: Path) -> None:
    text = (planted.parent / "site" / "index.html").read_text(encoding="utf-8")
    links = [str(a["href"]) for a in Elements(text).of("a") if str(a["href"]).endswith(".json")]
    assert len(links) == len(example()) + 1
    assert f"../results/runs/digits/a%20method/{example()[0].key}/record.json" in links
    done = CliRunner().invoke(app, ["report", "digits", "--out", str(tmp_path / "away"), "--store", str(planted)])
    assert done.exit_code == 0, done.output
    far = (tmp_path / "away" / "index.html").read_text(encoding="utf-8")
    assert "record.json" not in far
    assert example()[0].key in far


def test_static_pictures(tmp_path: Path) -> None:
    written = page.write(sections(example()), tmp_path / "out", static=True)
    files = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert len(files) == len(written) - 1 == 2 * (8 + 2)
    assert "digits-bbbb-pareto.svg" in files
    for path in written[1:]:
        if path.suffix == ".png":
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 2
        else:
            assert ElementTree.fromstring(path.read_bytes()).tag.endswith("svg")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ClbenchError, match="it is a file; name a folder"):
        page.write([], tmp_path / "out")


@pytest.fixture(scope="module")
def tab(browser: Any, planted: Path) -> Any:
    browser.open(planted.parent / "site" / "index.html")
    return browser


LABELS = (
    "[...document.querySelectorAll('#suite-1 .leaderboard tbody tr')].filter(r => !r.hidden).map(r => r.dataset.label)"
)


def test_the_browser_draws_all_and_complains_of_nothing(tab: Any) -> None:
    assert tab.js("document.querySelectorAll('figure svg.marks').length") == tab.js(
        "document.querySelectorAll('figure').length"
    )
    assert tab.complaints() == []
    asked = [e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("file:")] == []
    assert tab.js("document.title").startswith("digits, z")
    assert tab.js("document.querySelectorAll('section img, td b b').length") == 0
    assert "<b>bold</b>" in tab.js("document.querySelector('#suite-2 .leaderboard tbody').innerText")
    assert "<img src=x" in tab.js("document.querySelector('#suite-2 figure svg').textContent")


def test_sorting_by_clicks_and_by_keys(tab: Any) -> None:
    train = tab.js("[...document.querySelectorAll('#suite-1 th[aria-sort]')].findIndex(h => /Train/.test(h.innerText))")
    heading = f"#suite-1 .leaderboard th:nth-child({train + 1})"
    tab.click(f"{heading} button")
    assert tab.js(LABELS) == ["cheap", "whole", "kept", "steady", "gone"]
    assert tab.js(f"document.querySelector('{heading}').ariaSort") == "ascending"
    tab.click(f"{heading} button")
    assert tab.js(LABELS) == ["steady", "kept", "whole", "cheap", "gone"]
    assert (
        tab.js("[...document.querySelectorAll('#suite-1 th[aria-sort]')].map(h => h.ariaSort).sort()[0]")
        == "descending"
    )
    tab.js("document.querySelector('#suite-1 .leaderboard th:nth-child(2) button').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert tab.js(LABELS) == ["cheap", "gone", "kept", "steady", "whole"]


def test_filters_hold_for_the_table_and_the_figures(tab: Any) -> None:
    marks = "document.querySelectorAll('#suite-1 figure')[0].querySelectorAll('.mark-symbol.role-mark path').length"
    all_of_them = tab.js(marks)
    tab.click("#suite-1 .words")
    tab.call("Input.insertText", text="STEA")
    assert tab.js(LABELS) == ["steady"]
    assert tab.js("document.querySelector('#suite-1 .count').innerText") == "1 of 5 rows"
    tab.js("new Promise(next => setTimeout(next, 300))")
    assert 0 < tab.js(marks) < all_of_them
    tab.js("document.querySelector('#suite-1 .words').value = ''")
    for method in ("kept", "gone"):
        choose = f"s => {{ s.value = '{method}'; s.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
        tab.js(f"({choose})(document.querySelector('#suite-1 .method'))")
        assert tab.js(LABELS) == [method]
    assert tab.complaints() == []


def test_a_phone_scrolls_tables_in_their_box_only(tab: Any, planted: Path) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    tab.open(planted.parent / "site" / "index.html")
    assert tab.js("document.documentElement.scrollWidth") == 390
    assert tab.js("document.querySelector('.box').scrollWidth") > 390
    assert tab.complaints() == []
