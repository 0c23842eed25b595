"""`shaping-dashboard`: a project's Workspace views and Report in Weights & Biases, built and kept up to date.

    shaping-dashboard project=shaping entity=me scale=nano

saves three views (pre-training, RL, progress) and one Report, with the tables and claims as W&B tables of a run whose
id is fixed. `wandb/dashboard.json` in the store remembers what was saved, so a second call updates it.
"""

import os
import sys
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from analysis.claim_sources import StudySource
from analysis.claims import Verdict, judge, read_claims, sentences
from analysis.study import Study, read_stored
from analysis.table_files import numbers
from analysis.tables import Table, build_tables
from pipelines.errors import StageFailure, UserError
from pipelines.files import read_json, write_json
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.error_messages import sentence
from sweeps.store.stage_runs import Store


@dataclass
class Options:
    """What can be set on the command line."""

    project: str = "shaping"
    entity: str | None = None
    scale: str = "nano"
    store: str = "store"


GROUPS = ("objective", "model", "seed")
"""Configuration keys by which runs are grouped."""

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
"""View -> section -> (axis, ledger column, title)."""

STAGES = {"pre-training": ("pretrain", "midtrain"), "RL": ("grpo",)}


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake, 130 after Ctrl-C."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nOptions, as key=value: {', '.join(f.name for f in fields(Options))}")
        return
    with exit_codes("shaping-dashboard"):
        options = parse(arguments)
        for name, url in build(options).items():
            Console(highlight=False, soft_wrap=True).print(f"{name}: {url}", markup=False)


def parse(arguments: list[str]) -> Options:
    """The options that `arguments` (key=value) set; raises `UserError` for what is not one."""
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), OmegaConf.from_dotlist(arguments)))
    except Exception as error:
        raise UserError(sentence(error, [f.name for f in fields(Options)])) from error
    assert isinstance(options, Options)
    return options


def build(options: Options) -> dict[str, str]:
    """Save or update everything; returns name -> address. Raises `StageFailure` where W&B does not take it."""
    store = Store.open(options.store)
    study = read_stored(store, options.scale)
    tables = build_tables(study, options.store)
    verdicts = judge(read_claims(), StudySource(study))
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name}: it is not installed; pip install 'shaping[dashboard]'") from error
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    path = store.root / "wandb" / "dashboard.json"
    record = read_json(path) if path.exists() else {}
    try:
        entity = options.entity or wandb.Api().default_entity or ""
        saved: dict[str, str] = record.setdefault(f"{entity}/{options.project}/{options.scale}", {})
        log_tables(options, entity, study, tables, verdicts, store)
        for name, view in views(entity, options, study).items():
            saved[name] = _save_view(view, saved.get(name))
            write_json(path, record)  # at once: a view that is forgotten would be made a second time
        saved["report"] = _save_report(entity, options, tables, verdicts, saved.get("report"))
    except (wandb.Error, OSError, ValueError) as error:
        raise StageFailure(
            f"W&B project {options.project}: it was not saved ({' '.join(str(error).split())})"
        ) from error
    write_json(path, record)
    return saved


def table_rows(table: Table) -> tuple[list[str], list[Any]]:
    """A table as W&B takes it: columns, and rows with None where a number is missing."""
    frame = numbers(table)
    rows = frame.astype(object).where(frame.notna(), None).values.tolist()
    return [str(name) for name in frame], rows


def claim_rows(verdicts: list[Verdict]) -> tuple[list[str], list[Any]]:
    """Claims as W&B takes them."""
    rows = [
        [v.claim.name, v.claim.statement, v.verdict, v.p, "; ".join(c.evidence for c in v.comparisons)]
        for v in verdicts
    ]
    return ["name", "statement", "verdict", "p", "evidence"], rows


def log_tables(
    options: Options, entity: str, study: Study, tables: list[Table], verdicts: list[Verdict], store: Store
) -> None:
    """The tables, claims and progress as a run of a fixed id: a second call goes on in the same run."""
    import wandb

    (store.root / "wandb").mkdir(exist_ok=True)
    progress = study.runs["status"].value_counts().to_dict()
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
        for used in _sent_evaluations(store, options):
            run.use_artifact(used)
        for name, (columns, rows) in {
            **{f"tables/{table.name}": table_rows(table) for table in tables},
            "claims": claim_rows(verdicts),
        }.items():
            run.log({name: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)})
        run.summary.update({f"stage_runs/{status}": int(count) for status, count in progress.items()})
        run.summary.update({"stage_runs/planned": len(study.runs)})


