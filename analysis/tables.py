"""The paper's tables, filled with a study's own numbers beside the ones that the paper reports.

A table keeps, beside every number, the stage runs that it came from, so that a page can link to them; where a number
is missing it keeps the stage runs that have to run first. With several seeds a cell is the mean over seeds with a 95 %
interval (t); with one it is the number with the interval over its problems. The best of several settings is marked
only where its difference from each of the others, seed by seed, is significant after Holm's correction over the table.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.measurement_grid import Cells, gather
from analysis.paper_tables import BETA, GROUPS, LAMBDA, STAGE_NAMES, TABLES, Place, benchmark_order, counterpart
from analysis.reference import MODELS, known
from analysis.statistics import ALPHA, Floats, holm, t_quantile, t_test
from analysis.study import Study, checkpoint_step
from pipelines.configuration import TOKEN_STAGES
from pipelines.garbage_collection import no_collection

MISSING = "–"
Z = 1.959963984540054


@dataclass(frozen=True)
class Entry:
    """One cell of a table: a mean over `n` seeds with its interval, or what has to run before there is one."""

    value: float | None
    half: float | None = None
    """Half-width of the 95 % interval."""
    n: int = 0
    stage_runs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    """`stage/signature` that have to run before the number is complete."""
    best: bool = False
    form: str = "{:.2f}"
    by_seed: tuple[float, ...] = field(default=(), repr=False)
    """Seed by seed in the study's order, NaN where a seed is missing."""

    def __str__(self) -> str:
        if self.value is None:
            return MISSING
        number = self.form.format(self.value)
        return number if self.half is None else f"{number} ± {self.form.format(self.half).lstrip('+')}"


Column = tuple[str, str]
"""(group, name)"""


@dataclass(frozen=True)
class Table:
    """A table of the paper's layout. `cells` holds `Entry` or text; columns are (group, name), the index is named."""

    name: str
    number: int | None
    """The paper's number; None for what the paper does not have."""
    title: str
    caption: str
    cells: pd.DataFrame
    model: str | None = None
    stage: str | None = None
    objectives: tuple[str, ...] = ()

    def text(self) -> pd.DataFrame:
        """The cells as text, flat column names; `n` is shown where it is not the table's usual one."""
        usual = self.usual_n
        frame = self.cells.map(lambda cell: show(cell, usual))
        frame.columns = pd.Index([" ".join(filter(None, column)) for column in self.columns])
        return frame

    @property
    def columns(self) -> list[Column]:
        """(group, name) of every column."""
        return [(str(group), str(name)) for group, name in map(tuple, self.cells.columns)]

    @property
    def entries(self) -> list[Entry]:
        """All cells that are or want to be numbers of this study."""
        return [cell for cell in self.cells.to_numpy().ravel() if isinstance(cell, Entry)]

    @property
    def usual_n(self) -> int:
        """The number of seeds that most cells have."""
        counts = [entry.n for entry in self.entries if entry.value is not None and entry.stage_runs]
        return max(sorted(set(counts)), key=counts.count, default=0)

    @property
    def missing(self) -> int:
        """Cells that have no number yet."""
        return sum(entry.value is None for entry in self.entries)

    @property
    def lacks(self) -> list[str]:
        """The stage runs that the table's numbers wait for."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.lacks))


def show(cell: Any, usual: int) -> str:
    """A cell as text."""
    if isinstance(cell, Entry) and cell.value is not None and cell.stage_runs and cell.n != usual:
        return f"{cell} (n = {cell.n})"
    return MISSING if cell is None else str(cell)


@dataclass
class _Builder:
    """What all tables of one study share."""

    study: Study
    cells: Cells
    about: str
    spots: dict[tuple[str, str, str], dict[int, Any]] = field(default_factory=dict)
    """(model, stage, objective) -> step -> tokens (the step itself in RL) of its planned evaluations"""
    roles: dict[str, str] = field(default_factory=dict)
    """model -> the paper's model whose place it takes"""
    controls: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """(model, variant) -> RL steps at which ce was measured so"""

    def __post_init__(self) -> None:
        own = self.study.runs[self.study.runs["stage"] == "evaluate"]
        for model, stage, objective, checkpoint, tokens in zip(
            *(own[name].tolist() for name in ("model", "measures", "objective", "checkpoint", "tokens")), strict=True
        ):
            step = checkpoint_step(checkpoint)
            place = self.spots.setdefault((model, stage, objective), {})
            place[step] = step if tokens is None or tokens is pd.NA else tokens
        for model, objective, stage, step, variant, *_ in self.cells.rows:
            if variant and stage == "grpo" and objective == "ce":
                self.controls.setdefault((model, variant), set()).add(step)

    def lacks(self, place: tuple[str, str, str, int]) -> tuple[str, ...]:
        """`stage/signature` that a place's evaluations wait for."""
        waiting = [s for s in self.cells.evaluations.get(place, ()) if self.study.status[s] != "done"]
        return tuple(self.study.lacks(waiting)) if waiting else ()

    def checkpoints(self, model: str, stage: str, objective: str) -> list[tuple[int, Any]]:
        """(step, tokens) of every planned evaluation of a setting's stage, whether it was run or not."""
        return sorted(self.spots.get((model, stage, objective), {}).items())

    def entry(self, place: tuple[str, str, str, int], scores: Sequence[tuple[str, str]], factor: float,
              variant: str = "", form: str = "{:.2f}") -> Entry:  # fmt: skip
        """The mean over `scores` (benchmark, metric) of a place, over the seeds that have all of them."""
        lacks = self.lacks(place)
        rows = [self.cells.rows.get((*place, variant, *score)) for score in scores]
        if not rows or any(row is None for row in rows):
            return Entry(None, lacks=lacks)
        found: list[int] = [row for row in rows if row is not None]
        by_seed = [value * factor for value in self.cells.values[found].mean(0).tolist()]
        there = [value for value in by_seed if value == value]
        n = len(there)
        if n == 0:
            return Entry(None, lacks=lacks)
        half: float | None
        mean = math.fsum(there) / n
        if n > 1:
            spread = math.sqrt(math.fsum((value - mean) ** 2 for value in there) / (n - 1))
            half = t_quantile(n - 1) * spread / math.sqrt(n)
        else:  # one seed: what is known of its error is the spread over problems
            errors = self.cells.errors[found][:, [value == value for value in by_seed]] * factor
            half = float(Z * np.sqrt((errors**2).sum()) / len(found)) or None
        stage_runs = tuple(dict.fromkeys(s for row in found for s in self.cells.stage_runs[row]))
        return Entry(mean, half, n, stage_runs, lacks, form=form, by_seed=tuple(by_seed))


