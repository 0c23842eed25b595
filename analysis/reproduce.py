"""`reproduce-paper-tables`: a store's numbers in the paper's layout.

    reproduce-paper-tables scale=nano

plans the sweep of that name, reads its results from the store, and writes tables, figures, claims, `measurements.csv`,
`rl_runs.csv` and `report.html` to `results/<scale>/`. It trains nothing.

    reproduce-paper-tables tables=[3,15] models=[4B] format=latex      some tables, in one format
    reproduce-paper-tables --missing                                  the missing stage runs and the command for them
    reproduce-paper-tables --claims                                   judges the claims; the exit code is the verdict
    reproduce-paper-tables --watch                                    writes the results again as stage runs finish
    reproduce-paper-tables compare=[a,b]                              two sweeps, stores or commits on one page
"""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from analysis.claim_sources import PaperSource, StudySource
from analysis.claims import LOOK_ALPHA, LOOKS, Verdict, applicable, exit_code, judge, read_claims, sentences
from analysis.command_line import DEBUG_FLAG, HELP_FLAGS, parse_options, set_up
from analysis.comparison import compare, comparison_chart, resolve, sentence
from analysis.figures.all_figures import build_figures
from analysis.figures.figure_files import FigureFiles
from analysis.figures.headline_figure import headline_chart
from analysis.headline import Headline, headline
from analysis.headline_words import seeds_that_decide
from analysis.learning import run_table
from analysis.page.comparison_page import render_comparison
from analysis.page.headline_view import decide_view
from analysis.page.report import Content, render
from analysis.paper_tables import TABLES
from analysis.provenance import Provenance, minutes, provenance
from analysis.results_folder import cannot_write, check_replaceable, check_selection
from analysis.statistics import ALPHA
from analysis.study import Study, read_stored, read_study
from analysis.table_builder import build_tables, origin
from analysis.table_files import FORMATS, csv_bytes, write_table
from analysis.tables import Table
from analysis.terminal import print_headline
from analysis.watch import watch
from pipelines import foreign_text
from pipelines.errors import UserError, nearest, require
from pipelines.files import read_sealed, replacing
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.cells import compose_cells
from sweeps.compose.config_files import options_of
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

logger = logging.getLogger("analysis")

FLAGS = ("--missing", "--claims", "--watch", DEBUG_FLAG)


@dataclass
class Options:
    """The options of the command line."""

    scale: str = "nano"
    """Label of the study; its results are written to results/<scale>."""
    sweep: str | None = "${scale}"
    """The named sweep whose cells are tabulated; null: everything in the store with this scale."""
    seeds: list[int] = field(default_factory=list)
    """Seeds to read; empty: every seed of this scale in the store."""
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
    """A YAML file of claims; null: `claims.yaml` of one's own folder, else the six of the study, and ours about RL."""
    looks: bool = False
    """Whether seeds were added after looking: claims are judged at the level of one of `LOOKS`."""
    compare: list[str] = field(default_factory=list)
    """Two sweeps, folders of stores or commits, which are put on one page; empty: no comparison."""


HELP = f"""{__doc__}
Options, as key=value:
  scale=nano         label of the study; results are written to results/<scale>
  sweep=NAME         the named sweep whose cells are tabulated (default: that of the scale; null: everything in the
                     store with this scale)
  seeds=[1,2,3]      seeds to read (default: every seed of this scale in the store)
  store=store        folder of stage runs
  results=results    folder that the results are written under
  overrides=[...]    further overrides of the cells, as typed to shaping-run
  tables=[3,15]      the paper's tables by number (default: all)
  models=[4B]        models (default: all)
  format=all         {", ".join(FORMATS)} or all
  claims=FILE        a YAML file with claims (default: claims.yaml of your own folder, else the study's and ours)
  looks=true         seeds were added after looking: judge at 5, 8, 12, 20, 32 or 50 seeds, each time at 0.83 %
  compare=[A,B]      two named sweeps, folders of stores, or commits that stage runs recorded: one page, in
                     results/<scale>-A-B
With tables, models or format, only the chosen tables are written, to results/<scale>/selection.
Flags:
  --missing          print what is missing and the command that computes it; write nothing
  --claims           judge the claims; write nothing. Exit code 0: all supported, 3: one contradicted, 4: undecided
  --config-dir DIR   a folder of your own with sweeps, models, ..., as for shaping-run; or SHAPING_CONFIG_DIR
  --watch            write the results again whenever a stage run has finished, until none is queued or running; an
                     open page reads itself again
  --debug            show tracebacks and all log lines
"""


