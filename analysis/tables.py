"""The paper's table families, filled with a study's own numbers.

A table keeps, beside every number, the stage runs that it came from, so that a page can link to them. With several
seeds a cell is the mean over seeds with a 95 % interval; with one it is the number, and the caption says so. What has
not been run is an empty cell.
"""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

from analysis.frames import Study

MISSING = "–"
BETA_FAMILY = ("precision", "ce", "diversity")
LAMBDA_FAMILY = ("tail_penalty", "ce", "head_reward")
NAMES = {"pretrain": "Pre-training", "midtrain": "Mid-training", "grpo": "RL"}
GROUPS = ("knowledge", "commonsense", "logic", "math", "code")

ARROWS = {"perplexity": "lower"}


@dataclass(frozen=True)
class Entry:
    """One cell of a table: mean over seeds, half-width of its interval (None with one seed), and its stage runs."""

    value: float
    interval: float | None
    stage_runs: tuple[str, ...]
    form: str = "{:.2f}"

    def __str__(self) -> str:
        number = self.form.format(self.value)
        return number if self.interval is None else f"{number} ± {self.form.format(self.interval)}"


@dataclass(frozen=True)
class Table:
    """A table of the paper's layout. `cells` holds `Entry`, text, or None where a number is missing; columns are
    (group, name) pairs, the index is named."""

    name: str
    title: str
    caption: str
    cells: pd.DataFrame

    def text(self) -> pd.DataFrame:
        """The cells as text, flat column names."""
        frame = self.cells.map(lambda cell: MISSING if cell is None else str(cell))
        frame.columns = pd.Index([" ".join(filter(None, column)) for column in self.columns])
        return frame

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(group, name) of every column."""
        return [(str(group), str(name)) for group, name in map(tuple, self.cells.columns)]

    @property
    def missing(self) -> int:
        """Cells that have no number yet."""
        return int(sum(cell is None for cell in self.cells.to_numpy().ravel()))


def build_tables(study: Study) -> list[Table]:
    """All tables of a study, in the paper's order, for every model in it."""
    tables = [architecture(study)]
    for model in sorted(study.runs["model"].unique()):
        for stage in ("pretrain", "midtrain"):
            for family, settings in (("beta", BETA_FAMILY), ("lambda", LAMBDA_FAMILY)):
                chosen = _present(study, model, settings)
                if chosen:
                    tables.append(base_model_table(study, model, stage, family, chosen))
        others = set(study.runs["objective"]) - {*BETA_FAMILY, *LAMBDA_FAMILY}
        if others:
            for stage in ("pretrain", "midtrain"):
                tables.append(base_model_table(study, model, stage, "other", sorted(others)))
        for objective in _present(study, model, None):
            if ((study.runs["objective"] == objective) & (study.runs["stage"] == "grpo")).any():
                tables.append(rl_table(study, model, objective))
    return tables


def _present(study: Study, model: str, settings: tuple[str, ...] | None) -> list[str]:
    found = list(dict.fromkeys(study.runs.loc[study.runs["model"] == model, "objective"]))
    return found if settings is None else [name for name in settings if name in found]


def architecture(study: Study) -> Table:
    """Table 1: the models."""
    rows: dict[str, dict[tuple[str, str], Any]] = {}
    for row in study.runs[study.runs["stage"] == "pretrain"].to_dict("records"):
        config = study.specs[row["stage_run"]]["config"]["model"]
        shown = {
            "layers": config["layers"],
            "d_model": config["d_model"],
            "FFN": config["ffn"],
            "heads": config["heads"],
            "kv heads": config["kv_heads"],
            "head size": config["head_dim"],
            "vocabulary": study.specs[row["stage_run"]]["config"]["data"]["vocab_size"],
        }
        cells: dict[tuple[str, str], Any] = {("", key): str(value) for key, value in shown.items()}
        known = rows.get(row["model"], {}).get(("", "parameters"))
        parameters = None if pd.isna(row["parameters"]) else f"{int(row['parameters']):,}"
        cells["", "parameters"] = known or parameters
        rows[row["model"]] = cells
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.columns = pd.MultiIndex.from_tuples(list(next(iter(rows.values()))))
    frame.index.name = "model"
    return Table("architecture", "Architectures", "The models; embeddings are tied and counted once.", frame)


def score_metric(rows: pd.DataFrame) -> str:
    """The metric that a base model's table shows for a benchmark, of those measured: Pass@k at the largest k for
    mathematics and code (as in the paper), else accuracy, else Avg@n."""
    metrics = set(rows["metric"])
    passes = sorted((int(m.split("@")[1]), m) for m in metrics if m.startswith("pass@"))
    if passes and rows["group"].iloc[0] in ("math", "code"):
        return passes[-1][1]
    return "accuracy" if "accuracy" in metrics else next(m for m in sorted(metrics) if m.startswith("avg@"))


