"""A sheet of grids as markdown, LaTeX (booktabs), HTML or on the terminal (rich). Every name is escaped for its format."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from analysis.sides import DASH

TIMES = "×"  # noqa: RUF001
TIED = "†"


@dataclass(frozen=True)
class Entry:
    """One cell as text, before escaping."""

    text: str
    bold: bool = False
    tied: bool = False
    small: str = ""
    """After the text, in small: the spread."""
    second: bool = False
    """Underlined."""

    @property
    def plain(self) -> str:
        """Without any form."""
        return f"{self.text} {self.small}".rstrip() + (TIED if self.tied else "")


@dataclass(frozen=True)
class Grid:
    """Lines of entries under titles; a line of one entry is a heading over the lines that follow it."""

    titles: list[str]
    lines: list[list[Entry]]
    text: int
    """How many of the first columns are text; the others are numbers."""
    caption: str = ""


@dataclass(frozen=True)
class Sheet:
    """All that an output format shows."""

    title: str
    heading: str
    grids: list[Grid]
    notes: list[str]
    comparisons: list[str] = field(default_factory=list)


def markdown(sheet: Sheet) -> str:
    """GitHub-flavoured markdown."""
    parts = [f"## {_markdown(sheet.title)}"] + ([f"**{_markdown(sheet.heading)}**"] if sheet.heading else [])
    for grid in sheet.grids:
        lines = [[_markdown(title) for title in grid.titles], ["---"] * grid.text + ["---:"] * (len(grid.titles) - grid.text)]
        lines += [_filled([_markdown_entry(e) for e in line], len(grid.titles), "**{}**") for line in grid.lines]
        parts += ([_markdown(grid.caption)] if grid.caption else []) + ["\n".join(f"| {' | '.join(line)} |" for line in lines)]
    if sheet.comparisons:
        parts.append("Paired differences (95 % interval):\n\n" + "\n".join(f"- {_markdown(text)}" for text in sheet.comparisons))
    if sheet.notes:
        parts.append("Notes:\n\n" + "\n".join(f"- {_markdown(note)}" for note in sheet.notes))
    return "\n\n".join(parts) + "\n"


def _filled(line: list[str], width: int, heading: str) -> list[str]:
    return line if len(line) == width else [heading.format(line[0]), *[""] * (width - 1)]


def _markdown(text: str) -> str:
    """Backslashes before what markdown would read, entities for what HTML would."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#$" else c for c in text)


def _markdown_entry(entry: Entry) -> str:
    text = _markdown(entry.text)
    text = f"**{text}**" if entry.bold else f"<ins>{text}</ins>" if entry.second else text
    spread = f" <small>{_markdown(entry.small)}</small>" if entry.small else ""
    return text + spread + (TIED if entry.tied else "")


def latex(sheet: Sheet) -> str:
    """`tabular` environments with booktabs; needs `\\usepackage{booktabs}`."""
    parts = [f"% {_latex(sheet.title)}"] + ([rf"\textbf{{{_latex(sheet.heading)}}}\par"] if sheet.heading else [])
    for grid in sheet.grids:
        width = len(grid.titles)
        lines = [rf"\begin{{tabular}}{{{'l' * grid.text}{'r' * (width - grid.text)}}}", r"\toprule"]
        lines += [_latex_line(_latex(title) for title in grid.titles), r"\midrule"]
        for i, line in enumerate(grid.lines):
            lines += _latex_heading(line[0], width, first=i == 0) if len(line) == 1 else [_latex_line(map(_latex_entry, line))]
        caption = [rf"{_latex(grid.caption)}\par"] if grid.caption else []
        parts.append("\n".join([*caption, *lines, r"\bottomrule", r"\end{tabular}\par"]))
    notes = (*sheet.comparisons, *sheet.notes)
    if notes:
        parts.append("\\begin{itemize}\\footnotesize\n" + "\n".join(rf"\item {_latex(note)}" for note in notes) + "\n\\end{itemize}")
    return "\n\n".join(parts) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "{''}", "±": r"$\pm$", TIMES: r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    TIED: r"$^\dagger$", DASH: "--", **{c: f"\\{c}" for c in "&%$#_{}"}, "[": "{[}", "]": "{]}",
}  # fmt: skip
"""Brackets are wrapped, since one after a line break would be read as its optional argument."""


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))


def _latex_entry(entry: Entry) -> str:
    text = _latex(entry.text)
    text = rf"\textbf{{{text}}}" if entry.bold else rf"\underline{{{text}}}" if entry.second else text
    spread = rf" {{\scriptsize {_latex(entry.small)}}}" if entry.small else ""
    return text + spread + (LATEX[TIED] if entry.tied else "")


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_heading(entry: Entry, width: int, *, first: bool) -> list[str]:
    return [*([] if first else [r"\midrule"]), rf"\multicolumn{{{width}}}{{l}}{{\textit{{{_latex(entry.text)}}}}} \\"]


