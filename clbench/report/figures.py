"""Figures: the charts of one suite, from its records."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import altair as alt
from altair.typing import ChartType

from clbench.record import Record
from clbench.report.grid import brief, clean
from clbench.report.palette import Style, styles
from clbench.report.series import EVALUATION, FIRST, REST, Series, series, task_names
from clbench.table import exams

WIDTH, HEIGHT = 640, 320
"""Pixels of a chart on its own; on a page a fluid one takes the width that there is."""
MATRIX, MATRIX_COLUMNS = 132, 4
FEW_TASKS = 12
"""Up to so many tasks each cell of a heat map has room for its number."""
PALE = 20.0
"""Percentage points: the scale of forgetting ends there at least, so that a little of it does not look like much."""
PHASE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
QUIET = "#8a8a8a"
WIDE = 20
"""Seconds are drawn on a logarithmic scale where the slowest is so many times the fastest."""
GALLERY = ("curves", "pareto", "forgetting", "cost")

_LEGEND_ROWS = 18
"""As many as are as high as a chart."""
_FREE = alt.Scale(zero=False)
_CONFIG = alt.Config(
    font="system-ui, sans-serif",
    view=alt.ViewConfig(stroke=None),
    axis=alt.AxisConfig(gridColor="#ececec", labelFontSize=11, titleFontSize=11, titleFontWeight="normal"),
    legend=alt.LegendConfig(labelLimit=300, symbolSize=90, labelFontSize=11, rowPadding=3),
    title=alt.TitleConfig(anchor="start", fontSize=14, offset=12),
)


@dataclass(frozen=True)
class Figure:
    """A chart, its title, and what is seen in it in a sentence or two."""

    name: str
    """Of its files; no two of one suite are the same."""
    title: str
    caption: str
    chart: ChartType
    fluid: bool = True
    """Whether its width may be any."""
    by_row: bool = True
    """Whether its data name their `row`, so that rows can be filtered."""


def figures(rows: Sequence[Series], look: Mapping[str, Style]) -> list[Figure]:
    """Every figure that these rows of one table give, in the order of a page; `look` holds a style for each label."""
    drawn = [each for each in (_curves(rows, look), _matrices(rows), _forgetting(rows)) if each]
    devices = sorted({row.device for row in rows})
    for where in devices:
        timed = [row for row in rows if row.device == where and row.costly]
        if timed:
            drawn += [_on(where, each, devices) for each in _of_device(timed, look)]
    return drawn


def gallery_figures(
    records: Iterable[Record], *, order: Sequence[str] = (), stale: Collection[str] = ()
) -> list[tuple[str, ChartType, str]]:
    """The most telling charts of one suite and protocol hash, with names and captions; of its first device.

    `order` are the listed methods in their order, which gives them their colours; `stale` as in
    `table.make_tables`.
    """
    rows = series(next(iter(exams(records, stale).values()), ()))
    look = styles({row.label: row.name for row in rows}, order)
    drawn = {each.name.split("-")[0]: each for each in reversed(figures(rows, look))}
    return [(name, drawn[name].chart, drawn[name].caption) for name in GALLERY if name in drawn]


def _of_device(rows: Sequence[Series], look: Mapping[str, Style]) -> Iterable[Figure]:
    pareto = _pareto(rows, look)
    if pareto:
        yield pareto
    yield _budget(rows, look)
    yield _cost(rows)
    peak = "Peak memory while learning"
    seen = (
        "The most device memory that learning a task took, in MiB, mean over seeds; of a CPU, what the process grew by."
    )
    yield _memory("peak", peak, seen, rows, look, Series.peak_mib)
    kept = "All that a method keeps for later tasks and for answering, beyond the untouched backbone, in MiB."
    yield _memory("stored", "Kept after the last task", kept, rows, look, Series.stored_mib)


def _on(where: str, figure: Figure, devices: Sequence[str]) -> Figure:
    """Seconds and memory are told apart by device."""
    if len(devices) == 1:
        return figure
    name = f"{figure.name}-{devices.index(where) + 1}"
    return replace(figure, name=name, title=f"{figure.title}, on {clean(where)}")


def _score(rows: Sequence[Series]) -> str:
    return clean(rows[0].runs[0].score_name)


def _styled(
    rows: Sequence[Series], look: Mapping[str, Style], outline: int = 2
) -> tuple[alt.Color, alt.StrokeDash, alt.Shape]:
    """One legend for colour, dash and marker, in the order of the rows; its signs have an `outline` of pixels."""
    labels = [row.label for row in rows]
    mine = [look[label] for label in labels]

    same: dict[str, Any] = {
        "title": None,
        "sort": None,
        # Without a limit, Vega hides what comes after the thirtieth row.
        "legend": alt.Legend(
            symbolOpacity=1, symbolStrokeWidth=outline, symbolLimit=0, columns=-(-len(rows) // _LEGEND_ROWS)
        ),
    }

    def scale(values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=labels, range=list(values))

    return (
        alt.Color("row:N", scale=scale([each.colour for each in mine]), **same),
        alt.StrokeDash("row:N", scale=scale([list(each.dash) for each in mine]), **same),
        alt.Shape("row:N", scale=scale([each.shape for each in mine]), **same),
    )


def _picked() -> tuple[alt.Parameter, Any]:
    """A click on the legend leaves one row bright."""
    picked = alt.selection_point(fields=["row"], bind="legend")
    return picked, alt.when(picked).then(alt.value(1)).otherwise(alt.value(0.12))


def _finished(chart: ChartType, title: str, caption: str) -> ChartType:
    return chart.properties(title=title, description=caption, config=_CONFIG)


def _curves(rows: Sequence[Series], look: Mapping[str, Style]) -> Figure | None:
    values = [
        {"row": row.label, "round": point.x, "mean": point.mean, "low": point.low, "high": point.high}
        for row in rows
        for point in row.curve()
    ]
    if not values:
        return None
    name, title = _score(rows), f"Average {_score(rows)} after each task"
    caption = (
        f"How the mean {name} over the tasks seen so far goes as tasks are added: the line is the mean over seeds, the "
        "band runs from the lowest seed to the highest. A lone marker was scored after the last task only."
    )
    colour, dash, shape = _styled(rows, look, outline=0)
    picked, bright = _picked()
    mean, low = (alt.Y(f"{end}:Q", title=f"average {name} of seen tasks (%)", scale=_FREE) for end in ("mean", "low"))
    base = alt.Chart().encode(
        x=alt.X("round:O", title="tasks learned", axis=alt.Axis(labelAngle=0, labelOverlap=True)), color=colour
    )
    tips = ["row:N", "round:O", *(alt.Tooltip(f"{which}:Q", format=".2f") for which in ("mean", "low", "high"))]
    layers = (
        base.mark_area(opacity=0.13).encode(y=low, y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=mean, strokeDash=dash, opacity=bright).add_params(picked),
        base.mark_point(filled=True, size=45).encode(y=mean, shape=shape, opacity=bright, tooltip=tips),
    )
    chart = alt.layer(*layers, data=alt.InlineData(values=values), width=WIDTH, height=HEIGHT)
    return Figure("curves", title, caption, _finished(chart, title, caption))


def _matrices(rows: Sequence[Series]) -> Figure | None:
    """One line of data a round: task by task it would be a page's largest part."""
    values = [
        {
            "row": row.label,
            "after": after,
            "task": tasks,
            "score": [round(scores[task - 1] or 0.0, 1) for task in tasks],
        }
        for row in rows
        for after, scores in enumerate(row.matrix(), 1)
        if (tasks := [task for task, score in enumerate(scores, 1) if score is not None])
    ]
    if not values:
        return None
    name, title = _score(rows), f"{_score(rows).capitalize()} on each task, after each task"
    caption = (
        f"Each square shows the {name} (%, mean over seeds) on a task (column) after so many tasks (line): "
        "a column that darkens downwards is a task that is being forgotten."
    )
    names = [{"task": number, "name": task} for number, task in enumerate(task_names(rows[0].runs[0]), 1)]
    axis = alt.Axis(labelAngle=0, labelOverlap=True, labelFontSize=9)
    header = alt.Header(labelLimit=MATRIX + 20, labelFontSize=11, labelAnchor="start", title=None)
    chart = (
        alt.Chart(alt.InlineData(values=values), mark="rect", width=MATRIX, height=MATRIX)
        .transform_flatten(["task", "score"])
        .transform_lookup("task", alt.LookupData(alt.InlineData(values=names), "task", ["name"]))
        .encode(
            x=alt.X("task:O", title="task", axis=axis),
            y=alt.Y("after:O", title="tasks learned", axis=axis),
            color=alt.Color("score:Q", title="%", scale=alt.Scale(scheme="cividis", domain=[0, 100])),
            facet=alt.Facet(
                "row:N", columns=MATRIX_COLUMNS, sort=[row.label for row in rows], header=header, title=None
            ),
            tooltip=["row:N", "name:N", "after:O", alt.Tooltip("score:Q", format=".1f")],
        )
    )
    return Figure("matrices", title, caption, _finished(chart, title, caption), fluid=False)


