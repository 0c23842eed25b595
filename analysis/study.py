"""A study: what a sweep planned and what its store holds, as typed pandas frames.

analysis.load("store")       every measurement of a store, one row each; `COLUMNS` describes the columns
analysis.ledger("store")     the training stages' metrics over their steps
analysis.samples("store")    the sampled answers
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.launched_labels import launched_labels
from analysis.places import places
from analysis.published_files import published, read_course, read_ledger, read_samples
from analysis.result_cache import (
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    StoredResults,
    read_results,
)
from pipelines.configuration import START, TRAINING_STAGES
from pipelines.errors import UserError
from pipelines.python_gc import no_collection
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import LEDGER, Store, StoredRun

SETTING = ["model", "objective", "beta", "lam_head", "lam_tail", "top_k", "seed"]
"""Columns that identify the cell a row belongs to."""

COLUMNS: dict[str, tuple[str, str]] = {
    "scale": ("category", "label of the study: nano, micro, paper"),
    "model": ("category", "name of the architecture"),
    "objective": ("category", "name of the pre-training objective, or its parameters where it has no name"),
    "beta": ("float64", "exponent of the true token's reward"),
    "lam_head": ("float64", "reward of a wrong token in the head"),
    "lam_tail": ("float64", "reward of a wrong token in the tail"),
    "top_k": ("Int64", "size of the head; empty if the objective does not use it"),
    "seed": ("int64", "seed of the cell; equal seeds see the same data in the same order"),
    "rl_seed": ("Int64", "seed of RL's own random numbers; empty before RL"),
    "stage": ("category", "stage whose checkpoint was measured; the model that RL starts from is also RL's step 0"),
    "step": ("Int64", "optimizer or RL step of the checkpoint"),
    "tokens": ("Int64", "tokens of the measured stage at that checkpoint; empty for grpo"),
    "group": ("category", "column group of the paper's tables, or text"),
    "benchmark": ("category", "name of the benchmark"),
    "metric": ("category", "perplexity, entropy, accuracy, avg@n, cons@n, pass@k, ..."),
    "variant": (
        "category",
        "empty, or what was changed: matched:NAME is sampled at NAME's entropy, tempered:NAME did RL from there",
    ),
    "value": ("float64", "the measurement: fractions, nats, tokens"),
    "stderr": ("float64", "its standard error over items; empty for a single item"),
    "n": ("Int64", "items"),
    "stage_run": ("category", "signature of the evaluation that measured it"),
}
"""Column of `analysis.load` -> dtype and meaning."""

LEDGER_KEYS = [*SETTING, "rl_seed", "variant", "stage", "stage_run"]
"""Columns of every row of a ledger, besides its own."""

CURVE_ROWS = 100_000
"""Total ledger rows kept for a study's curves; longer ledgers are thinned evenly and keep their ends."""


logger = logging.getLogger("analysis")


class NotMeasured(Exception):
    """The store lacks what a claim or figure needs; the message says what is missing."""


@dataclass(frozen=True, eq=False)  # equal to itself only, so that what is computed from it can be kept
class Study:
    """A plan and the results that a store holds for it."""

    measurements: pd.DataFrame
    """Columns `COLUMNS`."""
    runs: pd.DataFrame
    """One row per planned stage run: signature, stage, cell, checkpoint, status, seconds, parameters."""
    specs: Mapping[str, dict[str, Any]]
    """Signature -> spec of every planned stage run, with the environment if it was run."""
    plan: Plan
    store: Store | None
    known_courses: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What `courses` need not read again."""

    @cached_property
    def ledgers(self) -> pd.DataFrame:
        """Ledger rows of the finished training stages, with the columns `LEDGER_KEYS`.

        Read on first access. Raises `UserError` with the line number of a broken line.
        """
        done = self.runs[(self.runs["status"] == "done") & self.runs["stage"].isin(TRAINING_STAGES)]
        if self.store is None:
            return pd.DataFrame(columns=[*LEDGER_KEYS, "step"])
        return _ledger_rows(self.store, done, limit=max(20, CURVE_ROWS // max(1, len(done))))

    @cached_property
    def courses(self) -> dict[str, list[dict[str, Any]]]:
        """Signature of every finished RL run -> the rows of its ledger that measures of its course need.

        Read on first access. Raises `UserError` with the line number of a broken line.
        """
        courses = {}
        for run in self.runs.loc[
            (self.runs["status"] == "done") & (self.runs["stage"] == "grpo"), "stage_run"
        ].tolist():
            rows = self.known_courses.get(run)
            if rows is None and self.store and (path := published(self.store.run("grpo", run), LEDGER)):
                rows = read_course(path)
            if rows:
                courses[run] = rows
        return courses

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The rows of `ledgers` without those of controls."""
        return self.ledgers[self.ledgers["variant"] == ""]

    @cached_property
    def status(self) -> dict[str, str]:
        """Signature -> `done`, `failed`, `running`, `interrupted`, `corrupt` or `missing`."""
        return dict(zip(self.runs["stage_run"].tolist(), self.runs["status"].tolist(), strict=True))

    @cached_property
    def settings(self) -> list[str]:
        """Names of all objectives in the plan's order."""
        return [str(name) for name in self.runs["objective"].unique()]

    def waits_for(self, signatures: Iterable[str]) -> list[str]:
        """`stage/signature` of every unfinished stage run that these need, themselves included, parents first."""
        status: Mapping[str, str] = self.status
        unfinished: dict[str, None] = {}  # an ordered set

        def add(signature: str) -> None:
            # An unfinished parent is listed before its children; finished ones are skipped.
            if status[signature] != "done":
                run = self.plan.runs[signature]
                for parent in run.needs:
                    add(parent)
                unfinished[f"{run.stage}/{signature}"] = None

        for signature in signatures:
            add(signature)
        return list(unfinished)