def base_model_table(study: Study, model: str, stage: str, family: str, settings: list[str]) -> Table:
    """Tables 2-13: benchmarks over token checkpoints, settings of one family below each other."""
    measured = study.measurements
    rows = measured[(measured["model"] == model) & (measured["stage"] == stage)]
    columns: dict[tuple[str, str], tuple[str, str]] = {}
    for group in GROUPS:
        for benchmark, own in rows[rows["group"] == group].groupby("benchmark", sort=False):
            metric = score_metric(own)
            columns[group, f"{benchmark} {_pretty(metric)}"] = (str(benchmark), metric)
    text = {
        ("text", _pretty(metric)): (str(benchmark), metric)
        for benchmark in rows.loc[rows["group"] == "text", "benchmark"].unique()
        for metric in ("perplexity", "entropy")
    }
    places = _checkpoints(study, model, stage, settings)
    records = []
    for objective, tokens in places:
        here = rows[(rows["objective"] == objective) & (rows["tokens"] == tokens)]
        scores = {column: entry(here, benchmark, metric, 100) for column, (benchmark, metric) in columns.items()}
        records.append(
            {
                **scores,
                ("", "average"): average(here, list(columns.values())),
                **{column: entry(here, benchmark, metric, 1) for column, (benchmark, metric) in text.items()},
            }
        )
    index = pd.MultiIndex.from_tuples(places, names=["objective", "tokens"])
    frame = pd.DataFrame(records, index=index, dtype=object)
    frame.columns = pd.MultiIndex.from_tuples([*columns, ("", "average"), *text])
    symbol = {"beta": "β", "lambda": "λ"}.get(family, "the other settings")
    return Table(
        f"{stage}-{family}-{model}",
        f"{NAMES[stage]} by {symbol}, {model}",
        f"Scores in percent over token checkpoints; perplexity and entropy (nats) on held-out text. {_seeds(rows)}",
        frame.where(frame.notna(), None),
    )


def _checkpoints(study: Study, model: str, stage: str, settings: list[str]) -> list[tuple[str, int]]:
    """(objective, tokens) of every planned evaluation of a stage, whether it was run or not."""
    runs = study.runs[(study.runs["model"] == model) & (study.runs["measures"] == stage)]
    places = []
    for objective in settings:
        own = runs.loc[runs["objective"] == objective, "stage_run"]
        tokens = sorted({study.specs[signature]["labels"]["tokens"] for signature in own})
        places += [(objective, count) for count in tokens]
    return places


def rl_table(study: Study, model: str, objective: str) -> Table:
    """Tables 14-23: one setting over RL steps; Avg, Cons and Pass of every benchmark."""
    measured = study.measurements
    rows = measured[(measured["model"] == model) & (measured["stage"] == "grpo") & (measured["objective"] == objective)]
    sampled = rows[rows["metric"].str.contains("@")]
    kinds = sorted(sampled["metric"].unique(), key=lambda m: (("avg", "cons", "pass").index(m.split("@")[0]), m))
    rl = sampled[sampled["group"] == "math"]
    benchmarks = list(rl["benchmark"].unique())
    steps = _rl_steps(study, model, objective)
    records = []
    for step in steps:
        here = rl[rl["step"] == step]
        record = {
            (benchmark, _pretty(metric)): entry(here, benchmark, metric, 100)
            for benchmark in benchmarks
            for metric in kinds
        }
        record |= {
            ("average", _pretty(metric)): average(here, [(benchmark, metric) for benchmark in benchmarks])
            for metric in kinds
        }
        records.append(record)
    frame = pd.DataFrame(records, index=pd.Index(steps, name="RL step"), dtype=object)
    columns = [(b, _pretty(m)) for b in [*benchmarks, "average"] for m in kinds]
    frame = frame.reindex(columns=columns) if columns else frame
    frame.columns = pd.MultiIndex.from_tuples(columns or [("", "")])[: len(frame.columns)]
    return Table(
        f"grpo-{objective}-{model}",
        f"RL from {objective}, {model}",
        f"Percent on held-out problems over RL steps; step 0 is the mid-trained model. {_seeds(rows)}",
        frame.where(frame.notna(), None),
    )


def _rl_steps(study: Study, model: str, objective: str) -> list[int]:
    runs = study.runs
    own = runs[(runs["model"] == model) & (runs["objective"] == objective) & (runs["measures"] == "grpo")]
    return [0, *sorted({int(name.split("-")[1]) for name in own["checkpoint"]})]


def entry(rows: pd.DataFrame, benchmark: str, metric: str, factor: float) -> Entry | None:
    """Mean over the seeds in `rows` of one metric of one benchmark, times `factor`; None where there is none."""
    own = rows[(rows["benchmark"] == benchmark) & (rows["metric"] == metric)]
    return _entry(own.groupby("seed")["value"].mean() * factor, own["stage_run"])


def average(rows: pd.DataFrame, benchmarks: list[tuple[str, str]]) -> Entry | None:
    """Mean over benchmarks, then over the seeds that have all of them; None where no seed has."""
    parts = [rows[(rows["benchmark"] == benchmark) & (rows["metric"] == metric)] for benchmark, metric in benchmarks]
    if not parts:
        return None
    together = pd.concat(parts)
    by_seed = together.groupby("seed")["value"].agg(["mean", "count"])
    complete = by_seed.loc[by_seed["count"] == len(benchmarks), "mean"]
    return _entry(complete * 100, together.loc[together["seed"].isin(complete.index), "stage_run"])


def _entry(by_seed: "pd.Series[float]", stage_runs: "pd.Series[str]") -> Entry | None:
    if by_seed.empty:
        return None
    interval = None
    if len(by_seed) > 1:
        interval = float(stats.t.ppf(0.975, len(by_seed) - 1) * by_seed.std(ddof=1) / math.sqrt(len(by_seed)))
    return Entry(float(by_seed.mean()), interval, tuple(dict.fromkeys(stage_runs)))


def _pretty(metric: str) -> str:
    """`pass@4` -> `Pass@4`."""
    return metric[0].upper() + metric[1:] if "@" in metric else metric


def _seeds(rows: pd.DataFrame) -> str:
    seeds = sorted(rows["seed"].unique())
    if len(seeds) > 1:
        return f"Mean over {len(seeds)} seeds ± 95 % interval (t)."
    return "One seed." if seeds else "Nothing measured yet."
