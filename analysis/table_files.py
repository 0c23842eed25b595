"""Tables as files: CSV and Parquet with plain numbers; Markdown, LaTeX and HTML for reading.

A further format is one entry in `FORMATS`; tests/analysis/test_reproduce.py reads every format back.
"""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import MISSING, NOT_RUN, Entry, Table, show
from pipelines.foreign_text import defused


def numbers(table: Table) -> pd.DataFrame:
    """Returns the table with flat columns: each number with its interval and its seeds `n`, and text as is."""
    columns: dict[str, list[Any]] = {}
    index = table.cells.index
    for level, name in enumerate(table.index_names):
        columns[name] = list(index.get_level_values(level))
    cells_by_column = table.cells.to_numpy().T.tolist()
    for (group, _), title, cells in zip(table.columns, table.column_titles, cells_by_column, strict=True):
        if any(isinstance(cell, Entry) for cell in cells):
            entries = [cell if isinstance(cell, Entry) else Entry(None) for cell in cells]
            columns[title] = [entry.value for entry in entries]
            columns[f"{title} low"] = [entry.low for entry in entries]
            columns[f"{title} high"] = [entry.high for entry in entries]
            columns[f"{title} n"] = [entry.n for entry in entries]
        elif group.startswith("paper"):
            columns[title] = [float(cell) if cell not in ("", None, MISSING) else None for cell in cells]
        else:
            columns[title] = [None if cell in (None, MISSING) else cell for cell in cells]
    frame = pd.DataFrame(columns)
    # An empty column is a column of numbers, so that its type does not depend on what was measured.
    for title in columns:
        if frame[title].isna().all() and title not in table.index_names:
            frame[title] = frame[title].astype(float)
    return frame


def csv(table: Table) -> bytes:
    """Plain numbers in full precision, empty if missing."""
    return csv_bytes(numbers(table))


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """Returns the rows as CSV, in which no text is one that a spreadsheet runs."""
    texts = frame.select_dtypes(exclude="number").columns
    safe = frame.assign(**{name: frame[name].map(defused) for name in texts}).rename(columns=defused)
    return safe.to_csv(index=False).encode(errors="replace")


def parquet(table: Table) -> bytes:
    """The same as `csv`, with types."""
    return numbers(table).to_parquet(index=False)


def markdown(table: Table) -> str:
    """Title and caption, the table, then the missing stage runs."""
    usual = table.usual_n
    head = [*table.index_names, *table.column_titles]
    lines = [_markdown_row(head), "|" + " --- |" * len(head)]
    for key, row in table.rows:
        cells = [f"**{show(cell, usual)}**" if is_best(cell) else show(cell, usual) for cell in row]
        lines.append(_markdown_row([*map(index_text, key), *cells]))
    missing = "".join(f"\n* `{name}`" for name in table.waits_for)
    note = f"\n“{NOT_RUN}” needs these stage runs:\n{missing}\n" if table.waits_for else ""
    return f"**{table.title}.** {table.caption}\n\n" + "\n".join(lines) + "\n" + note


def _markdown_row(parts: Sequence[str]) -> str:
    return "| " + " | ".join(part.replace("|", r"\|").replace("\n", " ") for part in parts) + " |"


def index_text(value: Any) -> str:
    """Returns an index value as text, with thousands separators."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def is_best(cell: Any) -> bool:
    """Whether a cell is printed bold."""
    return isinstance(cell, Entry) and cell.best


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "β": r"$\beta$", "λ": r"$\lambda$", "±": r"$\pm$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
"""Characters with another meaning in LaTeX -> how to print them."""


def escape(text: str) -> str:
    """Returns `text` with LaTeX's special characters escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A `table` environment with booktabs rules, scaled to the line if it is wide; needs booktabs and graphicx."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(f'{table.title}. {table.caption}')}}}",
        rf"\label{{tab:{_label(table.name)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(table.index_names)}{'r' * len(table.columns)}}}",
        r"\toprule",
    ]
    # A row of groups that span their columns, then a row of names.
    if any(group for group, _ in table.column_groups):
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}" for group, width in table.column_groups]
        lines.append(_latex_row([*[""] * len(table.index_names), *spans]))
    lines.append(_latex_row(map(escape, [*table.index_names, *(name for _, name in table.columns)])))
    lines.append(r"\midrule")

    # A setting's name is printed once, and space separates the settings.
    usual = table.usual_n
    previous: tuple[Any, ...] = ()
    for key, row in table.rows:
        is_nested = len(key) > 1
        is_repeated = is_nested and previous[:1] == key[:1]
        if is_nested and previous and not is_repeated:
            lines.append(r"\addlinespace")
        index = ["" if is_repeated and level == 0 else escape(index_text(part)) for level, part in enumerate(key)]
        texts = [escape(show(cell, usual)) for cell in row]
        cells = [rf"\textbf{{{text}}}" if is_best(cell) else text for cell, text in zip(row, texts, strict=True)]
        lines.append(_latex_row([*index, *cells]))
        previous = key
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_row(parts: Iterable[str]) -> str:
    return " & ".join(parts) + r" \\"


def _label(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-.:" else "-" for c in name)


def html_table(table: Table) -> str:
    """A `<table>` fragment with caption and scopes; all text is escaped."""
    usual = table.usual_n
    parts = [f"<table>\n<caption>{html.escape(f'{table.title}. {table.caption}')}</caption>\n<thead><tr>"]
    titles = [*table.index_names, *table.column_titles]
    parts += [f'<th scope="col">{html.escape(title)}</th>' for title in titles]
    parts.append("</tr></thead>\n<tbody>\n")
    for key, row in table.rows:
        parts.append("<tr>" + "".join(f'<th scope="row">{html.escape(index_text(part))}</th>' for part in key))
        for cell in row:
            text = html.escape(show(cell, usual))
            parts.append(f"<td>{f'<strong>{text}</strong>' if is_best(cell) else text}</td>")
        parts.append("</tr>\n")
    return "".join([*parts, "</tbody>\n</table>\n"])


@dataclass(frozen=True)
class Format:
    """A file format of tables."""

    ending: str
    """Of the file's name."""
    write: Callable[[Table], str | bytes]
    gap_note: str = ""
    """Appended if the table has gaps; `{}` is the command that computes them."""


FORMATS: dict[str, Format] = {
    "csv": Format("csv", csv),
    "parquet": Format("parquet", parquet),
    "markdown": Format("md", markdown, "\nThis command computes them: `{}`\n"),
    "latex": Format("tex", latex, "% Missing numbers are computed by: {}\n"),
    "html": Format("html", html_table),
}
"""The formats by the name that `format=NAME` chooses."""


def write_table(table: Table, folder: Path, *, formats: Sequence[str], command: str) -> None:
    """Write the table to `folder`, one file per format; `command` computes its missing numbers."""
    for name in formats:
        table_format = FORMATS[name]
        content = table_format.write(table)
        if isinstance(content, str):
            note = table_format.gap_note.format(command) if table.waits_for else ""
            content = (content + note).encode(errors="replace")
        (folder / f"{file_name(table)}.{table_format.ending}").write_bytes(content)


def file_name(table: Table) -> str:
    """Returns the table's name with every character replaced that a shell or a file system treats specially."""
    return "".join(c if c.isalnum() or c in "-._=,+" else "_" for c in table.name)