def baselines(study: Study) -> dict[str, str]:
    """Returns model -> its first setting with plain cross-entropy, whatever its name."""
    runs = study.runs
    plain = runs[(runs[["beta", "lam_head", "lam_tail"]] == 0).all(axis=1)]
    return {str(model): str(part["objective"].iloc[0]) for model, part in plain.groupby("model", sort=False)}


def load(store: str | Path) -> pd.DataFrame:
    """Returns every measurement in the store, one row each; `COLUMNS` describes the columns.

    A stage run whose files are broken is left out and named in a warning. Raises `UserError` if `store` is not a store.
    """
    return read_stored(Store.open(store)).measurements


def ledger(store: str | Path, stage: str | None = None, stage_run: str | None = None) -> pd.DataFrame:
    """Returns every ledger row of the finished training stages in a store, with the columns of their settings.

    `stage` and `stage_run` (a signature or its beginning) select among them. Columns differ by stage; see the list of
    ledger columns in docs/architecture.md.
    """
    opened = Store.open(store)
    runs = read_stored(opened).runs
    chosen = runs[
        (runs["status"] == "done") & (runs["stage"] == stage if stage else runs["stage"].isin(TRAINING_STAGES))
    ]
    if stage_run:
        chosen = chosen[chosen["stage_run"].str.startswith(stage_run)]
    return _ledger_rows(opened, chosen, limit=None)


def _ledger_rows(store: Store, runs: pd.DataFrame, *, limit: int | None) -> pd.DataFrame:
    """The ledger rows of `runs`, at most `limit` of each, with the columns of their settings."""
    rows: list[dict[str, Any]] = []
    for run in runs.to_dict("records"):
        if path := published(store.run(run["stage"], run["stage_run"]), LEDGER):
            setting = {name: run[name] for name in LEDGER_KEYS}
            rows += [row | setting for row in read_ledger(path, limit)]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*LEDGER_KEYS, "step"])


def samples(store: str | Path, benchmark: str | None = None, stage_run: str | None = None) -> pd.DataFrame:
    """Returns sampled answers in a store: `benchmark question response answer right` and their settings.

    `variant` names the control that sampled them, and is "" for a setting's own answers.
    """
    opened = Store.open(store)
    evaluations = read_stored(opened).measurements.drop_duplicates(["stage_run", "stage"])
    frames = []
    about = [*SETTING, "rl_seed", "stage", "step", "variant", "stage_run"]
    for run in evaluations[about].to_dict("records"):
        if stage_run and not run["stage_run"].startswith(stage_run):
            continue
        rows = read_samples(opened, run["stage_run"], benchmark)
        if rows:
            frames.append(pd.DataFrame(rows).assign(**{str(name): value for name, value in run.items()}))
    columns = ["benchmark", "question", "response", "answer", "right", *about]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


@no_collection()
def read_stored(store: Store, scale: str | None = None, seeds: Collection[int] = ()) -> Study:
    """Returns the study of everything in the store, finished or not, without a sweep's plan.

    `scale` and `seeds` select stage runs; by default all are included. With a scale they are those of every sweep that
    was launched with it, which may reuse stage runs of another.
    """
    results = read_results(store)
    launched = launched_labels(store, scale)
    plan = Plan()
    for stored in store.folders([]):
        # Finished stage runs come from the cache; of others only the spec is read.
        finished = results.runs.get(stored.signature)
        spec = finished.spec if finished else _spec(stored, results.broken)
        if spec is None:
            continue
        labels, seed = launched.get(stored.signature, spec["labels"]), spec["config"].get("seed")
        # A start checkpoint has no seed of its own: all seeds start from it.
        if scale in (None, labels.get("scale")) and (not seeds or seed is None or seed in seeds):
            plan.runs[stored.signature] = _stage_run(spec, labels)
    return _study(plan, store, results)


