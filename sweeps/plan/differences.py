"""Why a stage run is not in the store: the stored one with the fewest differences, and the keys that differ."""

from typing import Any

from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.names import flatten
from sweeps.store.stage_runs import Store

Differences = dict[str, tuple[Any, Any]]
"""Key -> its planned and its stored value."""


def explain(plan: Plan, run: StageRun, store: Store) -> tuple[str | None, Differences]:
    """Returns the signature of the stored stage run of the same stage that differs in the fewest keys, and those keys.

    Keys of earlier stages count too, since a signature includes its parent's. `STAGE.version` is the version of a
    stage's code. Returns None and no keys if the store has no stage run of the stage.
    """
    planned = _history(run.spec, {s: r.spec for s, r in plan.runs.items()})
    specs = {stored.signature: stored.spec for stored in store.runs()}
    nearest: tuple[str | None, Differences] = (None, {})
    for signature, spec in specs.items():
        if spec["stage"] == run.stage:
            stored = _history(spec, specs)
            differences = {
                key: (planned.get(key), stored.get(key))
                for key in [*planned, *stored]
                if planned.get(key) != stored.get(key)
            }
            if nearest[0] is None or len(differences) < len(nearest[1]):
                nearest = (signature, differences)
    return nearest


def _history(spec: dict[str, Any], specs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns what a signature depends on with dotted keys, including the own keys of the earlier stages."""
    history: dict[str, Any] = {}
    link: dict[str, Any] | None = spec
    while link is not None:
        stage = link["stage"]
        history[f"{stage}.version"] = link["version"]
        history[f"{stage} reads checkpoint"] = link["checkpoint"]
        for key, value in flatten(link["config"]).items():
            # All stages of a chain have the same data and seed, so they are listed once.
            if link is spec or key.split(".")[0] in (stage, "model", "objective"):
                history.setdefault(f"{stage}: {key}" if key.startswith("objective.") else key, value)
        link = specs.get(link["parent"]["signature"]) if link["parent"] else None
    return history
