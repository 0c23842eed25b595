"""Why a stage run is not in the store: the nearest one that is, and the keys in which they differ."""

from typing import Any

from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.names import flatten
from sweeps.store.stage_runs import Store


def explain(plan: Plan, run: StageRun, store: Store) -> tuple[str | None, dict[str, tuple[Any, Any]]]:
    """The stored stage run of the same stage that differs in the fewest keys, and those keys: (planned, stored).

    Keys of stages before count as well, since a stage run's signature holds its parent's. `version` is that of a
    stage's code. None and nothing where the store has no stage run of the stage.
    """
    mine = _history(run.spec, {s: r.spec for s, r in plan.runs.items()})
    specs = {stored.signature: stored.spec for stored in store.runs()}
    nearest: tuple[str | None, dict[str, tuple[Any, Any]]] = (None, {})
    for signature, spec in specs.items():
        if spec["stage"] != run.stage:
            continue
        theirs = _history(spec, specs)
        different = {
            key: (mine.get(key), theirs.get(key)) for key in [*mine, *theirs] if mine.get(key) != theirs.get(key)
        }
        if nearest[0] is None or len(different) < len(nearest[1]):
            nearest = (signature, different)
    return nearest


def _history(spec: dict[str, Any], specs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All that goes into a stage run's signature, its ancestors' own parts included, with dotted keys."""
    flat: dict[str, Any] = {}
    link: dict[str, Any] | None = spec
    while link is not None:
        stage = link["stage"]
        flat[f"{stage}.version"] = link["version"]
        flat[f"{stage} reads checkpoint"] = link["checkpoint"]
        for key, value in flatten(link["config"]).items():
            if link is spec or key.split(".")[0] in (stage, "model", "objective"):
                flat.setdefault(f"{stage}: {key}" if key.startswith("objective.") else key, value)
        link = specs.get(link["parent"]["signature"]) if link["parent"] else None
    return flat
