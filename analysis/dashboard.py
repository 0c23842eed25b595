"""`shaping-dashboard`: a project's Workspace views and Report in Weights & Biases, built and kept up to date.

    shaping-dashboard project=shaping entity=me scale=nano

saves four views (the result first, pre-training, RL, progress) and one Report, with the tables and claims as W&B tables
of a run with a fixed id. `wandb/dashboard.json` in the store records what was saved, so a second call updates it.
"""

import os
import sys
from dataclasses import dataclass, fields
from typing import Any

from analysis.claim_sources import StudySource
from analysis.claims import Verdict, applicable, judge, read_claims, sentences
from analysis.command_line import DEBUG_FLAG, HELP_FLAGS, parse_options, set_up
from analysis.figures.charts import panel_specs
from analysis.figures.headline_figure import headline_chart
from analysis.figures.vega_lite import draw
from analysis.headline import Headline, headline
from analysis.headline_words import cautions, result_sentence
from analysis.study import Study, read_stored
from analysis.table_builder import build_tables
from analysis.table_files import numbers
from analysis.tables import Table
from analysis.terminal import cells
from pipelines import foreign_text
from pipelines.configuration import TOKEN_STAGES, TRAINING_STAGES
from pipelines.errors import StageFailure, UserError
from pipelines.files import read_json, write_json
from sweeps.commands.exit_codes import exit_codes
from sweeps.store.stage_runs import Store


@dataclass
class Options:
    """The options of the command line."""

    project: str = "shaping"
    entity: str | None = None
    scale: str = "nano"
    store: str = "store"


GROUPS = ("objective", "model", "seed")
"""Configuration keys by which W&B groups the runs."""

HEADLINE, HEADLINE_FIGURE = "headline", "headline_figure"
"""Keys of the headline's table and figure in the run of the tables."""

PANELS: dict[str, dict[str, list[tuple[str, str, str]]]] = {
    "pre-training": {
        "Distribution": [
            ("tokens", "cross_entropy", "cross-entropy (log of the perplexity)"),
            ("tokens", "entropy", "entropy (nats)"),
            ("tokens", "head_mass", "head mass"),
        ],
        "Optimisation": [
            ("tokens", "loss", "loss"),
            ("tokens", "gradient_norm", "gradient norm"),
            ("tokens", "learning_rate", "learning rate"),
        ],
        "Throughput": [("tokens", "tokens_per_second", "tokens a second")],
    },
    "RL": {
        "Reward and collapse": [
            ("step", "reward", "reward"),
            ("step", "held_out_reward", "reward on held-out problems"),
            ("step", "entropy", "entropy (nats)"),
            ("step", "response_length", "response length (tokens)"),
            ("step", "truncated", "share cut short"),
        ],
        "Updates": [
            ("step", "clip_low", "share clipped below"),
            ("step", "clip_high", "share clipped above"),
            ("step", "gradient_norm", "gradient norm"),
            ("step", "groups_mixed", "groups with mixed rewards"),
        ],
        "Throughput": [
            ("step", "tokens_per_second", "tokens a second"),
            ("step", "rollout_seconds", "seconds of rollouts"),
            ("step", "update_seconds", "seconds of updates"),
        ],
    },
}
"""View -> section -> (axis, ledger column, title).

A further panel is one entry here; a test in tests/analysis/test_dashboard.py checks that the ledgers have its columns.
"""

VIEW_STAGES = {"pre-training": TOKEN_STAGES, "RL": ("grpo",)}
"""View -> the stages whose runs it shows."""


@dataclass(frozen=True)
class Results:
    """What the dashboard shows of a study."""

    study: Study
    headline: Headline
    tables: list[Table]
    verdicts: list[Verdict]


def main() -> None:
    """Run the command line. Exit codes: 0, 1 for failures, 2 for a user's mistake, 130 after Ctrl-C."""
    arguments = sys.argv[1:]
    if HELP_FLAGS & set(arguments):
        print(f"{__doc__}\nOptions, as key=value: {', '.join(option.name for option in fields(Options))}")
        return
    with exit_codes("shaping-dashboard"):
        set_up(arguments)
        options = parse_options(Options, (argument for argument in arguments if argument != DEBUG_FLAG))
        for name, url in build(options).items():
            foreign_text.console().print(f"{name}: {url}", markup=False)