def _spec(stored: StoredRun, broken: Mapping[str, str]) -> dict[str, Any] | None:
    """The spec of an unfinished stage run, or of one whose result is broken; None if it cannot be read."""
    try:
        return stored.spec if stored.is_planned else None
    except UserError as error:
        if stored.signature not in broken:
            logger.warning("%s", error)
        return None


def _stage_run(spec: Mapping[str, Any], labels: dict[str, Any]) -> StageRun:
    parent = spec["parent"] and (spec["parent"]["stage"], spec["parent"]["signature"])
    return StageRun(
        stage=spec["stage"],
        signature=spec["signature"],
        version=spec["version"],
        config=spec["config"],
        parent=parent,
        checkpoint=spec["checkpoint"],
        steps=0,
        labels=labels,
    )


@no_collection()
def read_study(plan: Plan, store: Store | None) -> Study:
    """Returns the study of `plan` with the results in `store`; without a store, all stage runs are missing.

    A broken stage run is named in a warning, and missing in the study.
    """
    return _study(plan, store, read_results(store) if store else StoredResults())


def _study(plan: Plan, store: Store | None, results: StoredResults) -> Study:
    runs = _runs(plan, store, results)
    # The labels are those of this study, not of the one that ran a stage run first.
    specs = {
        s: results.runs[s].spec | {"labels": run.labels} if s in results.runs else run.spec
        for s, run in plan.runs.items()
    }
    known = {signature: run.course for signature, run in results.runs.items() if run.course is not None}
    return Study(_measurements(plan, results, runs), runs, specs, plan, store, known)


def _runs(plan: Plan, store: Store | None, results: StoredResults) -> pd.DataFrame:
    """`Study.runs`: one row per planned stage run."""
    rows = []
    for run in plan.runs.values():
        result = results.runs.get(run.signature)
        if result or run.signature in results.broken:
            status = "done" if result else "corrupt"
        else:
            status = store.run(run.stage, run.signature).status if store else "missing"
        # Every column that describes the cell; results are empty until the stage run is done.
        rows.append(
            {
                "stage_run": run.signature,
                "stage": run.stage,
                "scale": run.labels.get("scale"),
                **_setting(plan, run),
                "rl_seed": _rl_seed(plan, run),
                "variant": control_label(plan, run),
                "measures": run.parent[0] if run.parent and run.stage == "evaluate" else None,
                "checkpoint": run.checkpoint,
                "tokens": run.labels.get("tokens"),
                "status": status,
                "seconds": result.seconds if result else None,
                "parameters": result.metrics.get("parameters") if result else None,
            }
        )
    columns = ["stage_run", "stage", "scale", *SETTING, "rl_seed", "variant", "measures", "checkpoint", "tokens"]
    columns += ["status", "seconds", "parameters"]
    return pd.DataFrame(rows, columns=columns).astype({"tokens": "Int64", "rl_seed": "Int64"})


def _rl_run(plan: Plan, run: StageRun) -> StageRun | None:
    """The RL run that a stage run is or measures; None before RL, and for one that the store has lost."""
    if run.stage == "grpo":
        return run
    parent = plan.runs.get(run.parent[1]) if run.parent else None
    return parent if parent and parent.stage == "grpo" else None


def _rl_seed(plan: Plan, run: StageRun) -> int | None:
    """The seed of RL's own random numbers, which is the cell's unless it is set."""
    rl = _rl_run(plan, run)
    return None if rl is None else int(rl.config["grpo"].get("seed", rl.config["seed"]))


def control_label(plan: Plan, run: StageRun) -> str:
    """Returns the label of the control that a stage run is, or that the RL run is which it measures; else empty."""
    for part in (run, _rl_run(plan, run)):
        if part and part.control:
            return str(part.labels.get("control") or part.control)
    return ""


