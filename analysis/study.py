"""What a sweep planned and what its store holds, as tidy, typed pandas frames.

analysis.load("store")       every measurement of a store, one row each; `COLUMNS` says what each column is
analysis.ledger("store")     the training stages' metrics over their steps
analysis.samples("store")    the sampled answers
"""

import gzip
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from analysis.result_cache import SPEC, Finished, Readings, read_object, read_store
from pipelines.configuration import STAGES
from pipelines.errors import UserError
from pipelines.evaluation.metrics import RIGHT
from pipelines.evaluation.samples import SAMPLES
from pipelines.garbage_collection import no_collection
from sweeps.plan.graph import Plan, StageRun
from sweeps.store.stage_runs import Store

SETTING = ["model", "objective", "beta", "lam_head", "lam_tail", "top_k", "seed"]
"""Columns that say which cell a row belongs to."""

COLUMNS: dict[str, tuple[str, str]] = {
    "scale": ("category", "label of the study: nano, micro, paper"),
    "model": ("category", "name of the architecture"),
    "objective": ("category", "setting of the pre-training objective, or its knobs"),
    "beta": ("float64", "exponent of the true token's reward"),
    "lam_head": ("float64", "reward of a wrong token in the head"),
    "lam_tail": ("float64", "reward of a wrong token in the tail"),
    "top_k": ("Int64", "size of the head; empty where the head plays no part"),
    "seed": ("int64", "seed of the cell; equal seeds see the same data in the same order"),
    "stage": ("category", "stage whose checkpoint was measured; the mid-trained model is RL's step 0 as well"),
    "step": ("Int64", "optimizer or RL step of the checkpoint"),
    "tokens": ("Int64", "tokens of the measured stage at that checkpoint; empty for grpo"),
    "group": ("category", "column group of the paper's tables, or text"),
    "benchmark": ("category", "what was asked"),
    "metric": ("category", "perplexity, entropy, accuracy, avg@n, cons@n, pass@k, ..."),
    "variant": ("category", "empty, or how the evaluation differed: matched:NAME is sampled at NAME's entropy"),
    "value": ("float64", "the number: fractions, nats, tokens"),
    "stderr": ("float64", "its standard error over items; empty for a single item"),
    "n": ("Int64", "items"),
    "stage_run": ("category", "signature of the evaluation that measured it"),
}
"""Column of `analysis.load` -> dtype and meaning."""

CURVE_ROWS = 100_000
"""Ledger rows that a study's curves keep in all; longer ledgers are thinned evenly, ends kept."""


