"""The paper's tables, filled with a study's own numbers next to those that the paper reports.

With several seeds a cell is the mean over seeds with its 95 % interval; with one seed it is the number with the
interval over its problems. Percentages have Wilson's interval, other numbers one on the scale of their log.
`table_columns` lists the columns, `best_entries` marks the best of several settings.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.best_entries import mark_best
from analysis.estimates import Estimates
from analysis.learning_table import learning_table
from analysis.measurement_grid import Benchmarks, Checkpoint, MeasurementGrid
from analysis.paper_tables import (
    BETA_FAMILY,
    LAMBDA_FAMILY,
    STAGE_TITLES,
    TABLES,
    PaperTable,
    counterpart,
    is_same_measurement,
)
from analysis.places import places
from analysis.reference import MODELS, reported
from analysis.study import Study
from analysis.table_columns import (
    ARCHITECTURE_COLUMNS,
    BASE_MODEL_COLUMNS,
    RL_COLUMNS,
    Architecture,
    Columns,
    Scores,
    join_columns,
    metric_title,
    rl_benchmarks,
    with_columns,
)
from analysis.tables import DIFFERENCE, MISSING, Column, Entry, Table, interval_note
from analysis.theory_table import theory_table
from analysis.variance_table import variance_table
from pipelines.configuration import START, TOKEN_STAGES, TRAINING_STAGES
from pipelines.python_gc import no_collection


@dataclass(frozen=True)
class _Draft:
    """A table before its best entries are marked, with the two parts of its caption around the note on intervals."""

    table: Table
    before: str
    after: str

    def finished(self, cells: pd.DataFrame) -> Table:
        """The table with these cells and its whole caption."""
        return replace(self.table, cells=cells, caption=f"{self.before} {interval_note(cells)} {self.after}")


TABLE_NAMES = ("table", *TRAINING_STAGES, "learning", "variance", "theory")
"""How the names of tables begin: those of the paper have a number, settings of one's own the name of their stage."""


@no_collection()
def build_tables(
    study: Study, store: str = "", *, numbers: Iterable[int] = (), models: Iterable[str] = ()
) -> list[Table]:
    """Returns all tables of a study in the paper's order, for every model; `numbers` and `models` select among them.

    Tables of settings that the paper does not have come last, and are left out if `numbers` are given. Captions name
    the `store`.
    """
    selected_numbers, selected_models = set(numbers), set(models)
    estimates = Estimates.of(study)
    builder = _Builder(study, estimates.grid, estimates, origin(study, store))
    drafts: list[_Draft] = []
    for model in _models(study):
        if not selected_models or model in selected_models:
            drafts += builder.model_tables(model, selected_numbers)

    # Settings compete across tables, so the best are marked when all tables exist.
    cells = mark_best([draft.table for draft in drafts])
    tables = [draft.finished(marked) for draft, marked in zip(drafts, cells, strict=True)]
    if not selected_numbers:
        tables += _further_tables(study, estimates, selected_models, provenance=builder.provenance)
    if len(study.runs) and (not selected_numbers or 1 in selected_numbers):
        tables.insert(0, _architecture_table(study, builder.provenance, selected_models))
    return sorted(tables, key=lambda table: (table.number is None, table.number or 0))


def _further_tables(study: Study, estimates: Estimates, models: set[str], *, provenance: str) -> list[Table]:
    """The tables that the paper does not have: of the course of RL, and of theory."""
    selected = [model for model in _models(study) if not models or model in models]
    made = [
        table
        for model in selected
        for table in (
            learning_table(study, estimates, model, provenance=provenance),
            variance_table(study, model, provenance),
            theory_table(study, estimates, model, provenance=provenance),
        )
    ]
    return [table for table in made if table is not None]


def _models(study: Study) -> list[str]:
    """The study's models: those of the paper in its order, then the others."""
    names = study.runs["model"].unique().tolist()
    return sorted(names, key=lambda name: (MODELS.index(name) if name in MODELS else len(MODELS), names.index(name)))


def _pretrain_config(study: Study, model: str) -> dict[str, Any]:
    """The configuration that has the model's architecture: of its first pre-training, or of its start checkpoint."""
    for stage in ("pretrain", START):
        runs = study.runs[(study.runs["model"] == model) & (study.runs["stage"] == stage)]
        config: dict[str, Any] = study.specs[runs["stage_run"].iloc[0]]["config"] if len(runs) else {}
        if "model" in config:
            return config
    return {}