STYLE = (
    ":root{color-scheme:light dark}body{font-family:system-ui,sans-serif;margin:2rem}table{border-collapse:collapse}"
    ".scroll{overflow-x:auto;margin:1rem 0}caption{text-align:left;padding:.2rem .6rem}li{margin:.2rem 0}"
    "th,td{padding:.2rem .6rem;text-align:right}td:not(.text),thead th{white-space:nowrap}"
    ".text{text-align:left}thead th{border-bottom:1px solid}small{opacity:.75}"
    "tbody th[colspan]{font-style:italic;border-top:1px solid}"
)


def html(sheet: Sheet) -> str:
    """One plain page without scripts, which fetches nothing."""
    parts = [f"<h1>{_html(sheet.title)}</h1>"] + ([f"<p><strong>{_html(sheet.heading)}</strong></p>"] if sheet.heading else [])
    for grid in sheet.grids:
        caption = f"<caption>{_html(grid.caption)}</caption>" if grid.caption else ""
        head = "".join(f'<th scope="col"{_class(i, grid)}>{_html(title)}</th>' for i, title in enumerate(grid.titles))
        body = "".join(f"<tr>{_html_line(line, grid)}</tr>" for line in grid.lines)
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        parts.append(f'<div class="scroll" tabindex="0" role="region" aria-label="{_html(grid.caption or sheet.title)}">{table}</div>')
    if notes := (*sheet.comparisons, *sheet.notes):
        parts.append("<ul>" + "".join(f"<li>{_html(note)}</li>" for note in notes) + "</ul>")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    wide = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{wide}<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{_html(sheet.title)}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _html(text: str) -> str:
    return escape(" ".join(text.split()))


def _class(index: int, grid: Grid) -> str:
    return ' class="text"' if index < grid.text else ""


def _html_line(line: Sequence[Entry], grid: Grid) -> str:
    if len(line) == 1:
        return f'<th scope="rowgroup" class="text" colspan="{len(grid.titles)}">{_html(line[0].text)}</th>'
    return "".join(f"<td{_class(i, grid)}>{_html_entry(entry)}</td>" for i, entry in enumerate(line))


def _html_entry(entry: Entry) -> str:
    text = _html(entry.text)
    text = f"<strong>{text}</strong>" if entry.bold else f"<u>{text}</u>" if entry.second else text
    spread = f" <small>{_html(entry.small)}</small>" if entry.small else ""
    return text + spread + (f'<abbr title="cannot be told from the best">{TIED}</abbr>' if entry.tied else "")


def terminal(sheet: Sheet) -> Group:
    """What rich prints."""
    parts: list[Text | RichTable] = [Text(sheet.title, style="bold"), *([Text(sheet.heading, style="yellow")] if sheet.heading else [])]
    parts += [_rich(grid) for grid in sheet.grids]
    return Group(*parts, *(Text(f"- {text}") for text in sheet.comparisons), *(Text(f"- {note}", style="dim") for note in sheet.notes))


def _rich(grid: Grid) -> RichTable:
    title = Text(grid.caption) if grid.caption else None
    shown = RichTable(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for i, name in enumerate(grid.titles):
        if i < grid.text:
            shown.add_column(Text(name), min_width=14 if i == grid.text - 1 else None, overflow="fold")
        else:
            shown.add_column(Text(name.replace(" ", "\n", 1)), justify="right", no_wrap=True)
    for line in grid.lines:
        if len(line) == 1:
            shown.add_section()
        shown.add_row(*(Text(entry.plain, style=_rich_style(entry, heading=len(line) == 1)) for entry in line))
    return shown


def _rich_style(entry: Entry, *, heading: bool) -> str:
    return "italic" if heading else "bold green" if entry.bold else "underline" if entry.second else ""


def natural_width(shown: Group) -> int:
    """Columns that the widest table of `terminal(...)` needs: with fewer, rich cuts numbers and drops the methods' names."""
    wide = Console(width=10_000)
    return max((Measurement.get(wide, wide.options, part).maximum for part in shown.renderables if isinstance(part, RichTable)), default=0)


def plain(sheet: Sheet, width: int = 160) -> str:
    """The terminal form as text, for a file."""
    out, shown = io.StringIO(), terminal(sheet)
    Console(width=max(width, natural_width(shown)), file=out, force_terminal=False).print(shown)
    return out.getvalue()