@dataclass(frozen=True)
class Study:
    """A plan, read against a store."""

    measurements: pd.DataFrame
    """Columns `COLUMNS`."""
    runs: pd.DataFrame
    """One row a planned stage run: signature, stage, cell, checkpoint, status, seconds, parameters."""
    specs: Mapping[str, dict[str, Any]]
    """Signature -> spec of every planned stage run, with the environment it ran in if it did."""
    plan: Plan
    store: Store | None

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Ledger rows of the finished training stages, with `SETTING`, `stage` and `stage_run`; read when first
        asked for. Raises `UserError` naming a broken line."""
        done = self.runs[(self.runs["status"] == "done") & (self.runs["stage"] != "evaluate")]
        if self.store is None or done.empty:
            return pd.DataFrame(columns=[*SETTING, "stage", "stage_run", "step"])
        most = max(20, CURVE_ROWS // len(done))
        frames = []
        for row in done.to_dict("records"):
            lines = read_ledger(self.store.root / row["stage"] / row["stage_run"] / "ledger.jsonl", most)
            if lines:
                setting = {name: row[name] for name in (*SETTING, "stage", "stage_run")}
                frames.append(pd.DataFrame(lines).assign(**setting))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*SETTING, "stage", "step"])

    def lacks(self, signatures: Iterable[str]) -> list[str]:
        """`stage/signature` of the stage runs that have to run before these are done, first things first."""
        status: Mapping[str, str] = self.status
        wanted: dict[str, None] = {}

        def add(signature: str) -> None:
            if status[signature] != "done":
                run = self.plan.runs[signature]
                for need in run.needs:
                    add(need)
                wanted[f"{run.stage}/{signature}"] = None

        for signature in signatures:
            add(signature)
        return list(wanted)

    @cached_property
    def status(self) -> dict[str, str]:
        """Signature -> `done`, `failed`, `running`, `interrupted` or `missing`."""
        return dict(zip(self.runs["stage_run"].tolist(), self.runs["status"].tolist(), strict=True))


def load(store: str | Path) -> pd.DataFrame:
    """Every measurement that the store holds, one row each; `COLUMNS` names, types and explains the columns.

    Raises `UserError` where `store` is none or one of its files cannot be read.
    """
    return read_stored(Store.open(store)).measurements


def ledger(store: str | Path, stage: str | None = None, stage_run: str | None = None) -> pd.DataFrame:
    """Every ledger row of the finished training stages of a store, with the columns of their settings.

    `stage` and `stage_run` (a signature or its beginning) narrow it down. Columns differ by stage; see the
    architecture's list of ledger lines.
    """
    opened = Store.open(store)
    runs = read_stored(opened).runs
    chosen = runs[(runs["status"] == "done") & (runs["stage"] == stage if stage else runs["stage"] != "evaluate")]
    if stage_run:
        chosen = chosen[chosen["stage_run"].str.startswith(stage_run)]
    frames = [
        pd.DataFrame(read_ledger(opened.root / row["stage"] / row["stage_run"] / "ledger.jsonl", None)).assign(
            **{name: row[name] for name in (*SETTING, "stage", "stage_run")}
        )
        for row in chosen.to_dict("records")
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*SETTING, "stage", "stage_run"])


def samples(store: str | Path, benchmark: str | None = None, stage_run: str | None = None) -> pd.DataFrame:
    """Sampled answers of the evaluations of a store: `benchmark question response answer right` and where from."""
    opened = Store.open(store)
    study = read_stored(opened)
    places = study.measurements.drop_duplicates(["stage_run", "stage"])
    frames = []
    for row in places[[*SETTING, "stage", "step", "stage_run"]].to_dict("records"):
        if stage_run and not row["stage_run"].startswith(stage_run):
            continue
        lines = read_samples(opened, row["stage_run"], benchmark)
        if lines:
            frames.append(pd.DataFrame(lines).assign(**{str(name): value for name, value in row.items()}))
    columns = ["benchmark", "question", "response", "answer", "right", *SETTING, "stage", "step", "stage_run"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def read_samples(store: Store, stage_run: str, benchmark: str | None, most: int | None = None) -> list[dict[str, Any]]:
    """Rows of an evaluation's samples with whether they are `right`, at most the first `most`; none where it kept
    none."""
    path = store.root / "evaluate" / stage_run / SAMPLES
    if not path.exists():
        return []
    wanted = None if benchmark is None else json.dumps(benchmark)[1:-1].encode()
    rows: list[dict[str, Any]] = []
    with gzip.open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n") or (wanted and wanted not in line):
                continue
            row = orjson.loads(line)
            row["right"] = row["reward"] >= RIGHT
            if benchmark is None or row["benchmark"] == benchmark:
                rows.append(row)
            if most is not None and len(rows) == most:
                break
    return rows


def read_ledger(path: Path, most: int | None) -> list[dict[str, Any]]:
    """Rows of a ledger, at most `most` of them spread evenly with the last one kept; a last line that a kill cut
    short is left out. Raises `UserError` naming a line that is no JSON."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was never finished
    chosen: Iterable[int] = range(len(lines))
    if most is not None and len(lines) > most:
        chosen = np.unique(np.linspace(0, len(lines) - 1, most).round().astype(int))
    rows = []
    for number in chosen:
        try:
            rows.append(orjson.loads(lines[number]))
        except orjson.JSONDecodeError as error:
            raise UserError(
                f"{path}: line {number + 1} is not readable JSON ({error.msg}); "
                f"delete the folder {path.parent} and run the sweep again"
            ) from error
    return rows


@no_collection()
def read_stored(store: Store, scale: str | None = None, seeds: Collection[int] = ()) -> Study:
    """The study of all that the store holds, finished or not (of one scale, of some seeds), with no sweep in hand."""
    readings = read_store(store)
    graph = Plan()
    for stage in STAGES:
        folder = store.root / stage
        for signature in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if signature in readings.runs:
                spec = readings.runs[signature].spec
            elif (folder / signature / "spec.json").exists():
                spec = read_object(folder / signature / "spec.json", SPEC)
            else:
                continue
            if scale in (None, spec["labels"].get("scale")) and (not seeds or spec["config"]["seed"] in seeds):
                graph.runs[signature] = _stage_run(spec)
    return _study(graph, store, readings)


def _stage_run(spec: Mapping[str, Any]) -> StageRun:
    parent = spec["parent"] and (spec["parent"]["stage"], spec["parent"]["signature"])
    return StageRun(
        stage=spec["stage"],
        signature=spec["signature"],
        version=spec["version"],
        config=spec["config"],
        parent=parent,
        checkpoint=spec["checkpoint"],
        steps=0,
        labels=spec["labels"],
    )