def origin(study: Study, store: str) -> str:
    """Returns the end of every caption: data, seeds, store and code version."""
    specs = list(study.specs.values())
    if not specs:
        return "Nothing is planned."
    # Data and seeds as planned, code versions as recorded by the finished stage runs.
    data: dict[str, Any] = next((spec["config"]["data"] for spec in specs if "data" in spec["config"]), {})
    parts = []
    if data:
        parts.append("Data: " + ", ".join([*data.get("text", []), *data.get("tasks", [])]))
    seeds = sorted(study.runs["seed"].unique().tolist())
    parts.append(f"seeds {', '.join(map(str, seeds))}")
    if store:
        parts.append(f"store {store}")
    versions = sorted({str(spec["environment"].get("shaping")) for spec in specs if spec.get("environment")})
    if versions:
        parts.append(f"code shaping {', '.join(versions)}")
    return "; ".join(parts) + "."


def _architecture_table(study: Study, provenance: str, models: set[str]) -> Table:
    """Table 1: the models."""
    rows: dict[str, dict[Column, Any]] = {}
    for model in _models(study):
        if models and model not in models:
            continue
        config = _pretrain_config(study, model)
        counts = study.runs.loc[study.runs["model"] == model, "parameters"].dropna()
        architecture = Architecture(
            config=config.get("model", {}),
            vocab_size=config.get("vocab_size") or (config.get("data") or {}).get("vocab_size"),
            parameters=None if counts.empty else int(counts.iloc[0]),
        )
        values = {name: value(architecture) for name, value in ARCHITECTURE_COLUMNS.items()}
        rows[model] = {("", name): MISSING if value is None else str(value) for name, value in values.items()}
    cells = with_columns(list(rows.values()), pd.Index(list(rows), name="model"))
    caption = f"The models; tied embeddings are counted once. {provenance}"
    return Table("table-01", 1, "Table 1: Architectures", caption, cells)