def main() -> None:
    """Run the command line.

    Exit codes: 0, 1 for failures, 2 for a user's mistake, 3 or 4 for claims, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:]
    if HELP_FLAGS & set(arguments):
        print(HELP)
        return
    console = foreign_text.console()
    with exit_codes("reproduce-paper-tables"):
        set_up(arguments)
        # Flags first, since they are not of the form key=value.
        options = parse([argument for argument in arguments if argument not in FLAGS])
        if "--missing" in arguments:
            show_missing(options, console)
        elif "--claims" in arguments:
            sys.exit(show_claims(options, console))
        elif options.compare:
            compare_sides(options, console)
        elif "--watch" in arguments:
            store = Store.open(options.store)
            watch(store, lambda refresh: reproduce(options, console, refresh=refresh))
        elif options.tables or options.models or options.format != "all":
            select(options, console)
        else:
            reproduce(options, console)


def parse(arguments: list[str]) -> Options:
    """Returns the options that `arguments` (key=value) set. Raises `UserError` for a mistake in them."""
    options = parse_options(Options, arguments, flags=FLAGS)
    if not re.fullmatch(r"[\w.+-]+", options.scale) or options.scale in (".", ".."):
        raise UserError(f"scale={options.scale}: it names a folder, so use only letters, digits, _ . + and -")
    for number in options.tables:
        if number != 1 and number not in TABLES:
            raise UserError(f"tables={number}: the paper's tables are 1 to 23")
    if options.format not in (*FORMATS, "all"):
        raise UserError(f"format={options.format}: {nearest(options.format, (*FORMATS, 'all'))}")
    return options


@dataclass(frozen=True)
class Source:
    """A study, where it was read from, and the command that computes its missing numbers."""

    study: Study
    store: Store
    seeds: list[int]
    command: str


def read_source(options: Options) -> Source:
    """Returns the study of the options' sweep, or of everything in the store."""
    store = Store.open(options.store)
    # Without a list of seeds, those of the store are planned, so that the tables have no empty seeds.
    stored = read_stored(store, options.scale, options.seeds)
    seeds = options.seeds or sorted(stored.runs["seed"].unique().tolist())
    if options.sweep is None:
        return Source(stored, store, seeds, "shaping-run -m, with the overrides that made this store")
    arguments = [f"+sweep={options.sweep}", f"scale={options.scale}", *options.overrides]
    if seeds:
        arguments.append(f"seed={','.join(map(str, seeds))}")
    study = read_study(plan(compose_cells(arguments)), store)
    typed = "" if seeds in ([], [1]) else ",".join(map(str, seeds))
    return Source(study, store, seeds, command_of(options, typed))


def command_of(options: Options, seeds: str) -> str:
    """The command that runs the options' sweep with these seeds; it leaves out what is the default."""
    parts = ["shaping-run -m", f"+sweep={options.sweep}", *options.overrides]
    if seeds:
        parts.append(f"'seed={seeds}'" if "(" in seeds else f"seed={seeds}")
    if options.models:
        parts.append(f"model={','.join(options.models)}")
    if options.store != "store":
        parts.append(f"store={options.store}")
    return " ".join(parts)


def _tables(options: Options, study: Study) -> list[Table]:
    """The chosen tables. Raises `UserError` if there are none."""
    for model in options.models:
        require(not study.runs.empty, "models", model, fix="there are no stage runs of this scale; leave models out")
        if model not in set(study.runs["model"]):
            raise UserError(f"models={model}: {nearest(model, study.runs['model'].unique())}")
    tables = build_tables(study, options.store, numbers=options.tables, models=options.models)
    if not tables:
        models = ", ".join(f"{number} ({TABLES[number].model})" for number in options.tables if number in TABLES)
        raise UserError(f"tables={options.tables}: this study has no model or setting for {models or 'these tables'}")
    return tables


