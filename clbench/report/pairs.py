"""Pairs: the differences between methods as text, CSV and JSON."""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from clbench.errors import UnknownName
from clbench.metrics import Undefined
from clbench.report.grid import DASH, as_json, clean, printable
from clbench.row import Number
from clbench.significance import Comparison, Contest, Pair, Ranking, t_interval
from clbench.stats import LEVEL, Difference

MEANING = {
    "bootstrap": "bootstrap over examples and seeds: average accuracy (task mean) after the last task",
    "mcnemar": "McNemar's exact test over examples: which of the two trained methods is right more often",
    "wilcoxon": "Wilcoxon's signed-rank test: average accuracy after the last task",
}
_COLUMNS = (
    *("suite", "protocol", "test", "first", "second", "difference", "low", "high", "p", "p_holm", "n", "unit"),
    "reason",
)


def lines(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One object a pair; the difference and its 95 % interval in points, None with a reason where there is none."""
    return [_line(comparison, pair) for comparison in comparisons for pair in comparison.pairs]


def _line(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    found = pair.difference
    names = (comparison.suite, comparison.protocol, comparison.test, pair.first, pair.second)
    if isinstance(found, Undefined) or isinstance(pair.p_holm, Undefined):
        reason = found.reason if isinstance(found, Undefined) else ""
        return dict(zip(_COLUMNS, (*names, None, None, None, None, None, 0, comparison.unit, reason), strict=True))
    points = (six(100 * value) for value in (found.mean, found.low, found.high))
    facts = (*names, *points, six(found.p), six(pair.p_holm), found.n, comparison.unit, "")
    return dict(zip(_COLUMNS, facts, strict=True))


def six(number: float) -> float:
    """The number with six significant digits."""
    return float(f"{number:.6g}")


def csv(comparisons: Sequence[Comparison]) -> str:
    """`lines` as CSV, empty where there is no number."""
    file = io.StringIO()
    writer = csv_format.DictWriter(file, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(comparisons))
    return printable(file.getvalue())


def to_json(comparisons: Sequence[Comparison]) -> str:
    """`lines` as JSON."""
    return as_json(lines(comparisons))


def text(
    comparisons: Sequence[Comparison], contests: Sequence[Contest], rankings: Sequence[tuple[str, Ranking]]
) -> str:
    """The averages, the matrix of differences, all pairs, and the mean ranks, for a terminal."""
    blocks = [_averages(contest) for contest in contests]
    for comparison in comparisons:
        blocks += [_matrix(comparison), _pairs(comparison)]
    return "\n\n".join("\n".join(block) for block in [*blocks, *(_ranking(*found) for found in rankings)]) + "\n"


def _averages(contest: Contest) -> list[str]:
    head = f"{contest.suite} · protocol {contest.suite_hash} · average %, 95 % interval over seeds (n)"
    body = []
    for row in contest.rows:
        means = [100 * fmean(scores) for scores in contest.scores[row].values()]
        interval = t_interval(means)
        shown = interval.reason if isinstance(interval, Undefined) else f"{interval[0]:.2f} to {interval[1]:.2f}"
        body.append((clean(row), f"{fmean(means):.2f}", f"{shown} ({len(means)})"))
    return [clean(head), *set_in_columns(body)]


def _matrix(comparison: Comparison) -> list[str]:
    """Row minus column, in points; the columns carry the rows' numbers."""
    rows = list(dict.fromkeys(name for pair in comparison.pairs for name in (pair.first, pair.second)))
    found = {(pair.first, pair.second): pair for pair in comparison.pairs}
    body = [("", "", *map(str, range(1, len(rows) + 1)))]
    for number, row in enumerate(rows, 1):
        cells = (_cell(found, row, other) for other in rows)
        body.append((str(number), clean(row), *cells))
    where = f"{comparison.suite} · {MEANING[comparison.test]}"
    family = f"row minus column in points; * adjusted p < {LEVEL} (Holm, {len(comparison.pairs)} pairs)"
    return [clean(where), family, *set_in_columns(body, left=(1,))]


def _cell(found: Mapping[tuple[str, str], Pair], row: str, other: str) -> str:
    if row == other:
        return "· "
    pair, sign = (found[row, other], 1) if (row, other) in found else (found[other, row], -1)
    if isinstance(pair.difference, Undefined):
        return DASH
    star = "*" if not isinstance(pair.p_holm, Undefined) and pair.p_holm < LEVEL else " "
    return f"{sign * 100 * pair.difference.mean:+.2f}{star}"


def _pairs(comparison: Comparison) -> list[str]:
    body = [("pair", "difference", "95 % interval", "p", "Holm p", f"n ({comparison.unit})")]
    reasons: dict[str, None] = {}
    for pair in comparison.pairs:
        names, found = clean(f"{pair.first} − {pair.second}"), pair.difference
        if isinstance(found, Undefined):
            body.append((names, DASH, DASH, DASH, DASH, "0"))
            reasons[f"{DASH}: {found.reason}"] = None
        else:
            ends = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
            chances = (chance(found.p), chance(pair.p_holm))
            body.append((names, f"{100 * found.mean:+.2f}", ends, *chances, str(found.n)))
    return [*set_in_columns(body), *reasons, *_cautions(comparison)]


def chance(p: Number) -> str:
    """A p as a reader sees it."""
    return DASH if isinstance(p, Undefined) else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _cautions(comparison: Comparison) -> list[str]:
    """What a reader must know of small numbers."""
    least = min((pair.difference.n for pair in comparison.pairs if isinstance(pair.difference, Difference)), default=0)
    if comparison.test == "bootstrap" and least == 1:
        return ["One common seed: the intervals hold for that seed only, another may fall outside them."]
    if comparison.test == "bootstrap" and 1 < least <= 4:
        return [f"{least} common seeds: the intervals are as wide as so few seeds make them."]
    if comparison.test == "mcnemar" and least:
        return ["These intervals hold for the trained models at hand; other seeds are not in them."]
    if comparison.test == "wilcoxon" and 0 < least < 6:
        return [f"{least} {comparison.unit}: no p can be below {2 / 2**least:.4g}."]
    return []


def _ranking(suite: str, ranking: Ranking) -> list[str]:
    head = (
        f"{suite} · mean ranks; Friedman p {chance(ranking.p)}; two differ where they are "
        f"{ranking.critical_difference:.2f} or more apart (Nemenyi, {LEVEL})"
    )
    body = [(clean(m), f"{rank:.2f}") for m, rank in zip(ranking.methods, ranking.mean_ranks, strict=True)]
    return [clean(head), ranking.unit, *set_in_columns(body)]


def set_in_columns(body: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Words in columns two spaces apart, all but those of `left` set to the right."""
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    return [
        "  "
        + "  ".join(f"{w:{n}}" if i in left else f"{w:>{n}}" for i, (w, n) in enumerate(zip(line, widths, strict=True)))
        .rstrip()
        for line in body
    ]  # fmt: skip


FORMATS = ("text", "csv", "json")
_DATA: Mapping[str, Callable[[Sequence[Comparison]], str]] = {"csv": csv, "json": to_json}


def render(
    comparisons: Sequence[Comparison],
    contests: Sequence[Contest],
    rankings: Callable[[], Sequence[tuple[str, Ranking]]],
    format: str,
) -> str:
    """The comparisons in one of FORMATS, of which text also has averages and mean ranks; UnknownName for another."""
    if format == "text":
        return text(comparisons, contests, rankings())
    if format not in _DATA:
        raise UnknownName("format of statistics", format, FORMATS)
    return _DATA[format](comparisons)