def _setting(plan: Plan, run: StageRun) -> dict[str, Any]:
    """The `SETTING` columns; the objective is that of the pre-training run at the start of the chain."""
    # Follow the parents to the first stage that trained; an incomplete store may lack some.
    first = run
    while first.parent and first.parent[1] in plan.runs and first.parent[0] != START:
        first = plan.runs[first.parent[1]]
    if first.stage == "pretrain":
        objective = first.config.get("objective") or {}
    else:  # pre-training is lost, or was somebody else's; the labels of what follows have its parameters
        has_head = first.labels.get("lam_head") != first.labels.get("lam_tail")
        objective = dict(first.labels) | ({} if has_head else {"top_k": None})
    return {
        "model": first.labels["model"],
        "objective": _setting_name(first.labels),
        "beta": objective.get("beta"),
        "lam_head": objective.get("lam_head"),
        "lam_tail": objective.get("lam_tail"),
        "top_k": objective.get("top_k"),
        "seed": run.config.get("seed", run.labels["seed"]),
    }


def _setting_name(labels: Mapping[str, Any]) -> str:
    """The objective's name; with its parameters if another cell has the same name and other parameters.

    The planner labels controls in the same way (`sweeps.plan.controls`).
    """
    variant = str(labels.get("variant", "")).split(",")
    return "/".join([str(labels["objective"]), *(part for part in variant if part.startswith("objective."))])


def _measurements(plan: Plan, results: StoredResults, runs: pd.DataFrame) -> pd.DataFrame:
    """`Study.measurements`: every measurement of a planned evaluation; RL's step 0 is listed a second time."""
    table = results.table
    slices = _slices(table["signature"].combine_chunks())

    # One entry per evaluation and stage: (signature, measured stage, step, tokens).
    entries: list[tuple[str, str, int, int | None]] = [
        (signature, *place) for signature, at in places(plan).items() if signature in slices for place in at
    ]

    # Row numbers in `table` of each entry's measurements, one entry after the other.
    ranges = [slices[entry[0]] for entry in entries]
    row_numbers = np.concatenate([np.arange(a, b) for a, b in ranges]) if ranges else np.zeros(0, np.int64)
    counts = np.array([b - a for a, b in ranges], dtype=np.int64)

    # Columns of the cell and checkpoint: one value per entry, repeated for each of its measurements.
    by_entry = runs.set_index("stage_run").loc[[entry[0] for entry in entries], ["scale", *SETTING, "rl_seed"]]
    for position, name in enumerate(("stage_run", "stage", "step", "tokens")):
        by_entry[name] = [entry[position] for entry in entries]
    by_entry = by_entry.astype({name: dtype for name, (dtype, _) in COLUMNS.items() if name in by_entry})
    columns: dict[str, Any] = {str(name): by_entry[name].array.repeat(counts) for name in by_entry}

    # Columns of the measurements themselves; text stays dictionary-encoded.
    for name in TEXT_COLUMNS:
        column = table[name].combine_chunks()
        codes = column.indices.to_numpy()[row_numbers] if len(table) else np.zeros(0, np.int32)
        names = column.dictionary.to_pylist()
        if name == "variant":
            names, codes = _with_control_labels(plan, entries, counts=counts, names=names, codes=codes)
        columns[name] = pd.Categorical.from_codes(codes, names)
    for name in NUMBER_COLUMNS:
        columns[name] = table[name].to_numpy()[row_numbers]
    frame = pd.DataFrame(columns, columns=list(COLUMNS))
    return frame.astype({name: dtype for name, (dtype, _) in COLUMNS.items()})


def _with_control_labels(
    plan: Plan,
    entries: list[tuple[str, str, int, int | None]],
    *,
    counts: NDArray[np.int64],
    names: list[str],
    codes: NDArray[np.int32],
) -> tuple[list[str], NDArray[np.int32]]:
    """The variants' names and each measurement's index into them, with controls called by the label of their setting.

    An evaluation stores the name that is in its signature, which is made of the setting's parameters. The evaluations
    of an RL run that is a control store none.
    """
    names, codes = list(names), codes.copy()
    ends = np.cumsum(counts)
    for entry, start, end in zip(entries, ends - counts, ends, strict=True):
        run = plan.runs[entry[0]]
        label, stored = control_label(plan, run), run.control or ""
        if label != stored and stored in names:
            if label not in names:
                names.append(label)
            part = codes[start:end]
            part[part == names.index(stored)] = names.index(label)
    return names, codes


def _slices(signatures: Any) -> dict[str, tuple[int, int]]:
    """Signature -> (first, last + 1) of its rows, which are adjacent in a dictionary-encoded column."""
    names = signatures.dictionary.to_pylist()
    codes: NDArray[Any] = signatures.indices.to_numpy() if len(signatures) else np.zeros(0, np.int32)
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.append(starts[1:], len(codes))[: len(starts)]
    return {names[codes[a]]: (a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)}
