"""Arrange: sorting, choosing and missing rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from clbench import arrange
from clbench.errors import UnknownName
from clbench.metrics import Undefined
from clbench.record import Record
from clbench.report.render import FORMATS, render
from clbench.table import Table, make_tables


def run(method: str, last: tuple[float, float] = (0.5, 0.9), **changes: Any) -> Record:
    card = {**Record.example().suite_protocol, "backbone": changes.pop("backbone", "small")}
    scores = ((None, None), (1.0, None), last)
    key = f"{method}{changes.get('variant', '')}"
    return Record.example(
        **{"method": method, "key": key, "scores": scores, "suite_protocol": card, "protocol": card, **changes}
    )


def tables() -> tuple[Table, ...]:
    joint = ((None, None), (None, None), (1.0, 0.98))
    return make_tables(
        [
            run("ewc", (0.7, 0.5)),
            run("ewc", (0.2, 0.9), variant="w=1", params={"w": 1}, marks=("marked",)),
            run("joint", scores=joint, costs=Record.example().costs[:1], marks=("at once",)),
            run("replay", (0.9, 0.8)),
            run("l2p", status="failed", reason="no luck", scores=(), costs=()),
            run("ewc", suite="letters", suite_hash="cccc", backbone="large"),
        ]
    )


def shown(made: list[Table]) -> list[list[str]]:
    return [[row.label for row in table.rows] for table in made]


def test_the_best_come_first_and_rows_without_the_number_last() -> None:
    def of(word: str) -> list[str]:
        return shown(arrange.ordered(tables(), word))[0]

    assert of("forgetting") == ["replay", "ewc", "ewc (w=1)", "joint", "l2p"]
    assert of("-forgetting") == ["ewc (w=1)", "ewc", "replay", "joint", "l2p"]
    assert of("bwt_mean") == of("bwt") == of("forgetting")
    assert of("accuracy") == of("avg_accuracy_mean") == ["joint", "replay", "ewc", "ewc (w=1)", "l2p"]
    assert of("method")[0] == "ewc"
    assert of("-method")[0] == "replay"
    assert of("reason")[0] == "l2p"
    with pytest.raises(UnknownName, match=r"no column to sort by called 'forgeting'\. Did you mean 'forgetting'"):
        arrange.ordered(tables(), "forgeting")


def test_rows_and_tables_are_chosen_by_name() -> None:
    assert shown(arrange.only(tables())) == shown(list(tables()))
    assert shown(arrange.only(tables(), methods=["ewc"])) == [["ewc", "ewc (w=1)"], ["ewc"]]
    assert shown(arrange.only(tables(), methods=["ewc (w=1)", "l2p"])) == [["ewc (w=1)", "l2p"]]
    assert shown(arrange.only(tables(), backbones=["large"], methods=["ewc"])) == [["ewc"]]
    assert [t.suite_hash for t in arrange.only(tables(), protocols=["cc"])] == ["cccc"]
    assert len(arrange.only(tables(), protocols=["cc", "bbbb"])) == 2
    (kept, _) = arrange.only(tables(), methods=["ewc"])
    assert [words for _, words in kept.footnotes] == ["marked"]
    assert kept.rows[0].rank == 3  # among all rows


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"methods": ["ecw"]}, "no method in these tables called 'ecw'. Did you mean 'ewc'"),
        ({"backbones": ["larg"]}, "no backbone in these tables called 'larg'. Did you mean 'large'"),
        ({"protocols": ["dd"]}, "no protocol in these tables called 'dd'.*Known: bbbb, cccc"),
    ],
)
def test_a_name_that_fits_nothing_is_refused(asked: dict[str, list[str]], words: str) -> None:
    with pytest.raises(UnknownName, match=words):
        arrange.only(tables(), **asked)


def contender(method: str, settings: dict[str, Any] | None = None, label: str = "") -> Any:
    return SimpleNamespace(method=method, settings=settings or {}, label=label)


def test_a_contender_without_a_record_is_missing() -> None:
    records = [run("ewc"), run("ewc", variant="layers=1,2", params={"layers": [1, 2]}), run("olora", variant="bare")]
    listed = [
        *(contender("ewc"), contender("ewc", {"layers": (1, 2)}), contender("olora", {"mask": 0}, "bare")),
        *(contender("ewc", {"layers": (3,)}), contender("olora"), contender("gem", {"m": 1}, "short")),
    ]
    made = arrange.with_missing(make_tables(records), "digits", listed, records)
    assert shown(made) == [["ewc", "ewc (layers=1,2)", "olora (bare)", "ewc (layers=(3,))", "olora", "gem (short)"]]
    last = made[0].rows[-1]
    assert (last.status, last.reason, last.n_seeds) == ("missing", "missing: no run yet", 0)
    assert last.avg_accuracy_mean == last.rank == Undefined("missing: no run yet")
    for format in FORMATS:
        assert "missing" in render(made, format)
    assert made[0].devices == ("cpu",)
    assert arrange.with_missing(tables(), "none", listed, records) == list(tables())


def test_missing_rows_stand_in_the_largest_table_of_their_suite() -> None:
    records = [run("ewc"), run("gem"), run("ewc", key="k", order_seed=1, suite_hash="dddd")]
    made = arrange.with_missing(make_tables(records), "digits", [contender("ewc"), contender("l2p")], records)
    assert shown(made) == [["ewc", "gem", "l2p"], ["ewc"]]