@dataclass
class _Builder:
    """Builds the tables of one study."""

    study: Study
    grid: MeasurementGrid
    estimates: Estimates
    provenance: str
    planned: dict[tuple[str, str, str], dict[int, Any]] = field(default_factory=dict)
    """(model, stage, objective) -> step -> tokens (in RL the step again) of its planned evaluations."""
    controls: dict[tuple[str, str], set[tuple[str, int]]] = field(default_factory=dict)
    """(model, variant) -> (objective, step) of the RL evaluations that were measured with it."""

    def __post_init__(self) -> None:
        # Index the planned evaluations, so that tables have rows for those that were not run yet.
        runs = self.study.runs[self.study.runs["stage"] == "evaluate"]
        places_of = places(self.study.plan)
        for signature, model, objective in zip(
            *(runs[name].tolist() for name in ("stage_run", "model", "objective")), strict=True
        ):
            for stage, step, tokens in places_of.get(signature, []):
                steps = self.planned.setdefault((model, stage, objective), {})
                steps[step] = step if tokens is None else tokens
        # Index the controls by the setting that they imitate.
        for quantity in self.grid.rows:
            if quantity.variant and quantity.stage == "grpo":
                measured = self.controls.setdefault((quantity.model, quantity.variant), set())
                measured.add((quantity.objective, quantity.step))

    def model_tables(self, model: str, numbers: set[int]) -> list[_Draft]:
        """All tables of one model; if `numbers` is not empty, only the paper's tables with these numbers."""
        role = counterpart(model, _pretrain_config(self.study, model).get("model", {}))
        runs = self.study.runs[self.study.runs["model"] == model]
        present, stages = runs["objective"].unique().tolist(), set(runs["stage"].unique())
        # The paper's tables that this model takes part in, with the settings it has.
        drafts = []
        for number, paper_table in TABLES.items():
            settings = [name for name in paper_table.settings if name in present]
            if paper_table.model != role or not settings or paper_table.stage not in stages:
                continue
            if numbers and number not in numbers:
                continue
            if paper_table.stage == "grpo":
                drafts.append(self.rl_table(model, settings[0], number=number, role=role))
            else:
                drafts.append(self.base_table(model, paper_table, settings, number=number))

        # Settings that the paper does not have get tables without a number.
        others = sorted(set(present) - {*BETA_FAMILY, *LAMBDA_FAMILY})
        if others and not numbers:
            for stage in (stage for stage in TOKEN_STAGES if stage in stages):
                drafts.append(self.base_table(model, PaperTable(stage, role, ()), others, number=None))
            with_rl = set(runs.loc[runs["stage"] == "grpo", "objective"].unique())
            drafts += [self.rl_table(model, name, number=None, role=role) for name in others if name in with_rl]
        return drafts

    def base_table(self, model: str, paper_table: PaperTable, settings: list[str], *, number: int | None) -> _Draft:
        """Tables 2-13: benchmarks over token checkpoints, the settings of one family below each other."""
        stage = paper_table.stage
        benchmarks: Benchmarks = self.grid.benchmarks.get((model, stage), {})
        columns = join_columns(build(benchmarks, stage) for build in BASE_MODEL_COLUMNS)
        averages = {
            name: next((row for row in reported(number, name) if row["benchmark"] == "average"), None)
            for name in settings
        }
        is_reported = any(averages.values())
        same: set[str] = set()
        records, index = [], []
        for objective in settings:
            steps = self.checkpoints(model, stage, objective)
            if self.is_same(averages[objective], columns["", "average"].pairs, model=model, last=steps[-1:]):
                same.add(objective)
            for step, tokens in steps:
                checkpoint = Checkpoint(model, objective, stage, step)
                record: dict[Column, Any] = {
                    name: self.estimates.entry(checkpoint, scores) for name, scores in columns.items()
                }
                # The paper's number is next to the last checkpoint's.
                if is_reported:
                    row = averages[objective] if step == steps[-1][0] else None
                    ours = record["", "average"] if objective in same else None
                    record |= _paper_columns(row, ours, (paper_table.model, "average"))
                records.append(record)
                index.append((objective, tokens))
        cells = _with_differences(records, pd.MultiIndex.from_tuples(index, names=["objective", "tokens"]))
        families: dict[tuple[str, ...], tuple[str, str]] = {BETA_FAMILY: ("β", "beta"), LAMBDA_FAMILY: ("λ", "lambda")}
        symbol, family = families.get(paper_table.settings, ("the other settings", "other"))
        name = f"table-{number:02d}-{model}" if number else f"{stage}-{family}-{model}"
        title = f"{_numbered(number)}{STAGE_TITLES[stage]} by {symbol}, {model}"
        return _Draft(
            Table(name, number, title, "", cells, model, stage, tuple(settings)),
            "Scores in percent over token checkpoints; perplexity and entropy (nats) on held-out text.",
            f"{_comparison_note(paper_table.model, bool(same)) if is_reported else ''}{self.provenance}",
        )

    def rl_table(self, model: str, objective: str, *, number: int | None, role: str) -> _Draft:
        """Tables 14-23: one setting over RL steps; Avg, Cons and Pass of every benchmark, and the controls.

        One is the cross-entropy model, sampled at the temperature at which it has this setting's entropy: evaluation
        variant `matched:<objective>`; the other is RL from that model at that temperature, `tempered:<objective>`.
        """
        benchmarks: Benchmarks = self.grid.benchmarks.get((model, "grpo"), {})
        columns = join_columns(build(benchmarks) for build in RL_COLUMNS)
        # Step 0 is the model that RL starts from, which is evaluated before RL.
        steps = sorted({0, *(step for step, _ in self.checkpoints(model, "grpo", objective))})
        # The paper's numbers of measured benchmarks, each with whether ours measures the same.
        paper_rows = []
        for row in reported(number, objective):
            pairs = columns.get((row["benchmark"], metric_title(row["metric"])), Scores(())).pairs
            if row["benchmark"] in ("average", *rl_benchmarks(benchmarks)):
                paper_rows.append((row, self.is_same(row, pairs, model=model, last=[(steps[-1], steps[-1])])))
        records, index = [], []
        for step in steps:
            checkpoint = Checkpoint(model, objective, "grpo", step)
            record: dict[Column, Any] = {
                name: self.estimates.entry(checkpoint, scores) for name, scores in columns.items()
            }
            for row, is_same in paper_rows:
                column = (row["benchmark"], metric_title(row["metric"]))
                shown = row if step == steps[-1] else None
                record |= _paper_columns(shown, record[column] if is_same else None, (role, " ".join(column)))
            records.append(record)
            index.append((objective, step))

        # The control's rows come last and have no number of the paper.
        variant = f"matched:{objective}"
        controls = sorted(self.controls.get((model, variant), set()))
        for changed, words in ((variant, "entropy matched"), (f"tempered:{objective}", "RL from it tempered")):
            for baseline, step in sorted(self.controls.get((model, changed), set())):
                checkpoint = Checkpoint(model, baseline, "grpo", step)
                record = self.entries(checkpoint, columns, changed)
                records.append(record | {column: "" for column in records[0] if column not in record})
                index.append((f"{baseline}, {words}", step))
        cells = _with_differences(records, pd.MultiIndex.from_tuples(index, names=["objective", "RL step"]))
        note = ""
        if not controls and not self.is_cross_entropy(objective):
            note = f"The temperature-matched control is missing: no evaluation variant {variant} of ce was measured. "
        if paper_rows:
            note += _comparison_note(role, any(is_same for _, is_same in paper_rows))
        name = f"table-{number:02d}-{model}" if number else f"grpo-{objective}-{model}"
        title = f"{_numbered(number)}RL from {objective}, {model}"
        return _Draft(
            Table(name, number, title, "", cells, model, "grpo", (objective,)),
            "Percent on held-out problems over RL steps; step 0 is the model that RL starts from.",
            f"{note}{self.provenance}",
        )

    def entries(self, checkpoint: Checkpoint, columns: Columns, variant: str = "") -> dict[Column, Any]:
        """A row of a table: the estimate of each column at a checkpoint."""
        return {name: self.estimates.entry(checkpoint, scores, variant) for name, scores in columns.items()}

    def is_same(
        self, row: dict[Any, Any] | None, pairs: tuple[tuple[str, str], ...], *, model: str, last: list[tuple[int, Any]]
    ) -> bool:
        """Whether a number of the paper measures the same as the mean over `pairs` at the `last` (step, tokens)."""
        if row is None or not last:
            return False
        scales = set(self.study.runs.loc[self.study.runs["model"] == model, "scale"])
        return is_same_measurement(row, pairs, model=model, scales=scales, progress=last[0][1])

    def is_cross_entropy(self, objective: str) -> bool:
        """Whether a setting's objective is plain cross-entropy, whatever its name."""
        runs = self.study.runs[self.study.runs["objective"] == objective]
        return bool((runs[["beta", "lam_head", "lam_tail"]] == 0).all(axis=None))

    def checkpoints(self, model: str, stage: str, objective: str) -> list[tuple[int, Any]]:
        """(step, tokens) of every planned evaluation of a setting's stage, finished or not."""
        return sorted(self.planned.get((model, stage, objective), {}).items())