def build(options: Options) -> dict[str, str]:
    """Save or update everything; returns name -> URL. Raises `StageFailure` if W&B does not accept it."""
    # Everything that needs no network comes first, so that mistakes in the store are found before anything is sent.
    store = Store.open(options.store)
    study = read_stored(store, options.scale)
    tables = build_tables(study, options.store)
    source = StudySource(study)
    verdicts = judge(applicable(read_claims(), source), source)
    results = Results(study, headline(study), tables, verdicts)
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name}: it is not installed; pip install 'shaping[dashboard]'") from error
    # W&B's error reports would leave the machine.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # The record of what was saved is kept per project and scale.
    path = store.root / "wandb" / "dashboard.json"
    record = read_json(path) if path.exists() else {}
    try:
        entity = options.entity or wandb.Api().default_entity or ""
        saved: dict[str, str] = record.setdefault(f"{entity}/{options.project}/{options.scale}", {})
        log_tables(options, entity, results=results, store=store)
        for name, view in views(entity, options, study).items():
            saved[name] = _save_view(view, saved.get(name))
            write_json(path, record)  # after each view: one that is not recorded would be created a second time
        saved["report"] = _save_report(entity, options, results=results, url=saved.get("report"))
    except (wandb.Error, OSError, ValueError) as error:
        raise StageFailure(
            f"W&B project {options.project}: it was not saved ({' '.join(str(error).split())})"
        ) from error
    write_json(path, record)
    return saved


def table_rows(table: Table) -> tuple[list[str], list[Any]]:
    """Returns a table for W&B: columns, and rows with None for a missing number."""
    frame = numbers(table)
    rows = frame.astype(object).where(frame.notna(), None).values.tolist()
    return [str(name) for name in frame], rows


def headline_rows(result: Headline) -> tuple[list[str], list[Any]]:
    """Returns the headline for W&B: columns and rows."""
    of_rl = ["before -> after RL"] if result.has_rl else []
    columns = ["setting", "entropy (nats)", "perplexity", *of_rl, "minus baseline", "word"]
    return columns, [[result.name(row), *cells(result, row)] for row in result.rows]


def claim_rows(verdicts: list[Verdict]) -> tuple[list[str], list[Any]]:
    """Returns the claims for W&B: columns and rows."""
    rows = [
        [v.claim.name, v.claim.statement, v.verdict, v.p, "; ".join(c.evidence for c in v.comparisons)]
        for v in verdicts
    ]
    return ["name", "statement", "verdict", "p", "evidence"], rows


def log_tables(options: Options, entity: str, *, results: Results, store: Store) -> None:
    """Log the tables, claims and progress as a W&B run with a fixed id: a second call continues the same run."""
    import wandb

    (store.root / "wandb").mkdir(exist_ok=True)
    runs = results.study.runs
    progress = runs["status"].value_counts().to_dict()
    # The fixed id and `resume` make a second call update the same run.
    with wandb.init(
        project=options.project,
        entity=entity,
        id=f"tables-{options.scale}",
        name=f"tables of the {options.scale} study",
        job_type="tables",
        dir=store.root,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=30),
    ) as run:
        # The artifacts that the tables were computed from become inputs of the run.
        for artifact in _sent_evaluations(store, options):
            run.use_artifact(artifact)
        for name, (columns, rows) in {
            HEADLINE: headline_rows(results.headline),
            **{f"tables/{table.name}": table_rows(table) for table in results.tables},
            "claims": claim_rows(results.verdicts),
        }.items():
            run.log({name: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)})
        chart = headline_chart(results.headline)
        if chart.panels:
            drawing = draw(HEADLINE_FIGURE, panel_specs(chart))
            run.log({HEADLINE_FIGURE: wandb.Html(drawing.svg, inject=False)})
        run.summary.update({f"stage_runs/{status}": int(count) for status, count in progress.items()})
        run.summary.update({"stage_runs/planned": len(runs)})


def _sent_evaluations(store: Store, options: Options) -> list[str]:
    """The evaluations that `shaping-sweeps sync --artifacts` sent to this project; the tables come from them."""
    path = store.root / "wandb" / "artifacts.json"
    record = read_json(path) if path.exists() else {}
    # Artifacts may have been sent with or without naming the entity.
    artifacts = {**record.get(f"/{options.project}", {}), **record.get(f"{options.entity or ''}/{options.project}", {})}
    return [artifact for name, artifact in sorted(artifacts.items()) if name.startswith("evaluate-")]


