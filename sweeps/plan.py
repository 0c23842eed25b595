"""Cells -> one graph of stage runs, each with a signature that says what can change its result.

A stage run's signature hashes the stage's name and version, the part of the configuration that can change its
result, and its parent's signature. Cells that share a stage run therefore share its signature, and it is computed
once, whoever asks. Labels, paths, tracking, launcher and the number of workers are not in it.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.cell import STAGE_VERSIONS, STAGES, Cell, ObjectiveConfig
from shaping.objective import NAMED


@dataclass(frozen=True)
class StageRun:
    """One stage with one configuration on one parent."""

    stage: str
    signature: str
    version: int
    config: dict[str, Any]
    parent: tuple[str, str] | None
    """(stage, signature) of the stage run it starts from."""
    checkpoint: str | None
    """The parent's checkpoint that is read, such as `step-000128`."""
    steps: int
    """Steps of the work, for progress (optimizer steps; benchmarks for `evaluate`)."""
    labels: dict[str, Any] = field(compare=False)
    """Names for people: model, objective, seed, scale, sweep, tokens; not in the signature."""

    @property
    def spec(self) -> dict[str, Any]:
        """What `spec.json` records of it, less the environment."""
        return {
            "format": 1,
            "stage": self.stage,
            "version": self.version,
            "signature": self.signature,
            "config": self.config,
            "parent": self.parent and {"stage": self.parent[0], "signature": self.parent[1]},
            "checkpoint": self.checkpoint,
            "labels": self.labels,
        }


@dataclass
class Plan:
    """The graph: stage runs by signature, parents before children, and each cell's own stage runs."""

    runs: dict[str, StageRun] = field(default_factory=dict)
    cells: dict[str, list[str]] = field(default_factory=dict)
    """Cell's name -> signatures of its stage runs."""

    def children(self, signature: str) -> list[StageRun]:
        """The stage runs that start from `signature`, directly."""
        return [run for run in self.runs.values() if run.parent and run.parent[1] == signature]

    def descendants(self, signature: str) -> list[StageRun]:
        """The stage runs that need `signature`, directly or not."""
        found: list[StageRun] = []
        for child in self.children(signature):
            found += [child, *self.descendants(child.signature)]
        return found


def plan(cells: Iterable[Cell]) -> Plan:
    """The graph of stage runs that `cells` need, shared ones once."""
    graph = Plan()
    for cell in cells:
        chain = _stage_runs(cell)
        for run in chain:
            graph.runs.setdefault(run.signature, run)
        graph.cells[cell_name(cell)] = [run.signature for run in chain]
    return graph


def cell_name(cell: Cell) -> str:
    """A short name for people: `nano/precision/seed1`."""
    return f"{cell.model.name}/{objective_name(cell)}/seed{cell.seed}"


def objective_name(cell: Cell) -> str:
    """The setting's name where the knobs are one of the study's five, else the knobs: `lam_tail=-0.5,k=32`."""
    objective = cell.objective
    knobs = {"beta": objective.beta, "lam_head": objective.lam_head, "lam_tail": objective.lam_tail}
    own_head = objective.lam_head != objective.lam_tail and objective.top_k != cell.data.top_k
    for name, setting in NAMED.items():
        if not own_head and all(getattr(setting, key) == value for key, value in knobs.items()):
            return name
    shown = [f"{key}={value:g}" for key, value in knobs.items() if value]
    return ",".join([*shown, f"k={objective.top_k}"] if own_head else shown)


def canonical_objective(objective: ObjectiveConfig) -> dict[str, Any]:
    """The knobs that act. With equal lambdas every wrong token is paid alike, so the head's size plays no part."""
    knobs = asdict(objective)
    del knobs["name"]
    if objective.lam_head == objective.lam_tail:
        knobs["top_k"] = None
    return knobs


def _text_versions(cell: Cell) -> dict[str, str]:
    """Versions of the packages whose docstrings are the text: another version is another text."""
    return {name: importlib.metadata.version(name) for name in cell.data.text}


def _signature(stage: str, config: dict[str, Any], parent: str | None, checkpoint: str | None) -> str:
    content = [stage, STAGE_VERSIONS[stage], config, parent, checkpoint]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps: `step-000128`."""
    return f"step-{step:06d}"


def _stage_runs(cell: Cell) -> list[StageRun]:
    """The chain of one cell, each training stage followed by the evaluations of its milestones."""
    data = asdict(cell.data)
    del data["name"]
    common: dict[str, Any] = {"seed": cell.seed, "data": data, "text_versions": _text_versions(cell)}
    model = asdict(cell.model)
    del model["name"]
    midtrain_objective = cell.objective if cell.midtrain.objective == "inherit" else ObjectiveConfig()
    midtrain = asdict(cell.midtrain)
    del midtrain["objective"]  # resolved just above
    configs: dict[str, dict[str, Any]] = {
        "pretrain": {
            "model": model,
            "objective": canonical_objective(cell.objective),
            "pretrain": asdict(cell.pretrain),
        },
        "midtrain": {"objective": canonical_objective(midtrain_objective), "midtrain": midtrain},
        "grpo": {"grpo": asdict(cell.grpo)},
    }
    labels = {
        "model": cell.model.name,
        "objective": objective_name(cell),
        "scale": cell.scale,
        "seed": cell.seed,
        "sweep": cell.sweep.name,
    }
    runs: list[StageRun] = []
    parent: tuple[str, str] | None = None
    checkpoint: str | None = None
    for stage in STAGES[: STAGES.index(cell.until) + 1]:
        budget = getattr(cell, stage)
        config = common | configs[stage]
        trained = _stage_run(stage, config, parent, checkpoint, budget.steps, labels)
        runs.append(trained)
        parent = (stage, trained.signature)
        evaluation = _evaluation(cell, stage)
        for step in budget.checkpoints():
            tokens = {} if stage == "grpo" else {"tokens": step * budget.batch_tokens}
            if evaluation["benchmarks"]:
                runs.append(
                    _stage_run(
                        "evaluate",
                        common | {"evaluation": evaluation},
                        parent,
                        checkpoint_name(step),
                        len(evaluation["benchmarks"]),
                        labels | tokens,
                    )
                )
        checkpoint = checkpoint_name(budget.checkpoints()[-1])
    return runs


def _evaluation(cell: Cell, stage: str) -> dict[str, Any]:
    """The part of the evaluation table that is measured at the checkpoints of `stage`."""
    evaluation = asdict(cell.evaluation)
    del evaluation["name"]
    evaluation["benchmarks"] = {
        name: benchmark for name, benchmark in evaluation["benchmarks"].items() if stage in benchmark.pop("stages")
    }
    return evaluation


def _stage_run(
    stage: str,
    config: dict[str, Any],
    parent: tuple[str, str] | None,
    checkpoint: str | None,
    steps: int,
    labels: dict[str, Any],
) -> StageRun:
    signature = _signature(stage, config, parent and parent[1], checkpoint)
    return StageRun(stage, signature, STAGE_VERSIONS[stage], config, parent, checkpoint, steps, labels)
