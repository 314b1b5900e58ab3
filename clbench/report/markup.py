"""Markup: a table as Markdown or LaTeX source."""

from __future__ import annotations

import re

from clbench.report.grid import Cell, Grid, clean, grid
from clbench.table import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line break an opening bracket would begin an optional argument
    "]": "{]}",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    **{char: f"\\{char}" for char in "&%$#_"},
}


def escape_markdown(text: str) -> str:
    r"""The text with everything escaped that Markdown or HTML would read as markup.

    >>> escape_markdown("a|b*<i>")
    'a\\|b\\*&lt;i&gt;'
    """
    plain = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain)


def escape_latex(text: str) -> str:
    r"""The text with LaTeX's special characters escaped.

    >>> escape_latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return "".join(_LATEX.get(char, char) for char in clean(text))


def markdown(table: Table) -> str:
    """One table as a GitHub pipe table with its caption above and footnotes below; the best are bold.

    Averages that a paired test cannot tell from the best one are underlined.
    """
    shown = grid(table)
    lines = [f"**{escape_markdown(shown.caption)}**", ""]
    lines.append(_pipes([escape_markdown(heading) for heading in shown.headings]))
    lines.append(_pipes([":---" if i == 1 else "---:" for i in range(len(shown.headings))]))
    lines += [_pipes([_markdown_cell(cell) for cell in line]) for line in shown.lines]
    for mark, words in shown.footnotes:
        lines += ["", f"{escape_markdown(mark)}: {escape_markdown(words)}"]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """One table as a LaTeX float; needs the package booktabs. The best are bold.

    Averages that a paired test cannot tell from the best one are underlined.
    """
    shown = grid(table)
    rows = [" & ".join(map(_latex_cell, line)) + r" \\" for line in shown.lines]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(shown.caption)}}}",
            rf"\begin{{tabular}}{{{_alignment(shown)}}}",
            r"\toprule",
            " & ".join(escape_latex(heading) for heading in shown.headings) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {escape_latex(mark)}: {escape_latex(words)}}}" for mark, words in shown.footnotes),
            r"\end{table}",
            "",
        ]
    )


def _pipes(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    marks = f"<sup>{','.join(cell.marks)}</sup>" if cell.marks else ""
    return (f"**{text}**" if cell.best else f"<u>{text}</u>" if cell.tied else text) + marks


def _latex_cell(cell: Cell) -> str:
    text = re.sub(r"^-(?=\d)", "$-$", escape_latex(cell.text))
    marks = rf"\textsuperscript{{{','.join(cell.marks)}}}" if cell.marks else ""
    return (rf"\textbf{{{text}}}" if cell.best else rf"\underline{{{text}}}" if cell.tied else text) + marks


def _alignment(shown: Grid) -> str:
    return "".join("l" if i == 1 else "r" for i in range(len(shown.headings)))