@no_collection()
def build_tables(study: Study, store: str = "", numbers: Iterable[int] = (), models: Iterable[str] = ()) -> list[Table]:
    """All tables of a study in the paper's order, for every model in it; `numbers` and `models` choose among them.

    Tables that the paper does not have (other settings) come last and are left out where `numbers` are named.
    `store` is named in the captions.
    """
    wanted, chosen = set(numbers), set(models)
    builder = _Builder(study, gather(study), about(study, store))
    tables = []
    if len(study.runs) and (not wanted or 1 in wanted):
        tables.append(architecture(study, builder.about, chosen))
    for model in _models(study):
        if chosen and model not in chosen:
            continue
        role = builder.roles[model] = counterpart(model, _architecture(study, model))
        planned = study.runs[study.runs["model"] == model]
        present, stages = planned["objective"].unique().tolist(), set(planned["stage"].unique())
        for number, place in TABLES.items():
            settings = [name for name in place.settings if name in present]
            if place.model != role or not settings or place.stage not in stages or (wanted and number not in wanted):
                continue
            if place.stage == "grpo":
                tables.append(rl_table(builder, model, settings[0], number))
            else:
                tables.append(base_table(builder, model, place, settings, number))
        others = sorted(set(present) - {*BETA, *LAMBDA})
        if others and not wanted:
            for stage in TOKEN_STAGES:
                tables.append(base_table(builder, model, Place(stage, role, ()), others, None))
            with_rl = set(planned.loc[planned["stage"] == "grpo", "objective"].unique())
            tables += [rl_table(builder, model, name, None) for name in others if name in with_rl]
    tables = _mark_best(tables)
    return sorted(tables, key=lambda table: (table.number is None, table.number or 0))


def _models(study: Study) -> list[str]:
    found = study.runs["model"].unique().tolist()
    return sorted(found, key=lambda name: (MODELS.index(name) if name in MODELS else len(MODELS), found.index(name)))


