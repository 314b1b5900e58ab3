"""Charts: charts as PNG files, and together as one page that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

import altair as alt
import vl_convert
from altair.typing import ChartType

from clbench.errors import ClbenchError
from clbench.files import write_atomically
from clbench.report.grid import clean

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version that Altair writes for; the page and the PNG must draw with the same."""

EMBED = {"renderer": "canvas", "actions": {"export": True, "source": False, "compiled": False, "editor": False}}
"""No link to Vega's editor: it lies on the network."""

_LIBRARY = "window.vegaEmbed = vegaEmbed;"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem; color: #222; }}
h1 {{ font-size: 1.2rem; }}
figure {{ margin: 2rem 0; overflow-x: auto; }}
</style>
<script>{library}</script>
</head>
<body>
<h1>{title}</h1>
{figures}
<script>
const charts = {specs};
for (const [name, spec] of Object.entries(charts)) vegaEmbed("#" + name, spec, {options});
</script>
</body>
</html>
"""


def png(chart: ChartType, scale: float = 2.0) -> bytes:
    """The chart as a PNG of 72 * `scale` pixels an inch."""
    return vl_convert.vegalite_to_png(spec(chart), vl_version=VEGA_LITE, scale=scale)


def svg(chart: ChartType) -> bytes:
    """The chart as an SVG file."""
    return vl_convert.vegalite_to_svg(spec(chart), vl_version=VEGA_LITE).encode()


def library() -> str:
    """The JavaScript that draws charts, `vegaEmbed`; it loads nothing."""
    return vl_convert.javascript_bundle(_LIBRARY, vl_version=VEGA_LITE)


def spec(chart: ChartType) -> str:
    """The chart as Vega-Lite JSON with its data, to stand in a script element of a page."""
    return json.dumps(chart.to_dict(), ensure_ascii=False).replace("<", "\\u003c")


def page(title: str, charts: Mapping[str, ChartType]) -> str:
    """All charts, name to chart, below each other on one HTML page that loads nothing."""
    figures = "\n".join(f'<figure id="{escape(name)}"></figure>' for name in charts)
    specs = ",\n".join(f"{json.dumps(name)}: {spec(chart)}" for name, chart in charts.items())
    return _PAGE.format(
        title=escape(clean(title)),
        library=library(),
        figures=figures,
        specs=f"{{{specs}}}",
        options=json.dumps(EMBED),
    )


def write(charts: Mapping[str, ChartType], folder: Path, title: str, page_name: str) -> list[Path]:
    """Write a NAME.png for each chart and one page with all of them into `folder`; returns the paths.

    Raises ClbenchError naming the path where it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ClbenchError(f"cannot draw into '{folder}': it is a file; name a folder.")
    files = {f"{name}.png": png(chart) for name, chart in charts.items()}
    files[page_name] = page(title, charts).encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]