def views(entity: str, options: Options, study: Study) -> dict[str, Any]:
    """Returns the views of the Workspace, not saved yet."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    # The result first, then one view per entry of PANELS, then the progress of all stage runs.
    workspaces = {
        "result": ws.Workspace(
            entity=entity,
            project=options.project,
            name=f"Shaping {options.scale}: result",
            sections=[ws.Section(name="Result", is_open=True, panels=_headline_panels())],
            runset_settings=ws.RunsetSettings(filters=[ws.Metric("JobType").isin(["tables"])]),
        )
    }
    for name, sections in PANELS.items():
        workspaces[name] = ws.Workspace(
            entity=entity,
            project=options.project,
            name=f"Shaping {options.scale}: {name}",
            sections=[
                ws.Section(
                    name=section,
                    is_open=True,
                    panels=[line for panel in panels for line in _lines(name, panel)],
                )
                for section, panels in sections.items()
            ],
            settings=ws.WorkspaceSettings(max_runs=100),
            runset_settings=ws.RunsetSettings(
                filters=[ws.Metric("JobType").isin(list(VIEW_STAGES[name])), ws.Config("scale") == options.scale],
                groupby=[ws.Config(key) for key in GROUPS],
            ),
        )
    workspaces["progress"] = ws.Workspace(
        entity=entity,
        project=options.project,
        name=f"Shaping {options.scale}: progress",
        sections=[
            ws.Section(
                name="Stage runs",
                is_open=True,
                panels=[
                    wr.BarPlot(title="stage runs", metrics=[f"stage_runs/{s}" for s in _statuses(study)]),
                    wr.LinePlot(
                        title="tokens a second",
                        x="_timestamp",
                        y=[f"{stage}/tokens_per_second" for stage in TRAINING_STAGES],
                        max_runs_to_show=100,
                    ),
                ],
            )
        ],
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("JobType")]),
    )
    return workspaces


def _headline_panels() -> list[Any]:
    """The headline's table and figure."""
    import wandb_workspaces.reports.v2 as wr

    figure = wr.MediaBrowser(title="Differences from cross-entropy", media_keys=[HEADLINE_FIGURE], num_columns=1)
    return [wr.WeavePanelSummaryTable(table_name=HEADLINE), figure]


def _statuses(study: Study) -> list[str]:
    return ["planned", *sorted(study.runs["status"].unique())]


def _lines(view: str, panel: tuple[str, str, str]) -> list[Any]:
    """A column of the ledger as one curve for each stage of the view: the mean over a group, with its range."""
    import wandb_workspaces.reports.v2 as wr

    grouped: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", "max_runs_to_show": 100}
    (axis, column, title), stages = panel, VIEW_STAGES[view]
    return [
        wr.LinePlot(
            title=title if len(stages) == 1 else f"{stage}: {title}",
            x=f"{stage}/{axis}",
            y=[f"{stage}/{column}"],
            title_x=axis,
            **grouped,
        )
        for stage in stages
    ]


def _save_view(view: Any, url: str | None) -> str:
    """Save a view, or replace the contents of the one at `url`; returns its URL."""
    import wandb_workspaces.workspaces as ws

    if url:
        saved = ws.Workspace.from_url(url)
        for name in ("name", "sections", "settings", "runset_settings"):
            setattr(saved, name, getattr(view, name))
        view = saved
    return str(view.save().url)


def _save_report(entity: str, options: Options, *, results: Results, url: str | None) -> str:
    """Save the Report, or update the one at `url`; returns its URL."""
    import wandb_workspaces.reports.v2 as wr

    # The report has the result first, then the verdicts, the curves and the tables.
    runset = wr.Runset(entity=entity, project=options.project, name="runs", groupby=["config.objective"])
    blocks: list[Any] = [
        wr.H1("Result"),
        wr.P(result_sentence(results.headline)),
        wr.PanelGrid(runsets=[runset], panels=_headline_panels()),
        *(wr.P(caution) for caution in cautions(results.headline)),
        wr.H1("What it shows"),
        *(wr.P(line) for line in sentences(results.verdicts)),
        wr.H1("Claims"),
        wr.PanelGrid(runsets=[runset], panels=[wr.WeavePanelSummaryTable(table_name="claims")]),
    ]
    for name, sections in PANELS.items():
        blocks.append(wr.H1(name[0].upper() + name[1:]))
        panels = [line for section in sections.values() for panel in section for line in _lines(name, panel)]
        blocks.append(wr.PanelGrid(runsets=[runset], panels=panels))
    blocks.append(wr.H1("Tables"))
    for table in results.tables:
        panel = wr.WeavePanelSummaryTable(table_name=f"tables/{table.name}")
        blocks += [wr.H2(table.title), wr.P(table.caption), wr.PanelGrid(runsets=[runset], panels=[panel])]
    title, description = (
        f"Shaping: the {options.scale} study",
        "Made by shaping-dashboard; another run updates it.",
    )
    if url:
        report = wr.Report.from_url(url)
        report.title, report.description, report.blocks = title, description, blocks
    else:
        report = wr.Report(project=options.project, entity=entity, title=title, description=description, blocks=blocks)
    return str(report.save().url)


if __name__ == "__main__":
    main()