def judged(options: Options, study: Study) -> tuple[list[Verdict], list[Verdict]]:
    """Returns the verdicts on the study's numbers and on the paper's. Raises `UserError` between two looks."""
    source = StudySource(study)
    claims = applicable(read_claims(options.claims), source)
    seeds = study.runs["seed"].nunique()
    if options.looks and seeds not in LOOKS:
        raise UserError(
            f"looks=true: the study has {seeds} seeds, and is judged at {', '.join(map(str, LOOKS))} seeds only; "
            "give seeds=[...]"
        )
    return judge(claims, source, alpha=LOOK_ALPHA if options.looks else ALPHA), judge(claims, PaperSource())


def reproduce(options: Options, console: Console, *, refresh: int | None = None) -> Path:
    """Write the results of a study; returns their folder. Raises `UserError` or `StageFailure`.

    An open page reads itself again after `refresh` seconds.
    """
    folder = Path(options.results) / options.scale
    check_replaceable(folder)
    with FigureFiles(folder / "figures") as figure_files:
        source = read_source(options)
        study = source.study
        logger.debug("read %d stage runs from %s", len(study.runs), options.store)
        # Figures come first: they are drawn in another process while tables and claims are made here.
        result = headline(study)
        first_figure = headline_chart(result)
        if first_figure.panels:
            figure_files.begin(first_figure)
        figures = build_figures(study, on_chart=figure_files.begin)
        tables = _tables(options, study)
        ours, paper = judged(options, study)
        made = _made(options, source)
        content = Content(
            study=study,
            headline=result,
            provenance=made,
            tables=tables,
            figures=figures,
            panels={
                chart.name: figure_files.panels(chart) for chart in (first_figure, *figures.charts) if chart.panels
            },
            verdicts=ours,
            paper_verdicts=paper,
            title=f"Shaping: the {options.scale} study",
            command=source.command,
            origin=origin(study, options.store),
            decide=_decide(options, result, made),
            folder=folder,
            refresh=refresh,
        )
        _write(folder, content, figure_files)
    _show(console, content, folder)
    return folder


def _made(options: Options, source: Source) -> Provenance:
    """How the study was made, with its store and what was found when its data were prepared."""
    made, runs = provenance(source.study, command=source.command), source.study.runs
    done = int((runs["status"] == "done").sum())
    facts = {"stage runs": f"{done} of {len(runs)} done, in {options.store}", **overlap_fact(source.store)}
    return dataclasses.replace(made, facts=made.facts | facts)


def _decide(options: Options, result: Headline, made: Provenance) -> dict[str, str] | None:
    """What would decide the open differences: how many seeds, the command, and its time at the study's pace."""
    count = seeds_that_decide(result)
    if count is None or options.sweep is None:
        return None
    more = count - len(result.seeds)
    time = f", {minutes(made.seed_seconds * more)} more" if made.seed_seconds else ""
    seeds = ",".join(map(str, range(1, count + 1))) if count < 10 else f"range(1,{count + 1})"
    return decide_view(result, command_of(options, seeds), time)


def compare_sides(options: Options, console: Console) -> Path:
    """Write the page of the two that `options.compare` names; returns its folder. Raises `UserError`."""
    if len(options.compare) != 2:
        given = ",".join(options.compare)
        raise UserError(f"compare=[{given}]: name two, such as compare=[nano,micro] or compare=[store,old/store]")

    def named(sweep: str) -> Study | None:
        if sweep not in options_of("sweep"):
            return None
        return read_source(dataclasses.replace(options, sweep=sweep, scale=sweep)).study

    first, second = (resolve(name, named, lambda: read_stored(Store.open(options.store))) for name in options.compare)
    name = "-".join(re.sub(r"[^\w.+]+", "_", side.name).strip("._") or "store" for side in (first, second))
    folder = Path(options.results) / f"{options.scale}-{name}"
    check_replaceable(folder)
    with FigureFiles(folder / "figures") as figure_files:
        compared = compare(first, second)
        chart = comparison_chart(compared)
        if chart.panels:
            figure_files.begin(chart)
        page = render_comparison(compared, figure_files.panels(chart) if chart.panels else [])
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder, durable=False) as temporary:
                (temporary / "figures").mkdir(parents=True)
                (temporary / "report.html").write_bytes(page.encode(errors="replace"))
                (temporary / "claims.json").write_text("{}\n")
                figure_files.write(temporary / "figures")
        except OSError as error:
            raise cannot_write(folder.parent, error) from error
    console.print(sentence(compared), markup=False)
    console.print(f"open {folder / 'report.html'}", markup=False)
    return folder