def _forgetting(rows: Sequence[Series]) -> Figure | None:
    names = task_names(rows[0].runs[0]) if rows else []
    values = [
        {"row": row.label, "task": name, "lost": round(lost, 2)}
        for row in rows
        for name, lost in zip(names, row.forgotten(), strict=False)
        if lost is not None
    ]
    if not values:
        return None
    name, title = _score(rows), "Forgetting of each task"
    caption = (
        f"How much of its best past {name} each task has lost after the last one, in percentage points, mean over "
        "seeds; below 0 it became better. The last task cannot be forgotten yet."
    )
    losses = [lost for row in rows for lost in row.forgotten() if lost is not None]
    low, high = min([0.0, *losses]), max([PALE, *losses])
    axis = alt.Axis(labelAngle=-35 if max(map(len, names)) > 4 else 0, labelLimit=110, labelOverlap=True)
    base = alt.Chart().encode(
        x=alt.X("task:N", title=None, sort=names, axis=axis),
        y=alt.Y("row:N", title=None, sort=[row.label for row in rows], axis=alt.Axis(labelLimit=220)),
    )
    fill = alt.Color("lost:Q", title="points", scale=alt.Scale(scheme="oranges", domain=[low, high]))
    tips = ["row:N", "task:N", alt.Tooltip("lost:Q", format=".2f")]
    layers = [base.mark_rect().encode(color=fill, tooltip=tips)]
    if len(names) <= FEW_TASKS:
        dark = (
            alt.when(f"datum.lost > {low + 0.6 * (high - low)}").then(alt.value("white")).otherwise(alt.value("#222"))
        )
        layers.append(base.mark_text(fontSize=10).encode(text=alt.Text("lost:Q", format=".0f"), color=dark))
    chart = alt.layer(*layers, data=alt.InlineData(values=values), width=WIDTH, height=alt.Step(20))
    return Figure("forgetting", title, caption, _finished(chart, title, caption))


