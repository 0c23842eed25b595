"""`reproduce-paper-tables`: the store's numbers in the paper's layout.

    reproduce-paper-tables scale=nano

plans the sweep of that name, reads what the store holds of it, and writes tables, figures, claims, `measurements.csv`
and `report.html` to `results/<scale>/`. It trains nothing.

    reproduce-paper-tables tables=[3,15] models=[4B] format=latex      some tables, in one format
    reproduce-paper-tables --missing                                  what the numbers wait for, and the command
    reproduce-paper-tables --claims                                   judges the claims; the exit code says how
"""

import dataclasses
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table as RichTable

from analysis.claim_sources import PaperSource, StudySource
from analysis.claims import Verdict, exit_code, judge, read_claims, sentences
from analysis.extra_figures import build_beyond
from analysis.figure_files import Drawings
from analysis.figures import build_figures
from analysis.paper_tables import TABLES
from analysis.report import Content, render
from analysis.result_cache import read_object
from analysis.study import Study, read_stored, read_study
from analysis.table_files import FORMATS, write_table
from analysis.tables import Table, build_tables
from pipelines.configuration import TRAINING_STAGES
from pipelines.errors import UserError, nearest
from pipelines.logs import DEBUG_VARIABLE
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.cells import compose_cells
from sweeps.compose.error_messages import sentence
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

FLAGS = ("--missing", "--claims", "--debug")

WRITTEN = {"tables", "figures", "measurements.csv", "claims.json", "report.html"}
"""What results/<scale> holds, besides `selection`."""


@dataclass
class Options:
    """What can be set on the command line."""

    scale: str = "nano"
    """Label of the study: its results go to results/<scale>."""
    sweep: str | None = "${scale}"
    """The named sweep whose cells are tabulated; null: whatever the store holds of the scale."""
    seeds: list[int] = field(default_factory=list)
    """Seeds to read; empty: every seed of this scale that the store holds."""
    store: str = "store"
    results: str = "results"
    overrides: list[str] = field(default_factory=list)
    """Further overrides of the cells, as typed to shaping-run."""
    tables: list[int] = field(default_factory=list)
    """Numbers of the paper's tables; empty: all."""
    models: list[str] = field(default_factory=list)
    """Models whose tables are written; empty: all."""
    format: str = "all"
    claims: str | None = None
    """A YAML file of claims; null: the six of the study."""


HELP = f"""{__doc__}
Options, as key=value:
  scale=nano         label of the study; results go to results/<scale>
  sweep=NAME         the named sweep whose cells are tabulated (default: that of the scale; null: all that the store
                     holds of the scale)
  seeds=[1,2,3]      seeds to read (default: every seed of this scale in the store)
  store=store        folder of stage runs
  results=results    folder that the results are written under
  overrides=[...]    further overrides of the cells, as typed to shaping-run
  tables=[3,15]      the paper's tables by number (default: all)
  models=[4B]        models (default: all)
  format=all         {", ".join(FORMATS)} or all
  claims=FILE        claims of your own, in YAML (default: the six of the study)
With tables, models or format the chosen tables alone are written, to results/<scale>/selection.
Flags:
  --missing          say what is missing and the one command that computes it; write nothing
  --claims           judge the claims; write nothing. Exit code 0: all supported, 3: one contradicted, 4: undecided
  --debug            tracebacks for errors
"""


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake, 3 or 4 for claims, 130 after
    Ctrl-C."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        return
    flags = {a for a in arguments if a in FLAGS}
    console = Console(highlight=False, soft_wrap=True)
    if "--debug" in flags:
        os.environ[DEBUG_VARIABLE] = "1"
    with exit_codes("reproduce-paper-tables"):
        options = parse([a for a in arguments if a not in FLAGS])
        if "--missing" in flags:
            show_missing(options, console)
        elif "--claims" in flags:
            sys.exit(show_claims(options, console))
        elif options.tables or options.models or options.format != "all":
            select(options, console)
        else:
            reproduce(options, console)


def parse(arguments: list[str]) -> Options:
    """The options that `arguments` (key=value) set; raises `UserError` for what is not one."""
    keys = [f.name for f in fields(Options)]
    for argument in arguments:
        if argument.startswith("-"):
            way_out = nearest(argument.partition("=")[0], (*FLAGS, "--help", *keys))
            raise UserError(f"{argument}: there is no such flag; {way_out}")
        if "=" not in argument:
            raise UserError(f"{argument}: it is not of the form key=value; --help lists the keys")
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.from_dotlist(arguments)))
    except Exception as error:
        raise UserError(sentence(error, keys)) from error
    assert isinstance(options, Options)
    if not re.fullmatch(r"[\w.+-]+", options.scale) or options.scale in (".", ".."):
        raise UserError(f"scale={options.scale}: it names a folder, so it must be made of letters, digits, _ . + and -")
    for number in options.tables:
        if number != 1 and number not in TABLES:
            raise UserError(f"tables={number}: the paper's tables are 1 to 23")
    if options.format not in (*FORMATS, "all"):
        raise UserError(f"format={options.format}: {nearest(options.format, (*FORMATS, 'all'))}")
    return options