@no_collection()
def read_study(plan: Plan, store: Store | None) -> Study:
    """Everything that `plan` names and `store` holds; with no store all stage runs are missing.

    Raises `UserError` naming the file where one of the store's files is corrupt.
    """
    return _study(plan, store, read_store(store) if store else Readings())


def _study(plan: Plan, store: Store | None, readings: Readings) -> Study:
    runs = _runs(plan, store, readings.runs)
    specs = {s: readings.runs[s].spec if s in readings.runs else run.spec for s, run in plan.runs.items()}
    return Study(_measurements(plan, readings, runs), runs, specs, plan, store)


def _runs(plan: Plan, store: Store | None, finished: Mapping[str, Finished]) -> pd.DataFrame:
    rows = []
    for run in plan.runs.values():
        found = finished.get(run.signature)
        status = "done" if found else store.run(run.stage, run.signature).status if store else "missing"
        rows.append(
            {
                "stage_run": run.signature,
                "stage": run.stage,
                "scale": run.labels.get("scale"),
                **_setting(plan, run),
                "measures": run.parent[0] if run.parent and run.stage == "evaluate" else None,
                "checkpoint": run.checkpoint,
                "tokens": run.labels.get("tokens"),
                "status": status,
                "seconds": found.seconds if found else None,
                "parameters": found.metrics.get("parameters") if found else None,
            }
        )
    columns = ["stage_run", "stage", "scale", *SETTING, "measures", "checkpoint", "tokens", "status", "seconds"]
    return pd.DataFrame(rows, columns=[*columns, "parameters"]).astype({"tokens": "Int64"})


def _setting(plan: Plan, run: StageRun) -> dict[str, Any]:
    """The `SETTING` columns: the objective is that of the pre-training a stage run descends from."""
    first = run
    while first.parent and first.parent[1] in plan.runs:
        first = plan.runs[first.parent[1]]
    knobs = first.config.get("objective") or {}
    return {
        "model": first.labels["model"],
        "objective": first.labels["objective"],
        "beta": knobs.get("beta"),
        "lam_head": knobs.get("lam_head"),
        "lam_tail": knobs.get("lam_tail"),
        "top_k": knobs.get("top_k"),
        "seed": run.config["seed"],
    }


def checkpoint_step(checkpoint: str) -> int:
    """`step-000128` -> 128."""
    return int(checkpoint.split("-")[1])


def _measurements(plan: Plan, readings: Readings, runs: pd.DataFrame) -> pd.DataFrame:
    """The tidy frame: every measurement of a planned evaluation at its place, RL's step 0 listed again."""
    rl_starts = {(run.parent[1], run.checkpoint) for run in plan.runs.values() if run.stage == "grpo" and run.parent}
    places: list[tuple[str, str, int, int | None]] = []
    for run in plan.runs.values():
        if run.stage != "evaluate" or run.signature not in readings.runs or not run.parent or not run.checkpoint:
            continue
        stage, parent = run.parent
        places.append((run.signature, stage, checkpoint_step(run.checkpoint), run.labels.get("tokens")))
        if (parent, run.checkpoint) in rl_starts:
            places.append((run.signature, "grpo", 0, None))
    table = readings.table
    signatures = table["signature"].combine_chunks()
    names = signatures.dictionary.to_pylist()
    codes = signatures.indices.to_numpy() if len(table) else np.zeros(0, np.int32)
    # rows of an evaluation stand together, so each one is a slice
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ends = np.append(starts[1:], len(codes))[: len(starts)]
    slices = {names[codes[a]]: (a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)}
    kept = [(place, slices[place[0]]) for place in places if place[0] in slices]
    take = np.concatenate([np.arange(a, b) for _, (a, b) in kept]) if kept else np.zeros(0, np.int64)
    repeat = np.array([b - a for _, (a, b) in kept], dtype=np.int64)
    by_run = runs.set_index("stage_run")
    own = by_run.loc[[place[0] for place, _ in kept], ["scale", *SETTING]]
    for position, name in enumerate(("stage_run", "stage", "step", "tokens")):
        own[name] = [place[position] for place, _ in kept]
    own = own.astype({name: kind for name, (kind, _) in COLUMNS.items() if name in own})
    columns: dict[str, Any] = {str(name): own[name].array.repeat(repeat) for name in own}
    for name in ("benchmark", "group", "metric", "variant"):
        column = table[name].combine_chunks()
        code = column.indices.to_numpy()[take] if len(table) else np.zeros(0, np.int32)
        columns[name] = pd.Categorical.from_codes(code, column.dictionary.to_pylist())
    for name in ("value", "stderr", "n"):
        columns[name] = table[name].to_numpy()[take]
    frame = pd.DataFrame(columns, columns=list(COLUMNS))
    return frame.astype({name: kind for name, (kind, _) in COLUMNS.items()})