def _pareto(rows: Sequence[Series], look: Mapping[str, Style]) -> Figure | None:
    ends = [(row, end) for row in rows if (end := row.final())]
    if not ends:
        return None
    front, best = set(), -1.0
    for row, end in sorted(ends, key=lambda pair: (pair[1].x, -pair[1].mean)):
        if end.mean > best:
            front.add(row.label)
            best = end.mean
    slowest, fastest = max(end.x for _, end in ends), min(end.x for _, end in ends)
    wide = fastest > 0 and slowest > WIDE * fastest
    middle = (slowest * fastest) ** 0.5 if wide else (slowest + fastest) / 2
    values = [
        {"row": row.label, "seconds": end.x, "mean": end.mean, "low": end.low, "high": end.high}
        | {"front": row.label in front, "beyond": end.x > middle}
        for row, end in ends
    ]
    name = _score(rows)
    title = f"Average {name} against training seconds"
    caption = (
        "Up and to the left is better. The dashed line is the Pareto front: no row is both better and faster than one "
        f"that lies on it. Upright lines run from the lowest seed to the highest.{_shared(rows)}"
    )
    colour, _, shape = _styled([row for row, _ in ends], look)
    picked, bright = _picked()
    across = alt.Scale(type="log", nice=False, padding=30) if wide else _FREE
    seconds = alt.X("seconds:Q", title="training seconds", scale=across)
    score, low = (alt.Y(f"{end}:Q", title=f"average {name} (%)", scale=_FREE) for end in ("mean", "low"))
    base = alt.Chart().encode(x=seconds)
    led = base.transform_filter("datum.front").encode(y=score)
    tips = ["row:N", *(alt.Tooltip(f"{which}:Q", format=".2f") for which in ("seconds", "mean", "low", "high"))]
    layers = (
        led.mark_line(interpolate="step-after", color=QUIET, strokeDash=[4, 3]).encode(order="seconds:Q"),
        base.mark_rule().encode(y=low, y2="high:Q", color=colour, opacity=bright),
        base.mark_point(filled=True, size=110)
        .encode(y=score, color=colour, shape=shape, opacity=bright, tooltip=tips)
        .add_params(picked),
        led.transform_filter("!datum.beyond").mark_text(align="left", dx=8, dy=-9).encode(text="row:N"),
        led.transform_filter("datum.beyond").mark_text(align="right", dx=-8, dy=-9).encode(text="row:N"),
    )
    chart = alt.layer(*layers, data=alt.InlineData(values=values), width=WIDTH, height=HEIGHT)
    return Figure("pareto", title, caption, _finished(chart, title, caption))