@dataclass(frozen=True)
class _Read:
    """A study with what its gaps are filled by."""

    study: Study
    store: Store
    seeds: list[int]
    command: str


def _read(options: Options) -> _Read:
    store = Store.open(options.store)
    stored = read_stored(store, options.scale, options.seeds)
    seeds = options.seeds or sorted(stored.runs["seed"].unique().tolist())
    if options.sweep is None:
        return _Read(stored, store, seeds, "shaping-run -m, with the overrides that made this store")
    arguments = [f"+sweep={options.sweep}", f"scale={options.scale}", *options.overrides]
    if seeds:
        arguments.append(f"seed={','.join(map(str, seeds))}")
    study = read_study(plan(compose_cells(arguments)), store)
    command = ["shaping-run -m", arguments[0], *options.overrides]
    if seeds not in ([], [1]):
        command.append(arguments[-1])
    if options.models:
        command.append(f"model={','.join(options.models)}")
    if options.store != "store":
        command.append(f"store={options.store}")
    return _Read(study, store, seeds, " ".join(command))


def _tables(options: Options, study: Study) -> list[Table]:
    for model in options.models:
        if model not in set(study.runs["model"]):
            raise UserError(f"models={model}: {nearest(model, study.runs['model'].unique())}")
    tables = build_tables(study, options.store, options.tables, options.models)
    if not tables:
        named = ", ".join(f"{number} ({TABLES[number].model})" for number in options.tables if number in TABLES)
        raise UserError(
            f"tables={options.tables}: this study has no model or setting in the place of {named or 'these'}"
        )
    return tables


def _judge(options: Options, study: Study) -> tuple[list[Verdict], list[Verdict]]:
    claims = read_claims(options.claims)
    return judge(claims, StudySource(study)), judge(claims, PaperSource())