def _architecture(study: Study, model: str) -> dict[str, Any]:
    runs = study.runs[(study.runs["model"] == model) & (study.runs["stage"] == "pretrain")]
    return study.specs[runs["stage_run"].iloc[0]]["config"].get("model", {}) if len(runs) else {}


def about(study: Study, store: str) -> str:
    """What every caption says: data, seeds, store and code."""
    specs = list(study.specs.values())
    if not specs:
        return "Nothing is planned."
    data = specs[0]["config"].get("data", {})
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


def architecture(study: Study, about: str, models: set[str]) -> Table:
    """Table 1: the models."""
    rows: dict[str, dict[Column, Any]] = {}
    for model in _models(study):
        if models and model not in models:
            continue
        config = _architecture(study, model)
        runs = study.runs[(study.runs["model"] == model) & (study.runs["stage"] == "pretrain")]
        parameters = runs["parameters"].dropna()
        spec = study.specs[runs["stage_run"].iloc[0]]["config"] if len(runs) else {}
        shown = {
            "layers": config.get("layers"),
            "d_model": config.get("d_model"),
            "FFN / expert": config.get("ffn"),
            "heads": config.get("heads"),
            "kv heads": config.get("kv_heads"),
            "head size": config.get("head_dim"),
            "experts": config.get("experts"),
            "active": config.get("active_experts", config.get("experts_per_token")),
            "vocabulary": (spec.get("data") or {}).get("vocab_size"),
            "parameters": None if parameters.empty else f"{int(parameters.iloc[0]):,}",
        }
        rows[model] = {("", key): MISSING if value is None else str(value) for key, value in shown.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    if rows:
        frame.columns = pd.MultiIndex.from_tuples(list(next(iter(rows.values()))))
    frame.index.name = "model"
    caption = f"The models; tied embeddings are counted once. {about}"
    return Table("table-01", 1, "Table 1: Architectures", caption, frame)


def score_metric(metrics: Iterable[str], group: str) -> str | None:
    """The metric that a base model's table shows for a benchmark, of those measured: Pass@k at the largest k for
    mathematics and code (as in the paper), else accuracy, else Avg@n; None where there is none of them."""
    found = set(metrics)
    passes = sorted((int(m.split("@")[1]), m) for m in found if m.startswith("pass@"))
    if passes and group in ("math", "code"):
        return passes[-1][1]
    if "accuracy" in found:
        return "accuracy"
    return next((m for m in sorted(found) if m.startswith("avg@")), None)


def base_table(builder: _Builder, model: str, place: Place, settings: list[str], number: int | None) -> Table:
    """Tables 2-13: benchmarks over token checkpoints, settings of one family below each other."""
    stage = place.stage
    benchmarks = [
        (group, name, metrics) for name, (group, metrics) in builder.cells.benchmarks.get((model, stage), {}).items()
    ]
    scores: dict[Column, tuple[str, str]] = {}
    text: dict[Column, tuple[str, str]] = {}
    for group in GROUPS:
        own = {name: metrics for found, name, metrics in benchmarks if found == group}
        for name in benchmark_order(own, stage):
            if metric := score_metric(own[name], group):
                scores[group, f"{name} {pretty(metric)}"] = (name, metric)
    for group, name, metrics in benchmarks:
        if group == "text":
            text |= {("text", pretty(m)): (name, m) for m in ("perplexity", "entropy") if m in metrics}
    places = [(objective, *spot) for objective in settings for spot in builder.checkpoints(model, stage, objective)]
    reported = (
        {name: {(r["benchmark"], r["metric"]): r for r in known(number, name)} for name in settings} if number else {}
    )
    records = []
    for objective, step, _ in places:
        at = (model, objective, stage, step)
        record: dict[Column, Any] = {column: builder.entry(at, [score], 100) for column, score in scores.items()}
        record["", "average"] = builder.entry(at, list(scores.values()), 100)
        record |= {column: builder.entry(at, [score], 1) for column, score in text.items()}
        if any(reported.values()):
            last = step == max(s for name, s, _ in places if name == objective)
            row = reported[objective].get(("average", "score")) if last else None
            record |= _beside(row, record["", "average"], place.model, "average")
        records.append(record)
    index = pd.MultiIndex.from_tuples([(o, t) for o, _, t in places], names=["objective", "tokens"])
    frame = pd.DataFrame(records, index=index, dtype=object)
    if len(frame.columns):
        frame.columns = pd.MultiIndex.from_tuples(list(records[0]))
    families = {BETA: ("β", "beta"), LAMBDA: ("λ", "lambda")}
    symbol, family = next((f for own, f in families.items() if own == place.settings), ("the other settings", "other"))
    caption = (
        f"Scores in percent over token checkpoints; perplexity and entropy (nats) on held-out text. "
        f"{_spread(frame)} {_compared(place.model, model, any(reported.values()))}{builder.about}"
    )
    name = f"table-{number:02d}-{model}" if number else f"{stage}-{family}-{model}"
    title = f"{_numbered(number)}{STAGE_NAMES[stage]} by {symbol}, {model}"
    return Table(name, number, title, caption, frame, model, stage, tuple(settings))


def _beside(row: dict[Any, Any] | None, own: Entry, paper_model: str, what: str) -> dict[Column, Any]:
    """The paper's number and how far ours is from it."""
    if row is None:
        return {(f"paper, {paper_model}", what): "", ("ours - paper", what): ""}
    difference: Any = Entry(None, lacks=own.lacks)
    if own.value is not None:
        difference = replace(own, value=own.value - row["value"], form="{:+.2f}")
    return {(f"paper, {paper_model}", what): f"{row['value']:.2f}", ("ours - paper", what): difference}


def _compared(paper_model: str, model: str, reported: bool) -> str:
    if not reported:
        return ""
    if model == paper_model:
        return "Paper: arXiv 2512.22955, which reports no seeds or intervals. "
    return (
        f"Paper: its {paper_model} (arXiv 2512.22955) on its own benchmarks, "
        "beside ours for the shape and not for comparison. "
    )


def _numbered(number: int | None) -> str:
    return f"Table {number}: " if number else ""


def _spread(frame: pd.DataFrame) -> str:
    """What ± means in a table."""
    entries = [cell for cell in frame.to_numpy().ravel() if isinstance(cell, Entry) and cell.value is not None]
    counts = sorted({entry.n for entry in entries})
    if not counts:
        return "Nothing measured yet."
    if counts == [1]:
        return "One seed; ± 95 % over its problems, which says nothing of other seeds."
    counted = f"{counts[-1]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    bold = " Bold: better than every other setting, paired by seed, Holm-corrected p < 0.05."
    return f"Mean over {counted} ± 95 % interval (t).{bold if any(e.best for e in entries) else ''}"


KINDS = ("avg", "cons", "pass")


def rl_table(builder: _Builder, model: str, objective: str, number: int | None) -> Table:
    """Tables 14-23: one setting over RL steps; Avg, Cons and Pass of every benchmark, and the control.

    The control is the ce model sampled at the temperature at which its entropy is this setting's: evaluation variant
    `matched:<objective>` of the ce cell.
    """
    role = builder.roles[model]
    measured = builder.cells.benchmarks.get((model, "grpo"), {})
    benchmarks = [(name, metrics) for name, (group, metrics) in measured.items() if group == "math"]
    names = benchmark_order([name for name, _ in benchmarks], "grpo")
    sampled = {m for _, metrics in benchmarks for m in metrics if m.split("@")[0] in KINDS and "@" in m}
    kinds = sorted(sampled, key=lambda m: (KINDS.index(m.split("@")[0]), int(m.split("@")[1])))
    columns: dict[Column, list[tuple[str, str]]] = {(b, pretty(m)): [(b, m)] for b in names for m in kinds}
    columns |= {("average", pretty(m)): [(b, m) for b in names] for m in kinds}
    largest = kinds[-1] if kinds and kinds[-1].startswith("pass@") else None
    reported = known(number, objective) if number else []
    steps = [0, *(step for step, _ in builder.checkpoints(model, "grpo", objective))]
    records, index = [], []
    for step in steps:
        at = (model, objective, "grpo", step)
        record: dict[Column, Any] = {column: builder.entry(at, scores, 100) for column, scores in columns.items()}
        for row in reported:
            what = f"{row['benchmark']} {pretty(row['metric'])}"
            metric = row["metric"] if row["metric"] in kinds else largest
            own = record.get((row["benchmark"], pretty(metric or "")), Entry(None))
            if row["benchmark"] == "average" or row["benchmark"] in names:
                record |= _beside(row if step == steps[-1] else None, own, role, what)
        records.append(record)
        index.append((objective, step))
    variant = f"matched:{objective}"
    controlled = builder.controls.get((model, variant), set())
    for step in sorted(controlled):
        at = (model, "ce", "grpo", step)
        record = {column: builder.entry(at, scores, 100, variant) for column, scores in columns.items()}
        records.append(record | {column: "" for column in records[0] if column not in record})
        index.append(("ce, entropy matched", step))
    frame = pd.DataFrame(records, index=pd.MultiIndex.from_tuples(index, names=["objective", "RL step"]), dtype=object)
    if len(frame.columns):
        frame.columns = pd.MultiIndex.from_tuples(list(records[0]))
    control = ""
    if objective != "ce" and not controlled:
        control = f"The temperature-matched ce control is missing: no evaluation variant {variant} of ce was measured. "
    caption = (
        f"Percent on held-out problems over RL steps; step 0 is the mid-trained model. {_spread(frame)} "
        f"{control}{_compared(role, model, bool(reported))}{builder.about}"
    )
    name = f"table-{number:02d}-{model}" if number else f"grpo-{objective}-{model}"
    title = f"{_numbered(number)}RL from {objective}, {model}"
    return Table(name, number, title, caption, frame, model, "grpo", (objective,))


def _mark_best(tables: list[Table]) -> list[Table]:
    """The tables with the significantly best entries marked: settings compete at one place of one stage of one model.

    The settings of a base model's table compete inside it; RL tables hold one setting each, so those of a model
    compete with one another, and Holm's correction runs over all of them together.
    """
    arenas: dict[Any, list[int]] = {}
    for position, table in enumerate(tables):
        if table.stage:
            arenas.setdefault((table.model, "grpo") if table.stage == "grpo" else table.name, []).append(position)
    marked = {position: table.cells.copy() for position, table in enumerate(tables)}
    for positions in arenas.values():
        rivals: dict[tuple[Any, Column], list[tuple[int, int, int]]] = {}
        for position in positions:
            frame = tables[position].cells
            names = tables[position].columns
            for row, (key, cells) in enumerate(zip(frame.index, frame.to_numpy(), strict=True)):
                for column, (name, cell) in enumerate(zip(names, cells, strict=True)):
                    if _competes(key[0], name, cell):
                        rivals.setdefault((key[1], name), []).append((position, row, column))
        _mark(tables, marked, [group for group in rivals.values() if len(group) > 1])
    done = []
    for position, table in enumerate(tables):
        frame = marked[position]
        before = _spread(table.cells)
        caption = table.caption.replace(before, _spread(frame)) if table.stage else table.caption
        done.append(replace(table, cells=frame, caption=caption))
    return done


def _competes(objective: Any, column: Column, cell: Any) -> bool:
    return (
        isinstance(cell, Entry)
        and cell.value is not None
        and cell.n > 1
        and column[0] not in ("ours - paper",)
        and column[1] != "entropy"  # neither more nor less of it is better
        and not str(objective).startswith("ce, ")
    )


def _mark(tables: list[Table], marked: dict[int, pd.DataFrame], groups: list[list[tuple[int, int, int]]]) -> None:
    """Bold where the best of a group differs from each of the others, corrected over all groups."""
    tests: list[Floats] = []
    winners: list[tuple[tuple[int, int, int], slice]] = []
    count = 0
    for group in groups:
        entries: list[Any] = [tables[p].cells.iat[r, c] for p, r, c in group]
        lower = tables[group[0][0]].columns[group[0][2]][1] == "perplexity"
        best = min(range(len(group)), key=lambda i: entries[i].value if lower else -entries[i].value)
        own = [np.array(entry.by_seed) for entry in entries]
        differences = np.stack([own[best] - other for i, other in enumerate(own) if i != best])
        tests.append(t_test(differences))
        winners.append((group[best], slice(count, count + len(differences))))
        count += len(differences)
    if not tests:
        return
    corrected = holm(np.concatenate(tests))
    for (position, row, column), part in winners:
        if (corrected[part] < ALPHA).all():
            cell: Any = marked[position].iat[row, column]
            marked[position].iat[row, column] = replace(cell, best=True)


def pretty(metric: str) -> str:
    """`pass@4` -> `Pass@4`."""
    return metric[0].upper() + metric[1:] if "@" in metric else metric
