"""What methods hold is what they declare: neither less, which would be a leak, nor more, which would mislead."""

from __future__ import annotations

from typing import Any

import pytest

from clbench import catalog, tiny
from clbench.costs import Kept
from clbench.methods import CONTENTS


@pytest.mark.parametrize("name", CONTENTS)
def test_class_statistics_are_declared_by_those_that_keep_them(name: str, begin: Any, begin_text: Any) -> None:
    for suite, start in ((tiny.tiny, begin), (tiny.tiny_text, begin_text)):
        (row,) = catalog.rows(suite, [name], {})
        if row.method.unsupported(suite.stream()) is None:
            kept = Kept.by(start(row.method).ours)
            assert kept.class_statistics == row.method.resources().class_statistics


def test_gradients_are_counted_up_to_what_is_declared_of_each_task(begin: Any, teach: Any) -> None:
    (row,) = catalog.rows(tiny.tiny, ["ogd"], {"ogd": {"vectors": "5"}})
    run = teach(begin(row.method, epochs=1), 0, 1)
    assert Kept.by(run.ours).gradients == 2 * row.method.resources().stored_gradients == 10
    assert run.cell.protocol.stored_gradients == 5
    assert run.cell.protocol.hash != run.cell.suite_protocol.hash