def select(options: Options, console: Console) -> Path:
    """Write only the chosen tables; returns their folder."""
    folder = Path(options.results) / options.scale / "selection"
    check_selection(folder)
    source = read_source(options)
    tables = _tables(options, source.study)
    formats = list(FORMATS) if options.format == "all" else [options.format]
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for table in tables:
            write_table(table, folder, formats=formats, command=source.command)
    except OSError as error:
        raise cannot_write(Path(options.results), error) from error
    for table in tables:
        console.print(f"{table.title}: {table.missing} cells missing", markup=False)
    console.print(f"{len(tables)} tables in {folder}", markup=False)
    return folder


def show_missing(options: Options, console: Console) -> None:
    """Print what the chosen tables wait for and the one command that computes it."""
    source = read_source(options)
    tables = _tables(options, source.study)
    missing = list(dict.fromkeys(name for table in tables for name in table.waits_for))
    if not missing:
        console.print("No table waits for a stage run.")
        return
    for table in tables:
        if table.waits_for:
            line = f"{table.title}: {table.missing} cells wait for {len(table.waits_for)} stage runs"
            console.print(line, markup=False)
    console.print(
        f"{len(missing)} stage runs are missing; this command computes them:\n  {source.command}", markup=False
    )


def show_claims(options: Options, console: Console) -> int:
    """Print every claim with its verdict and evidence; returns the exit code."""
    ours, paper = judged(options, read_source(options).study)
    for study_verdict, paper_verdict in zip(ours, paper, strict=True):
        verdict, statement = study_verdict.verdict.upper(), study_verdict.claim.statement
        console.print(f"{verdict}  {statement}  (the paper's numbers: {paper_verdict.verdict})", markup=False)
        for comparison in study_verdict.comparisons:
            console.print(f"  {comparison.direction}: {comparison.text} [{comparison.model}]", markup=False)
            console.print(f"    {comparison.evidence}", markup=False)
    for line in sentences(ours):
        console.print(line, markup=False)
    return exit_code(ours)


def overlap_fact(store: Store) -> dict[str, str]:
    """Returns how many questions are in more than one split, as counted when the data were prepared."""
    counts = []
    for path in store.cache.glob("*/manifest.json"):
        with contextlib.suppress(UserError):  # the next stage run that needs these data builds them again
            counts.append(read_sealed(path, ("overlap",))["overlap"])
    return {"questions in more than one split": str(sum(counts))} if counts else {}


def _write(folder: Path, content: Content, figure_files: FigureFiles) -> None:
    """Replace `folder` as a whole by the results. Raises `UserError` if it cannot be written."""
    page = render(content)
    verdicts = {"study": content.verdicts, "paper": content.paper_verdicts}
    claims = {name: [dataclasses.asdict(verdict) for verdict in judged] for name, judged in verdicts.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Everything is written to a temporary folder first, so that a failure leaves the previous results.
        with replacing(folder, durable=False) as temporary:
            (temporary / "tables").mkdir(parents=True)
            (temporary / "figures").mkdir()
            for table in content.tables:
                write_table(table, temporary / "tables", formats=list(FORMATS), command=content.command)
            (temporary / "measurements.csv").write_bytes(csv_bytes(content.study.measurements))
            (temporary / "rl_runs.csv").write_bytes(csv_bytes(run_table(content.study)))
            (temporary / "claims.json").write_text(json.dumps(claims, indent=1) + "\n")
            (temporary / "report.html").write_bytes(page.encode(errors="replace"))
            figure_files.write(temporary / "figures")
    except OSError as error:
        raise cannot_write(folder.parent, error) from error


def _show(console: Console, content: Content, folder: Path) -> None:
    """Print the headline, what is missing, the path of the results, and the verdicts."""
    print_headline(content.headline, console)
    runs = content.study.runs
    if missing := int((runs["status"] != "done").sum()):
        console.print(
            f"{missing} of {len(runs)} stage runs are missing; this command computes them:\n  {content.command}",
            markup=False,
        )
    if content.decide:
        console.print(f"{content.decide['words']}\n  {content.decide['command']}", markup=False)
    page = folder / "report.html"
    console.print(f"{len(content.tables)} tables, figures and measurements.csv in {folder}; open {page}", markup=False)
    for line in sentences(content.verdicts):
        console.print(line, markup=False)


if __name__ == "__main__":
    main()
