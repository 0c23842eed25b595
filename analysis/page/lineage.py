"""Every stage run for the page: parent, neighbours, configuration, curve and files, as data for its script."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.study import Study, baselines
from pipelines.configuration import TRAINING_STAGES
from sweeps.plan.names import cell_of

CURVE_POINTS = 24
"""Most points of a stage run's curve."""
CURVES = {"pretrain": "loss", "midtrain": "loss", "grpo": "reward"}
"""Stage -> the column of its ledger that its curve shows."""


def lineage(
    study: Study, indices: Mapping[str, int], *, colours: Mapping[str, str], folder: Path | None
) -> dict[str, Any]:
    """Returns the page's data: all stage runs, the parts of their configurations, and where the store is.

    Equal parts, sets of parts and words are stored once, and stage runs refer to them by number.
    """
    parts: dict[str, int] = {}
    sets: dict[str, int] = {}
    words: dict[str, int] = {}

    def word(text: Any) -> int:
        return words.setdefault(str(text or ""), len(words))

    runs = []
    neighbours = _neighbours(study, indices)
    curves = _curves(study)
    rows = study.runs.set_index("stage_run")
    objectives, statuses = rows["objective"].to_dict(), rows["status"].to_dict()
    for signature, spec in study.specs.items():
        # The configuration that was used, and the environment if it was run.
        shown = dict(spec["config"])
        if spec.get("environment"):
            shown["environment"] = spec["environment"]
        numbers = {name: parts.setdefault(json.dumps(part, indent=1), len(parts)) for name, part in shown.items()}
        runs.append(
            [
                word(spec["stage"]),
                signature,
                indices.get(spec["parent"]["signature"], -1) if spec["parent"] else -1,
                word(cell_of(spec["labels"])),
                word(spec["checkpoint"]),
                word(statuses[signature]),
                sets.setdefault(json.dumps(numbers), len(sets)),
                [[word(title), index] for title, index in neighbours.get(signature, [])],
                curves.get(signature, []),
                word(objectives[signature]),
            ]
        )
    # A path relative to the page, so that both can be moved together.
    store = None
    if study.store is not None and folder is not None:
        store = Path(os.path.relpath(study.store.root.resolve(), folder.resolve())).as_posix()
    shared = {"words": list(words), "parts": list(parts), "sets": [json.loads(numbers) for numbers in sets]}
    return {"runs": runs, **shared, "store": store, "colours": dict(colours), "curves": CURVES}


def _neighbours(study: Study, indices: Mapping[str, int]) -> dict[str, list[list[Any]]]:
    """Stage run -> [what differs, index] of the same stage in the cross-entropy cell and in the cell's next seed."""
    runs = study.runs
    plain = baselines(study)
    seeds = sorted(runs["seed"].unique().tolist())
    names = ["model", "objective", "seed", "stage", "measures", "checkpoint"]
    controls = {signature for signature, run in study.plan.runs.items() if run.control}
    keys: dict[tuple[Any, ...], str] = {}
    for key, signature in zip(runs[names].itertuples(index=False, name=None), runs["stage_run"], strict=True):
        if signature not in controls:
            keys.setdefault(key, signature)
    neighbours: dict[str, list[list[Any]]] = {}
    for (model, objective, seed, *rest), signature in keys.items():
        others = []
        baseline = plain.get(model)
        if baseline is not None and objective != baseline:
            others.append((f"{baseline}, the baseline", (model, baseline, seed, *rest)))
        if len(seeds) > 1:
            other = seeds[(seeds.index(seed) + 1) % len(seeds)]
            others.append((f"seed {other}", (model, objective, other, *rest)))
        neighbours[signature] = [[title, indices[keys[key]]] for title, key in others if key in keys]
    return neighbours


def _curves(study: Study) -> dict[str, list[float]]:
    """Stage run -> its loss or reward at evenly spread steps, three significant digits."""
    rows = study.ledgers
    curves: dict[str, list[float]] = {}
    for stage in TRAINING_STAGES:
        column = CURVES[stage]
        if column not in rows:
            continue
        of_stage: pd.DataFrame = rows[(rows["stage"] == stage) & rows[column].notna()]
        for signature, curve in of_stage.groupby("stage_run", sort=False)[column]:
            numbers = curve.to_numpy(float)
            chosen = np.unique(np.linspace(0, len(numbers) - 1, CURVE_POINTS).round().astype(int))
            curves[str(signature)] = [float(f"{number:.3g}") for number in numbers[chosen] if np.isfinite(number)]
    return curves