def _sent_evaluations(store: Store, options: Options) -> list[str]:
    """Artifacts of evaluations that `shaping-sweeps sync --artifacts` sent here: what tables are made of."""
    path = store.root / "wandb" / "artifacts.json"
    record = read_json(path) if path.exists() else {}
    listed = {**record.get(f"/{options.project}", {}), **record.get(f"{options.entity or ''}/{options.project}", {})}
    return [artifact for name, artifact in sorted(listed.items()) if name.startswith("evaluate-")]


def views(entity: str, options: Options, study: Study) -> dict[str, Any]:
    """The Workspace's saved views, not yet saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    found = {}
    for name, sections in PANELS.items():
        found[name] = ws.Workspace(
            entity=entity,
            project=options.project,
            name=f"Shaping {options.scale}: {name}",
            sections=[
                ws.Section(
                    name=section,
                    is_open=True,
                    panels=[_line(axis, column, title) for axis, column, title in panels],
                )
                for section, panels in sections.items()
            ],
            settings=ws.WorkspaceSettings(max_runs=100),
            runset_settings=ws.RunsetSettings(
                filters=[ws.Metric("JobType").isin(list(STAGES[name])), ws.Config("scale") == options.scale],
                groupby=[ws.Config(key) for key in GROUPS],
            ),
        )
    found["progress"] = ws.Workspace(
        entity=entity,
        project=options.project,
        name=f"Shaping {options.scale}: progress",
        sections=[
            ws.Section(
                name="Stage runs",
                is_open=True,
                panels=[
                    wr.BarPlot(title="stage runs", metrics=[f"stage_runs/{s}" for s in _statuses(study)]),
                    wr.LinePlot(title="tokens a second", x="_timestamp", y=["tokens_per_second"], max_runs_to_show=100),
                ],
            )
        ],
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("JobType")]),
    )
    return found


def _statuses(study: Study) -> list[str]:
    return ["planned", *sorted(study.runs["status"].unique())]


def _line(axis: str, column: str, title: str) -> Any:
    """A curve of the ledger: mean over a group, with its range."""
    import wandb_workspaces.reports.v2 as wr

    grouped: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", "max_runs_to_show": 100}
    return wr.LinePlot(title=title, x=axis, y=[column], title_x=axis, **grouped)


def _save_view(view: Any, address: str | None) -> str:
    """Save a view; where one was saved before, its contents are replaced."""
    import wandb_workspaces.workspaces as ws

    if address:
        old = ws.Workspace.from_url(address)
        for name in ("name", "sections", "settings", "runset_settings"):
            setattr(old, name, getattr(view, name))
        view = old
    return str(view.save().url)


def _save_report(
    entity: str, options: Options, tables: list[Table], verdicts: list[Verdict], address: str | None
) -> str:
    """Save the Report, or update the one at `address`."""
    import wandb_workspaces.reports.v2 as wr

    runset = wr.Runset(entity=entity, project=options.project, name="runs", groupby=["config.objective"])
    blocks: list[Any] = [
        wr.H1("What it shows"),
        *(wr.P(line) for line in sentences(verdicts)),
        wr.H1("Claims"),
        wr.PanelGrid(runsets=[runset], panels=[wr.WeavePanelSummaryTable(table_name="claims")]),
    ]
    for name, sections in PANELS.items():
        blocks.append(wr.H1(name[0].upper() + name[1:]))
        panels = [_line(*panel) for own in sections.values() for panel in own]
        blocks.append(wr.PanelGrid(runsets=[runset], panels=panels))
    blocks.append(wr.H1("Tables"))
    for table in tables:
        panel = wr.WeavePanelSummaryTable(table_name=f"tables/{table.name}")
        blocks += [wr.H2(table.title), wr.P(table.caption), wr.PanelGrid(runsets=[runset], panels=[panel])]
    title, description = f"Shaping: the {options.scale} study", "Made by shaping-dashboard; a second call updates it."
    if address:
        report = wr.Report.from_url(address)
        report.title, report.description, report.blocks = title, description, blocks
    else:
        report = wr.Report(project=options.project, entity=entity, title=title, description=description, blocks=blocks)
    return str(report.save().url)


if __name__ == "__main__":
    main()
