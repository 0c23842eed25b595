"""`reproduce-paper-tables`: the store's numbers in the paper's layout.

    reproduce-paper-tables scale=nano

plans the sweep of that name, reads what the store holds of it, and writes tables (CSV, Markdown, LaTeX), figures (PNG,
SVG), `measurements.csv` and `report.html` to `results/<scale>/`. It trains nothing.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table as RichTable

from analysis.figures import Chart, build_figures
from analysis.frames import Study, read_study
from analysis.report import render
from analysis.tables import Table, build_tables
from pipelines.errors import UserError
from sweeps.composition import compose_cells
from sweeps.plan import plan
from sweeps.sentences import sentence
from sweeps.store import Store


@dataclass
class Options:
    """What can be set on the command line."""

    scale: str = "nano"
    """Label of the study: its results go to results/<scale>."""
    sweep: str = "${scale}"
    """The named sweep whose cells are tabulated."""
    seeds: list[int] = field(default_factory=list)
    """Seeds to read; empty: every seed of this scale that the store holds."""
    store: str = "store"
    results: str = "results"
    overrides: list[str] = field(default_factory=list)
    """Further overrides of the cells, as typed to shaping-run."""


HELP = f"""{__doc__}
Options, as key=value:
  scale=nano         label of the study; results go to results/<scale>
  sweep=NAME         the named sweep whose cells are tabulated (default: that of the scale)
  seeds=[1,2,3]      seeds to read (default: every seed of this scale in the store)
  store=store        folder of stage runs
  results=results    folder that the results are written under
  overrides=[...]    further overrides of the cells, as typed to shaping-run
  --debug            tracebacks for errors
"""


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    debug = "--debug" in arguments or bool(os.environ.get("SHAPING_DEBUG"))
    try:
        reproduce(parse([a for a in arguments if a != "--debug"]), Console(highlight=False, soft_wrap=True))
    except Exception as error:
        if debug:
            raise
        print(f"reproduce-paper-tables: {sentence(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


def parse(arguments: list[str]) -> Options:
    """The options that `arguments` (key=value) set; raises `UserError` for what is not one."""
    for argument in arguments:
        if "=" not in argument or argument.startswith("-"):
            raise UserError(f"{argument}: it is not of the form key=value; --help lists the keys")
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.from_dotlist(arguments)))
    except Exception as error:
        raise UserError(sentence(error, [f.name for f in fields(Options)])) from error
    assert isinstance(options, Options)
    return options


def reproduce(options: Options, console: Console) -> Path:
    """Write the results of a study; returns their folder. Raises `UserError` or `StageFailure`."""
    store = Store.open(options.store)
    seeds = options.seeds or sorted(
        {r.spec["labels"]["seed"] for r in store.runs() if r.spec["labels"]["scale"] == options.scale}
    )
    arguments = [f"+sweep={options.sweep}", f"scale={options.scale}", *options.overrides]
    if seeds:
        arguments.append(f"seed={','.join(map(str, seeds))}")
    study = read_study(plan(compose_cells(arguments)), store)
    tables, charts = build_tables(study), build_figures(study)
    command = " ".join(["shaping-run -m", arguments[0], *options.overrides])
    if seeds not in ([], [1]):
        command += f" {arguments[-1]}"
    if options.store != "store":
        command += f" store={options.store}"
    folder = Path(options.results) / options.scale
    facts = {
        "scale": options.scale,
        "sweep": options.sweep,
        "seeds": f"{', '.join(map(str, seeds))}" + (" (one seed)" if len(seeds) == 1 else ""),
        "stage runs": f"{(study.runs['status'] == 'done').sum()} of {len(study.runs)} done",
        **overlap_fact(store),
    }
    report = render(study, tables, charts, f"Shaping: the {options.scale} study", command, facts)
    write(folder, study, tables, charts, report)
    show(console, tables, study, command, folder)
    return folder


def overlap_fact(store: Store) -> dict[str, str]:
    """How many questions stand in more than one split, as counted when the data were built."""
    counts = [json.loads(path.read_text())["overlap"] for path in sorted(store.cache.glob("*/manifest.json"))]
    return {"questions in more than one split": str(sum(counts))} if counts else {}


def write(folder: Path, study: Study, tables: list[Table], charts: list[Chart], report: str) -> None:
    """Write everything beside `folder` and put it in its place whole; raises `UserError` if it cannot be written."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        (beside / "tables").mkdir(parents=True)
        (beside / "figures").mkdir()
        for table in tables:
            path = beside / "tables" / table.name
            text = table.text()
            text.to_csv(path.with_suffix(".csv"))
            path.with_suffix(".md").write_text(markdown(table))
            path.with_suffix(".tex").write_text(latex(table))
        for chart in charts:
            for kind, metadata in (("png", {}), ("svg", {"Date": None})):
                chart.figure.savefig(beside / "figures" / f"{chart.name}.{kind}", dpi=160, metadata=metadata)
        study.measurements.to_csv(beside / "measurements.csv", index=False)
        (beside / "report.html").write_text(report)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"results={folder.parent}: it cannot be written ({error.strerror}); name another") from error


def markdown(table: Table) -> str:
    """The table in Markdown, title and caption above it."""
    text = table.text().reset_index().astype(str)
    lines = ["| " + " | ".join(map(str, text.columns)) + " |", "|" + " --- |" * len(text.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in text.itertuples(index=False)]
    return f"**{table.title}.** {table.caption}\n\n" + "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table in LaTeX (booktabs, multirow)."""
    frame = table.cells.map(lambda cell: "--" if cell is None else str(cell).replace("±", r"$\pm$"))
    frame.columns = frame.columns.set_names([None, None])
    style = frame.style.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    caption = f"{table.title}. {table.caption}".replace("%", r"\%").replace("β", r"$\beta$")
    caption = caption.replace("λ", r"$\lambda$").replace("±", r"$\pm$").replace("_", r"\_")
    return style.to_latex(hrules=True, caption=caption, label=f"tab:{table.name}", multicol_align="c")


def show(console: Console, tables: list[Table], study: Study, command: str, folder: Path) -> None:
    """Print the RL tables' first and last rows and where everything lies."""
    summary = RichTable(title="RL on held-out problems, percent: before -> after", box=None, title_justify="left")
    rl = [table for table in tables if table.name.startswith("grpo-") and len(table.cells)]
    if rl:
        summary.add_column("setting")
        averages = [column for column in rl[0].columns if column[0] == "average"]
        for _, metric in averages:
            summary.add_column(metric, justify="right")
        for table in rl:
            ends = (table.cells.iloc[0], table.cells.iloc[-1])
            cells = [" -> ".join(str(end.get(column) or "–") for end in ends) for column in averages]
            summary.add_row(table.title.removeprefix("RL from "), *cells)
        console.print(summary)
    missing = int((study.runs["status"] != "done").sum())
    if missing:
        console.print(f"{missing} of {len(study.runs)} stage runs are missing; this fills them:\n  {command}")
    console.print(f"{len(tables)} tables, figures and measurements.csv in {folder}; open {folder / 'report.html'}")


if __name__ == "__main__":
    main()