def _budget(rows: Sequence[Series], look: Mapping[str, Style]) -> Figure:
    steps = {row.label: row.progress() for row in rows}
    end = max((seconds for each in steps.values() for seconds, _ in each), default=0.0)
    values = [
        {"row": label, "seconds": seconds, "score": score}
        for label, each in steps.items()
        for seconds, score in [(0.0, 0.0), *each, (end, each[-1][1] if each else 0.0)]
    ]
    name = _score(rows)
    title = f"{name.capitalize()} at equal budget"
    caption = (
        f"What a method knows of the whole exam once so many training seconds are spent: mean {name} over "
        "all tasks, where one that is not learned yet counts 0. Read along an upright line to compare at equal budget; "
        "whoever has finished keeps its last value."
    )
    colour, dash, _ = _styled(rows, look)
    picked, bright = _picked()
    chart = (
        alt.Chart(alt.InlineData(values=values), width=WIDTH, height=HEIGHT)
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=alt.X("seconds:Q", title="training seconds spent", scale=alt.Scale(nice=False)),
            y=alt.Y("score:Q", title=f"{name} over all tasks (%)"),
            color=colour,
            strokeDash=dash,
            opacity=bright,
            tooltip=["row:N", *(alt.Tooltip(f"{which}:Q", format=".2f") for which in ("seconds", "score"))],
        )
        .add_params(picked)
    )
    return Figure("budget", title, caption, _finished(chart, title, caption))


def _cost(rows: Sequence[Series]) -> Figure:
    parts = {row.label: row.phases() for row in rows}
    others = {phase for each in parts.values() for phase in each} - {REST, FIRST, EVALUATION}
    order = [REST, *sorted(others), FIRST, EVALUATION]
    values = [
        {"row": label, "phase": clean(phase), "place": order.index(phase), "seconds": seconds}
        for label, each in parts.items()
        for phase, seconds in each.items()
    ]
    title = "Where the seconds go"
    caption = (
        "Device seconds of a run, mean over seeds, by what they went into: training, its named phases, each task's "
        f"first step, and scoring the test examples.{_shared(rows)}"
    )
    colours = [PHASE_COLOURS[i % len(PHASE_COLOURS)] for i in range(len(order))]
    scale = alt.Scale(domain=[clean(phase) for phase in order], range=colours)
    chart = (
        alt.Chart(alt.InlineData(values=values), width=WIDTH, height=alt.Step(20))
        .mark_bar()
        .encode(
            x=alt.X("seconds:Q", title="seconds", stack="zero"),
            y=alt.Y("row:N", title=None, sort=list(parts), axis=alt.Axis(labelLimit=220)),
            color=alt.Color("phase:N", title=None, scale=scale, legend=alt.Legend(orient="top")),
            order="place:Q",
            tooltip=["row:N", "phase:N", alt.Tooltip("seconds:Q", format=".3g")],
        )
    )
    return Figure("cost", title, caption, _finished(chart, title, caption))


def _memory(
    name: str,
    title: str,
    caption: str,
    rows: Sequence[Series],
    look: Mapping[str, Style],
    read: Callable[[Series], float],
) -> Figure:
    values = [{"row": row.label, "mib": mib, "words": brief(mib)} for row in rows for mib in [read(row)]]
    colours = alt.Scale(domain=[row.label for row in rows], range=[look[row.label].colour for row in rows])
    room = alt.Scale(domain=[0, 1.25 * max(1e-6, *map(read, rows))], nice=False)  # for the numbers
    base = alt.Chart().encode(
        x=alt.X("mib:Q", title="MiB", scale=room),
        y=alt.Y("row:N", title=None, sort=[row.label for row in rows], axis=alt.Axis(labelLimit=220)),
    )
    layers = (
        base.mark_bar().encode(color=alt.Color("row:N", scale=colours, legend=None), tooltip=["row:N", "mib:Q"]),
        base.mark_text(align="left", dx=4, fontSize=10).encode(text="words:N"),
    )
    chart = alt.layer(*layers, data=alt.InlineData(values=values), width=WIDTH, height=alt.Step(20))
    return Figure(name, title, caption, _finished(chart, title, caption))


def _shared(rows: Sequence[Series]) -> str:
    shared = [row.label for row in rows if row.contended]
    if not shared:
        return ""
    whose = "every row" if len(shared) == len(rows) else ", ".join(shared)
    return f" The seconds of {whose} say less: the runs shared the device with others."
