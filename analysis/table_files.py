"""A table as a file: CSV and Parquet with plain numbers, Markdown, LaTeX and HTML to read."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import MISSING, Entry, Table, show


def numbers(table: Table) -> pd.DataFrame:
    """The table flat: each number with its half-width `±` and its seeds `n`, and text as it is."""
    columns: dict[str, list[Any]] = {}
    index = table.cells.index
    for level, name in enumerate(index.names):
        columns[str(name)] = list(index.get_level_values(level))
    for (group, name), cells in zip(table.columns, table.cells.to_numpy().T.tolist(), strict=True):
        title = " ".join(filter(None, (group, name)))
        if any(isinstance(cell, Entry) for cell in cells):
            entries = [cell if isinstance(cell, Entry) else Entry(None) for cell in cells]
            columns[title] = [entry.value for entry in entries]
            columns[f"{title} ±"] = [entry.half for entry in entries]
            columns[f"{title} n"] = [entry.n for entry in entries]
        elif group.startswith("paper"):
            columns[title] = [float(cell) if cell not in ("", None, MISSING) else None for cell in cells]
        else:
            columns[title] = [None if cell in (None, MISSING) else cell for cell in cells]
    frame = pd.DataFrame(columns)
    for name in frame:
        if frame[name].isna().all() and name not in index.names:
            frame[name] = frame[name].astype(float)
    return frame


def csv(table: Table) -> bytes:
    """Plain numbers, full precision, empty where missing."""
    return numbers(table).to_csv(index=False).encode()


def parquet(table: Table) -> bytes:
    """As `csv`, typed."""
    return numbers(table).to_parquet(index=False)


def markdown(table: Table) -> str:
    """Title and caption above, the missing stage runs below."""
    usual = table.usual_n
    head = [*map(str, table.cells.index.names), *(" ".join(filter(None, column)) for column in table.columns)]
    lines = ["| " + " | ".join(map(_bar, head)) + " |", "|" + " --- |" * len(head)]
    for key, row in zip(table.cells.index, table.cells.to_numpy(), strict=True):
        parts = [_plain(part) for part in (key if isinstance(key, tuple) else (key,))]
        cells = [f"**{show(cell, usual)}**" if _best(cell) else show(cell, usual) for cell in row]
        lines.append("| " + " | ".join(map(_bar, [*parts, *cells])) + " |")
    missing = "".join(f"\n* `{name}`" for name in table.lacks)
    note = f"\n{MISSING} waits for these stage runs:\n{missing}\n" if table.lacks else ""
    return f"**{table.title}.** {table.caption}\n\n" + "\n".join(lines) + "\n" + note


def _bar(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _plain(part: Any) -> str:
    return f"{part:,}" if isinstance(part, int) else str(part)


def _best(cell: Any) -> bool:
    return isinstance(cell, Entry) and cell.best


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "β": r"$\beta$", "λ": r"$\lambda$", "±": r"$\pm$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
"""Characters that LaTeX reads otherwise."""


def escape(text: str) -> str:
    """`text` so that LaTeX prints it."""
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A `table` environment with booktabs rules, scaled to the line where it is wide; needs booktabs and graphicx."""
    usual = table.usual_n
    names = list(map(str, table.cells.index.names))
    groups: list[tuple[str, int]] = []
    for group, _ in table.columns:
        if groups and groups[-1][0] == group:
            groups[-1] = (group, groups[-1][1] + 1)
        else:
            groups.append((group, 1))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(f'{table.title}. {table.caption}')}}}"]
    lines += [
        rf"\label{{tab:{_label(table.name)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
    ]
    lines += [rf"\begin{{tabular}}{{{'l' * len(names)}{'r' * len(table.columns)}}}", r"\toprule"]
    if any(group for group, _ in groups):
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}" for group, width in groups]
        lines.append(" & ".join([*[""] * len(names), *spans]) + r" \\")
    lines.append(" & ".join(escape(name) for name in [*names, *(name for _, name in table.columns)]) + r" \\")
    lines.append(r"\midrule")
    previous: tuple[Any, ...] = ()
    for key, row in zip(table.cells.index, table.cells.to_numpy(), strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) > 1 and previous and previous[0] != parts[0]:
            lines.append(r"\addlinespace")
        shown = [
            "" if len(parts) > 1 and i == 0 and previous[:1] == parts[:1] else _plain(p) for i, p in enumerate(parts)
        ]
        cells = [rf"\textbf{{{escape(show(c, usual))}}}" if _best(c) else escape(show(c, usual)) for c in row]
        lines.append(" & ".join([*map(escape, shown), *cells]) + r" \\")
        previous = parts
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _label(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-.:" else "-" for c in name)


def html_table(table: Table) -> str:
    """A `<table>` fragment with caption and scopes, all text escaped."""
    usual = table.usual_n
    names = list(map(str, table.cells.index.names))
    out = [f"<table>\n<caption>{html.escape(f'{table.title}. {table.caption}')}</caption>\n<thead><tr>"]
    titles = [*names, *(" ".join(filter(None, column)) for column in table.columns)]
    out += [f'<th scope="col">{html.escape(title)}</th>' for title in titles]
    out.append("</tr></thead>\n<tbody>\n")
    for key, row in zip(table.cells.index, table.cells.to_numpy(), strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        out.append("<tr>" + "".join(f'<th scope="row">{html.escape(_plain(part))}</th>' for part in parts))
        for cell in row:
            text = html.escape(show(cell, usual))
            out.append(f"<td>{f'<strong>{text}</strong>' if _best(cell) else text}</td>")
        out.append("</tr>\n")
    return "".join([*out, "</tbody>\n</table>\n"])


Writer = Callable[[Table], str | bytes]

FORMATS: dict[str, tuple[str, Writer]] = {
    "csv": ("csv", csv),
    "parquet": ("parquet", parquet),
    "markdown": ("md", markdown),
    "latex": ("tex", latex),
    "html": ("html", html_table),
}
"""Name of a format -> the ending of its files, and who writes it."""


FILLED_BY = {"markdown": "\nThis computes them: `{}`\n", "latex": "% What is missing is computed by: {}\n"}
"""Name of a format -> how it says which command fills a table's gaps."""


def write_table(table: Table, folder: Path, formats: list[str], command: str) -> None:
    """The table in `folder`, one file for each of `formats`; `command` fills its gaps."""
    for name in formats:
        ending, writer = FORMATS[name]
        content = writer(table)
        path = folder / f"{file_name(table)}.{ending}"
        if isinstance(content, str):
            gaps = FILLED_BY.get(name, "").format(command) if table.lacks else ""
            content = (content + gaps).encode()
        path.write_bytes(content)


def file_name(table: Table) -> str:
    """The table's name as a file: no character that a shell or a file system reads otherwise."""
    return "".join(c if c.isalnum() or c in "-._=,+" else "_" for c in table.name)