def _paper_columns(row: dict[Any, Any] | None, ours: Entry | None, column: tuple[str, str]) -> dict[Column, Any]:
    """The paper's number and how far ours is from it, if ours is not None; `column` is (paper's model, what it is)."""
    paper_model, name = column
    columns: dict[Column, Any] = {(f"paper, {paper_model}", name): f"{row['value']:.2f}" if row else ""}
    if row is None or ours is None:
        return columns | {(DIFFERENCE, name): ""}
    if ours.value is None:
        return columns | {(DIFFERENCE, name): Entry(None, waits_for=ours.waits_for)}
    low, high = (None if end is None else end - row["value"] for end in (ours.low, ours.high))
    difference = replace(ours, value=ours.value - row["value"], low=low, high=high, number_format="{:+.2f}")
    return columns | {(DIFFERENCE, name): difference}


def _with_differences(records: list[dict[Column, Any]], index: pd.MultiIndex) -> pd.DataFrame:
    """The rows as a frame, without the columns of differences in which nothing is compared."""
    cells = with_columns(records, index)
    is_empty = [column[0] == DIFFERENCE and set(cells[column]) <= {""} for column in cells.columns]
    return cells.loc[:, np.invert(np.array(is_empty, dtype=bool))]


def _comparison_note(paper_model: str, is_same: bool) -> str:
    """What a caption says about the paper's numbers."""
    if is_same:
        return "Paper: arXiv 2512.22955, which reports no seeds or intervals. "
    return (
        f"Paper: its {paper_model} (arXiv 2512.22955) on its own benchmarks and budget; "
        "compare the pattern with ours, not the values. "
    )


def _numbered(number: int | None) -> str:
    return f"Table {number}: " if number else ""