def _check_replaceable(folder: Path) -> None:
    """Raise `UserError` where results/<scale> holds what this command has not written: it is replaced whole."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = WRITTEN if "claims.json" in names else set()  # others have folders of tables and figures too
    if foreign := names - ours - {"selection"}:
        raise _refusal(folder, foreign)
    _check_selection(folder / "selection")


def _check_selection(folder: Path) -> None:
    """Raise `UserError` where results/<scale>/selection holds more than tables."""
    ours = rf"(table|{'|'.join(TRAINING_STAGES)})-.*\.({'|'.join(ending for ending, _ in FORMATS.values())})"
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if foreign := {name for name in names if not re.fullmatch(ours, name)}:
        raise _refusal(folder, foreign)


def _refusal(folder: Path, foreign: set[str]) -> UserError:
    return UserError(
        f"results={folder}: it would be replaced, and {min(foreign)} in it is not from this command; "
        "move that away, or name another folder with results=FOLDER"
    )


def reproduce(options: Options, console: Console) -> Path:
    """Write the results of a study; returns their folder. Raises `UserError` or `StageFailure`."""
    folder = Path(options.results) / options.scale
    _check_replaceable(folder)
    with Drawings(folder / "figures") as drawings:
        return _reproduce(options, console, folder, drawings)


def _reproduce(options: Options, console: Console, folder: Path, drawings: Drawings) -> Path:
    read = _read(options)
    study, store, seeds = read.study, read.store, read.seeds
    charts = build_figures(study)
    drawings.begin(charts)
    beyond = build_beyond(study)
    drawings.begin(beyond.charts)
    tables = _tables(options, study)
    ours, paper = _judge(options, study)
    done = int((study.runs["status"] == "done").sum())
    facts = {
        "scale": options.scale,
        "models": ", ".join(study.runs["model"].unique()),
        "settings": ", ".join(study.runs["objective"].unique()),
        "seeds": f"{', '.join(map(str, seeds))}" + (" (one seed)" if len(seeds) == 1 else ""),
        "stage runs": f"{done} of {len(study.runs)} done",
        "store": options.store,
        **overlap_fact(store),
    }
    title = f"Shaping: the {options.scale} study"
    page = render(Content(study, tables, charts, beyond, ours, paper, title, read.command, facts))
    write(folder, study, tables, drawings, (ours, paper), page, read.command)
    show(console, tables, study, read.command, folder)
    for line in sentences(ours):
        console.print(line, markup=False)
    return folder


def select(options: Options, console: Console) -> Path:
    """Write the chosen tables alone; returns their folder."""
    folder = Path(options.results) / options.scale / "selection"
    _check_selection(folder)
    read = _read(options)
    tables = _tables(options, read.study)
    formats = list(FORMATS) if options.format == "all" else [options.format]
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for table in tables:
            write_table(table, folder, formats, read.command)
    except OSError as error:
        raise UserError(f"results={options.results}: it cannot be written ({error.strerror}); name another") from error
    for table in tables:
        console.print(f"{table.title}: {table.missing} cells missing", markup=False)
    console.print(f"{len(tables)} tables in {folder}")
    return folder


def show_missing(options: Options, console: Console) -> None:
    """Print what the chosen tables wait for and the one command that computes it."""
    read = _read(options)
    tables = _tables(options, read.study)
    lacks = list(dict.fromkeys(name for table in tables for name in table.lacks))
    if not lacks:
        console.print("No table waits for a stage run.")
        return
    for table in tables:
        if table.lacks:
            console.print(f"{table.title}: {table.missing} cells wait for {len(table.lacks)} stage runs", markup=False)
    console.print(f"{len(lacks)} stage runs are missing; this computes them:\n  {read.command}", markup=False)


def show_claims(options: Options, console: Console) -> int:
    """Print every claim with its verdict and evidence; returns the exit code."""
    ours, paper = _judge(options, _read(options).study)
    for mine, theirs in zip(ours, paper, strict=True):
        console.print(
            f"{mine.verdict.upper()}  {mine.claim.statement}  (the paper's numbers: {theirs.verdict})", markup=False
        )
        for comparison in mine.comparisons:
            console.print(f"  {comparison.verdict}: {comparison.text} [{comparison.model}]", markup=False)
            console.print(f"    {comparison.evidence}", markup=False)
    for line in sentences(ours):
        console.print(line, markup=False)
    return exit_code(ours)


def overlap_fact(store: Store) -> dict[str, str]:
    """How many questions stand in more than one split, as counted when the data were built.

    Raises `UserError` naming a manifest that is corrupt.
    """
    counts = [read_object(path, ("overlap",))["overlap"] for path in store.cache.glob("*/manifest.json")]
    return {"questions in more than one split": str(sum(counts))} if counts else {}


def write(
    folder: Path,
    study: Study,
    tables: list[Table],
    drawings: Drawings,
    verdicts: tuple[list[Verdict], list[Verdict]],
    page: str,
    command: str,
) -> None:
    """Write everything beside `folder` and put it in its place whole; raises `UserError` if it cannot be written."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        (beside / "tables").mkdir(parents=True)
        (beside / "figures").mkdir()
        for table in tables:
            write_table(table, beside / "tables", list(FORMATS), command)
        study.measurements.to_csv(beside / "measurements.csv", index=False)
        claims = {"study": [_claim(v) for v in verdicts[0]], "paper": [_claim(v) for v in verdicts[1]]}
        (beside / "claims.json").write_text(json.dumps(claims, indent=1) + "\n")
        (beside / "report.html").write_text(page)
        drawings.write(beside / "figures")
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as error:
        raise UserError(f"results={folder.parent}: it cannot be written ({error.strerror}); name another") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # nothing half written, whatever went wrong


def _claim(verdict: Verdict) -> dict[str, Any]:
    return dataclasses.asdict(verdict)


def show(console: Console, tables: list[Table], study: Study, command: str, folder: Path) -> None:
    """Print the RL tables' first and last rows and where everything lies."""
    summary = RichTable(title="RL on held-out problems, percent: before -> after", box=None, title_justify="left")
    rl = [table for table in tables if table.stage == "grpo" and len(table.cells)]
    if rl:
        summary.add_column("setting")
        averages = [column for column in rl[0].columns if column[0] == "average"]
        for _, metric in averages:
            summary.add_column(metric, justify="right")
        for table in rl:
            own = table.cells[table.cells.index.get_level_values(0) == table.objectives[0]]
            cells = [
                " -> ".join(str(end.get(column, "–")) for end in (own.iloc[0], own.iloc[-1])) for column in averages
            ]
            summary.add_row(table.title.split("RL from ")[-1], *cells)
        console.print(summary)
    missing = int((study.runs["status"] != "done").sum())
    if missing:
        console.print(
            f"{missing} of {len(study.runs)} stage runs are missing; this computes them:\n  {command}", markup=False
        )
    console.print(f"{len(tables)} tables, figures and measurements.csv in {folder}; open {folder / 'report.html'}")


if __name__ == "__main__":
    main()
