"""How a study was made: command, commit, date, machine, times, budgets, seeds, engine, and what was not run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from analysis.study import Study
from pipelines.configuration import TRAINING_STAGES
from sweeps.execute.display import clock
from sweeps.monitor.launched_sweeps import SweepRecord, records

TIMED = 2000
"""Most stage runs whose attempts are read for the time that a study took."""


@dataclass(frozen=True)
class Provenance:
    """What the page says about how a study was made."""

    facts: dict[str, str]
    """Name -> text, in the order in which they are shown."""
    seed_seconds: float | None = None
    """How long one more seed would take at the study's pace; None if that is not known."""


@dataclass
class _Times:
    """When and where the stage runs were run."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each attempt, Unix seconds."""
    hosts: set[str] = field(default_factory=set)

    @property
    def wall(self) -> float:
        """Seconds in which at least one attempt was running."""
        total = end = 0.0
        for start, stop in sorted(self.spans):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total

    @property
    def work(self) -> float:
        """Seconds of all attempts together."""
        return sum(stop - start for start, stop in self.spans)


def provenance(study: Study, *, command: str) -> Provenance:
    """Returns how a study was made; `command` runs the sweep, if no launch of it is recorded."""
    times = _times(study)
    done = study.runs[study.runs["status"] == "done"]
    environments = [spec["environment"] for spec in study.specs.values() if spec.get("environment")]
    seeds = sorted(study.runs["seed"].unique().tolist())
    facts = {
        "command": _command(study) or command,
        "commit": _listed(environment.get("commit") for environment in environments) or _no_commit(environments),
        "date": _dates(times),
        "machine": _machine(environments, times),
        "time": _time(times, len(done)),
        "budgets": _budgets(study),
        "models": ", ".join(map(str, study.runs["model"].unique())),
        "seeds": f"{', '.join(map(str, seeds))}" + (" (one seed)" if len(seeds) == 1 else ""),
        "engine": _listed(spec["config"].get("grpo", {}).get("engine") for spec in study.specs.values()),
        "not run": _not_run(study),
    }
    seconds = times.wall * len(done) / max(1, len(times.spans)) / len(seeds) if times.spans and seeds else None
    return Provenance({name: text for name, text in facts.items() if text}, seconds)


def _times(study: Study) -> _Times:
    """When the finished stage runs were run; of a large study an even share of them."""
    times = _Times()
    if study.store is None:
        return times
    done = study.runs[study.runs["status"] == "done"]
    every = max(1, -(-len(done) // TIMED))
    for stage, signature in done[["stage", "stage_run"]].iloc[::every].itertuples(index=False):
        for attempt in study.store.run(stage, signature).readable_state.get("attempts") or []:
            if "started" in attempt and "ended" in attempt:
                times.spans.append((float(attempt["started"]), float(attempt["ended"])))
                times.hosts.add(str(attempt.get("host")))
    return times


def _listed(values: Iterable[Any], most: int = 3) -> str:
    """The distinct values in their first order."""
    distinct = list(dict.fromkeys(str(value) for value in values if value))
    return ", ".join(distinct[:most]) + (f" and {len(distinct) - most} more" if len(distinct) > most else "")


def _command(study: Study) -> str:
    """The newest recorded launch that has a stage run of the study, as one command."""
    if study.store is None:
        return ""
    planned = set(study.specs)
    launched = [record for record in records(study.store) if planned & set(record.runs)]
    return launch_command(launched[-1]) if launched else ""


def launch_command(record: SweepRecord) -> str:
    """Returns the command of a recorded launch: the overrides that its cells have, each key once."""
    # `a=1` in one cell and `a=2` in another is `a=1,2`.
    values: dict[str, list[str]] = {}
    for job in record.jobs:
        for override in job:
            key, _, value = override.partition("=")
            if value not in values.setdefault(key, []):
                values[key].append(value)
    named = f"+sweep={record.name}" if record.name else ""
    # The cells of a named sweep repeat its keys; only what was typed besides is the same in all of them or a list.
    shown = {key: listed for key, listed in values.items() if key != "+sweep" and not (named and key == "objective")}
    typed = [f"{key}={','.join(listed)}" for key, listed in shown.items()]
    launcher = [] if record.launcher in ("", "local") else [f"hydra/launcher={record.launcher}"]
    return " ".join(["shaping-run -m", *filter(None, [named]), *typed, *launcher])


def _no_commit(environments: Sequence[dict[str, Any]]) -> str:
    versions = _listed(environment.get("shaping") for environment in environments)
    return f"not recorded (shaping {versions})" if versions else ""


def _dates(times: _Times) -> str:
    if not times.spans:
        return ""
    first, last = (
        datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
        for moment in (min(start for start, _ in times.spans), max(stop for _, stop in times.spans))
    )
    return f"{first} to {last[11:] if last[:10] == first[:10] else last} UTC"


def _machine(environments: Sequence[dict[str, Any]], times: _Times) -> str:
    parts = []
    if len(times.hosts) > 1:
        parts.append(f"{len(times.hosts)} machines")
    cores = _listed(environment.get("cores") for environment in environments)
    if cores:
        parts.append(f"{cores} cores")
    for name, title in (
        ("device", ""),
        ("processor", ""),
        ("platform", ""),
        ("python", "Python "),
        ("torch", "torch "),
    ):
        if text := _listed(environment.get(name) for environment in environments):
            parts.append(title + text)
    return ", ".join(parts)


def _time(times: _Times, done: int) -> str:
    if not times.spans or not times.wall:
        return ""
    together = times.work / times.wall
    share = "" if done <= TIMED else f" (of {len(times.spans)} of the {done} stage runs)"
    return f"{clock(times.wall)} with {together:.1f} stage runs at a time, {clock(times.work)} of work{share}"


def _budgets(study: Study) -> str:
    """The budget of each stage, as configured; a range if it differs."""
    found: dict[str, list[str]] = {stage: [] for stage in TRAINING_STAGES}
    for spec in study.specs.values():
        config = spec["config"].get(spec["stage"])
        if not isinstance(config, dict):
            continue
        if "tokens" in config:
            found[spec["stage"]].append(f"{config['tokens']:,} tokens")
        elif "steps" in config:
            found[spec["stage"]].append(
                f"{config['steps']:,} steps of {config.get('prompts')} prompts x {config.get('samples')} samples"
            )
    return "; ".join(f"{stage} {_listed(budgets)}" for stage, budgets in found.items() if budgets)


def _not_run(study: Study) -> str:
    """The stage runs that are not done, by status, and what no cell of the study has."""
    statuses = study.runs.loc[study.runs["status"] != "done", "status"].value_counts().to_dict()
    parts = [f"{count} stage runs {status}" for status, count in statuses.items()]
    if study.runs["model"].nunique() == 1:
        parts.append("a second model size")
    if not any((spec["config"].get("model") or {}).get("experts") for spec in study.specs.values()):
        parts.append("a mixture of experts")
    if study.runs["seed"].nunique() == 1:
        parts.append("more than one seed")
    parts += [f"the stage {stage}" for stage in TRAINING_STAGES if stage not in set(study.runs["stage"])]
    return ", ".join(parts)


def minutes(seconds: float) -> str:
    """Returns a duration in words: `about 25 minutes`."""
    if seconds < 90:
        return "about a minute"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.0f} hours"
