"""Cells -> one graph of stage runs, each with a signature that says what can change its result.

A stage run's signature hashes the stage's name and version, the part of the configuration that can change its
result, and its parent's signature. Cells that share a stage run therefore share its signature, and it is computed
once, whoever asks. Labels, paths, tracking, launcher and the number of workers are not in it.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

from pipelines.configuration import STAGE_VERSIONS, TRAINING_STAGES
from pipelines.configuration.budgets import MidtrainConfig
from pipelines.configuration.cell import Cell
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import CONTROLS, LOCAL_FILES, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.data.token_shards import fingerprint
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
    compute: dict[str, Any] = field(default_factory=dict, compare=False)
    """How it is computed (`ComputeConfig`) and where its data lie; not in the signature."""

    @property
    def control(self) -> str | None:
        """`matched:SETTING` or `theory:SETTING` where an evaluation changes the distribution that it measures."""
        name = self.config.get("variant", {}).get("name")
        return name and str(name)

    @property
    def reference(self) -> str | None:
        """Signature of the stage run whose checkpoint a control is matched to, where this is one."""
        reference = self.config.get("variant", {}).get("reference")
        return reference and str(reference["signature"])

    @property
    def needs(self) -> list[str]:
        """Signatures of the stage runs that must be done before this one: its parent, and a control's reference."""
        return [signature for signature in (self.parent and self.parent[1], self.reference) if signature]

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
            "compute": self.compute,
        }


@dataclass
class Plan:
    """The graph: stage runs by signature, parents before children, and each cell's own stage runs."""

    runs: dict[str, StageRun] = field(default_factory=dict)
    cells: dict[str, list[str]] = field(default_factory=dict)
    """Cell's name -> signatures of its stage runs."""
    _children: dict[str, list[StageRun]] = field(default_factory=dict, repr=False)

    def add(self, run: StageRun) -> None:
        """Take `run` into the graph unless it is there."""
        if run.signature not in self.runs:
            self.runs[run.signature] = run
            for signature in run.needs:
                self._children.setdefault(signature, []).append(run)

    def children(self, signature: str) -> list[StageRun]:
        """The stage runs that need `signature` directly: they start from it, or are matched to it."""
        return self._children.get(signature, [])

    def descendants(self, signature: str) -> list[StageRun]:
        """The stage runs that need `signature`, directly or not."""
        found: dict[str, StageRun] = {}
        for child in self.children(signature):
            found |= {run.signature: run for run in (child, *self.descendants(child.signature))}
        return list(found.values())

    def part(self, signatures: Iterable[str]) -> "Plan":
        """The graph of some of the stage runs and what they start from; each cell keeps those of its own among them."""
        wanted: set[str] = set()
        waiting = list(signatures)
        while waiting:
            signature = waiting.pop()
            if signature not in wanted:
                wanted.add(signature)
                waiting += self.runs[signature].needs
        graph = Plan()
        for signature, run in self.runs.items():
            if signature in wanted:
                graph.add(run)
        for name, chain in self.cells.items():
            if kept := [signature for signature in chain if signature in wanted]:
                graph.cells[name] = kept
        return graph


def plan(cells: Iterable[Cell]) -> Plan:
    """The graph of stage runs that `cells` need, shared ones once."""
    cells = list(cells)
    graph, planner = Plan(), _Planner()
    variants = _variants(cells)
    chains = [planner.stage_runs(cell, variant) for cell, variant in zip(cells, variants, strict=True)]
    controls = planner.controls(cells, chains)  # after all chains: a control may need what any of them trains
    for runs in (*chains, *controls):
        for run in runs:
            graph.add(run)
    for cell, variant, chain, own in zip(cells, variants, chains, controls, strict=True):
        name = "/".join([cell_name(cell), *_shown(variant)])
        graph.cells[name] = list(dict.fromkeys(run.signature for run in (*chain, *own)))
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


ACTS_FROM = {"model": 0, "data": 0, "pretrain": 0, "midtrain": 1, "grpo": 2, "evaluation": 3}
"""The stage (by its place in the chain; evaluations last) from which a part of a cell can make a difference. The
objective and the seed are in a cell's name anyway."""

Variant = dict[str, Any]
"""Keys in which cells of one name differ, with this cell's values."""


def _variants(cells: list[Cell]) -> list[Variant]:
    """For each cell, what tells it from the others of its name."""
    named: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        named.setdefault(cell_name(cell), []).append(index)
    variants: list[Variant] = [{} for _ in cells]
    for indices in named.values():
        if len(indices) == 1:
            continue
        for part in ACTS_FROM:
            values = {id(value): value for value in (getattr(cells[i], part) for i in indices)}
            if len(values) == 1:
                continue
            flat = {key: flatten(asdict(value), f"{part}.") for key, value in values.items()}
            everything = {key for keys in flat.values() for key in keys if key != f"{part}.name"}
            varying = sorted(key for key in everything if len({repr(keys.get(key)) for keys in flat.values()}) > 1)
            for i in indices:
                mine = flat[id(getattr(cells[i], part))]
                variants[i] |= {key: mine.get(key) for key in varying}
    return variants


def _shown(variant: Variant) -> list[str]:
    return [f"{key}={value}" for key, value in variant.items()]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def canonical_objective(objective: ObjectiveConfig) -> dict[str, Any]:
    """The knobs that act. With equal lambdas every wrong token is paid alike, so the head's size plays no part."""
    knobs = asdict(objective)
    del knobs["name"]
    if objective.lam_head == objective.lam_tail:
        knobs["top_k"] = None
    return knobs


def signature_of(spec: Mapping[str, Any]) -> str:
    """The signature that a spec should carry; raises `KeyError` where it is not a spec."""
    parent = spec["parent"] and spec["parent"]["signature"]
    return _signature(spec["stage"], spec["version"], _json(spec["config"]), parent, spec["checkpoint"])


def _signature(stage: str, version: int, config: str, parent: str | None, checkpoint: str | None) -> str:
    """Hash of a stage run's content; `config` is JSON already."""
    content = f"[{_json(stage)}, {version}, {config}, {_json(parent)}, {_json(checkpoint)}]"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _json(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def cell_of(labels: Mapping[str, Any]) -> str:
    """The cell's name for people, from a stage run's labels, with the keys in which cells of one name differ."""
    name = "/".join(str(labels.get(key, "?")) for key in ("model", "objective")) + f"/seed{labels.get('seed', '?')}"
    return f"{name}/{labels['variant']}" if labels.get("variant") else name


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps: `step-000128`."""
    return f"step-{step:06d}"


@dataclass(frozen=True)
class _Fragment:
    """A part of a configuration as a plain object and as JSON."""

    content: Any
    text: str


class _Planner:
    """Makes the chains of cells; what their parts come to is worked out once for each part."""

    def __init__(self) -> None:
        self._fragments: dict[tuple[Any, ...], _Fragment] = {}
        self._kept: dict[int, Any] = {}
        """The parts whose `id` is a key of `_fragments`, so that no other object can come to have it."""

    def _fragment(self, name: str, *parts: Any) -> _Fragment:
        """What `name` comes to for these parts of a cell."""
        key = (name, *map(id, parts))
        if key not in self._fragments:
            self._kept |= {id(part): part for part in parts}
            content = _CONTENTS[name](*parts)
            self._fragments[key] = _Fragment(content, _json(content))
        return self._fragments[key]

    def stage_runs(self, cell: Cell, variant: Variant) -> list[StageRun]:
        """The chain of one cell, each training stage followed by the evaluations of its milestones."""
        common = {
            "seed": _Fragment(cell.seed, str(cell.seed)),
            "data": self._fragment("data", cell.data),
            "text_versions": self._fragment("text_versions", cell.data),
        }
        configs = {
            "pretrain": {
                "model": self._fragment("model", cell.model),
                "objective": self._fragment("objective", cell.objective),
                "pretrain": self._fragment("pretrain", cell.pretrain),
            },
            "midtrain": {
                "objective": self._fragment("midtrain_objective", cell.objective, cell.midtrain),
                "midtrain": self._fragment("midtrain", cell.midtrain),
            },
            "grpo": {"grpo": self._fragment("grpo", cell.grpo)},
        }
        if cell.model.experts:  # mid-training goes on balancing them
            configs["midtrain"]["balance_rate"] = _Fragment(cell.model.balance_rate, str(cell.model.balance_rate))
        labels = {
            "model": cell.model.name,
            "objective": objective_name(cell),
            "scale": cell.scale,
            "seed": cell.seed,
            "sweep": cell.sweep.name,
            **{knob: getattr(cell.objective, knob) for knob in ("beta", "lam_head", "lam_tail", "top_k")},
        }
        compute = asdict(cell.compute) | {"shards": cell.data.shards}
        runs: list[StageRun] = []
        parent: tuple[str, str] | None = None
        checkpoint: str | None = None
        for place, stage in enumerate(TRAINING_STAGES[: TRAINING_STAGES.index(cell.until) + 1]):
            budget = getattr(cell, stage)
            acts = _shown({key: value for key, value in variant.items() if ACTS_FROM[key.split(".")[0]] <= place})
            trained = _stage_run(
                stage, common | configs[stage], parent, checkpoint, budget.steps, labels | _variant_label(acts), compute
            )
            runs.append(trained)
            parent = (stage, trained.signature)
            evaluation = self._fragment(f"{stage} evaluation", cell.evaluation)
            benchmarks = len(evaluation.content["benchmarks"])
            acts += _shown({key: value for key, value in variant.items() if key.startswith("evaluation.")})
            for step in budget.checkpoints() if benchmarks else []:
                tokens = {} if stage == "grpo" else {"tokens": step * budget.batch_tokens}
                runs.append(
                    _stage_run(
                        "evaluate",
                        common | {"evaluation": evaluation},
                        parent,
                        checkpoint_name(step),
                        benchmarks,
                        labels | tokens | _variant_label(acts),
                        compute,
                    )
                )
            checkpoint = checkpoint_name(budget.checkpoints()[-1])
        return runs

    def controls(self, cells: list[Cell], chains: list[list[StageRun]]) -> list[list[StageRun]]:
        """For each cell the controls that hang off it: a ce cell's, one for each cell that differs from it in the
        objective alone, at the last checkpoint of the stages that `evaluation.controls` names."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, cell in enumerate(cells):
            if cell.evaluation.controls:
                parts = [self._fragment(name, getattr(cell, name)).text for name in ("model", "data", *TRAINING_STAGES)]
                rest = (cell.midtrain.objective, _json(asdict(cell.evaluation)), str(cell.seed))
                groups.setdefault((*parts, *rest), []).append(index)
        found: list[list[StageRun]] = [[] for _ in cells]
        for indices in groups.values():
            for ours in indices:
                if _is_ce(cells[ours]):
                    others = {objective_name(cells[i]): i for i in indices if not _is_ce(cells[i])}
                    for setting, theirs in others.items():
                        found[ours] += self._against(cells[ours], chains[ours], setting, cells[theirs], chains[theirs])
        return found

    def _against(
        self, cell: Cell, chain: list[StageRun], setting: str, other: Cell, others: list[StageRun]
    ) -> list[StageRun]:
        """The controls of a ce cell against one other."""
        trained = {run.stage: run for run in others if run.stage != "evaluate"}
        found = []
        for measured in chain:
            if measured.stage != "evaluate" or measured.parent is None:
                continue
            stage = measured.parent[0]
            if measured.checkpoint != checkpoint_name(getattr(cell, stage).checkpoints()[-1]):
                continue
            for control, stages in cell.evaluation.controls.items():
                if stage not in stages or stage not in trained:
                    continue
                evaluation = self._fragment(f"{stage} {control}", cell.evaluation)
                variant: dict[str, Any] = {"name": f"{control}:{setting}"}
                if control == "matched":
                    reference = {"stage": stage, "signature": trained[stage].signature}
                    variant["reference"] = reference | {"checkpoint": measured.checkpoint}
                else:
                    variant["objective"] = canonical_objective(other.objective)
                config = {key: _Fragment(value, _json(value)) for key, value in measured.config.items()}
                config |= {"evaluation": evaluation, "variant": _Fragment(variant, _json(variant))}
                benchmarks = len(evaluation.content["benchmarks"])
                labels = measured.labels | {"control": variant["name"]}
                found.append(
                    _stage_run(
                        "evaluate", config, measured.parent, measured.checkpoint, benchmarks, labels, measured.compute
                    )
                )
        return found


def _is_ce(cell: Cell) -> bool:
    return canonical_objective(cell.objective) == canonical_objective(ObjectiveConfig())


def _variant_label(shown: list[str]) -> dict[str, str]:
    return {"variant": ",".join(shown)} if shown else {}


def _stage_run(
    stage: str,
    config: dict[str, _Fragment],
    parent: tuple[str, str] | None,
    checkpoint: str | None,
    steps: int,
    labels: dict[str, Any],
    compute: dict[str, Any],
) -> StageRun:
    version = STAGE_VERSIONS[stage]
    text = ", ".join(f'"{key}": {config[key].text}' for key in sorted(config))
    signature = _signature(stage, version, f"{{{text}}}", parent and parent[1], checkpoint)
    content = {key: fragment.content for key, fragment in config.items()}
    return StageRun(stage, signature, version, content, parent, checkpoint, steps, labels, compute)


def _nameless(part: Any) -> dict[str, Any]:
    content = asdict(part)
    content.pop("name", None)
    return content


def _model(model: ModelConfig) -> dict[str, Any]:
    content = _nameless(model)
    if not model.experts:
        del content["experts"], content["active_experts"], content["balance_rate"]
    return content


def _data(data: DataConfig) -> dict[str, Any]:
    """The data; of token shards their own hash, and neither the folder nor the recipe that they were made by."""
    content = _nameless(data)
    shards = content.pop("shards")
    del content["sources"], content["tokenizer"]
    if shards is not None:
        content["shards"] = fingerprint(shards)
    return content


def _midtrain_objective(objective: ObjectiveConfig, midtrain: MidtrainConfig) -> dict[str, Any]:
    return canonical_objective(objective if midtrain.objective == "inherit" else ObjectiveConfig())


def _midtrain(midtrain: MidtrainConfig) -> dict[str, Any]:
    content = asdict(midtrain)
    del content["objective"]  # resolved in `_midtrain_objective`
    return content


def _text_versions(data: DataConfig) -> dict[str, str]:
    """Versions of the packages whose docstrings are the text: another version is another text."""
    return {name: importlib.metadata.version(name) for name in data.text}


def _evaluation(evaluation: EvaluationConfig, stage: str) -> dict[str, Any]:
    """The part of the evaluation table that is measured at the checkpoints of `stage`."""
    content = _nameless(evaluation)
    content["max_new_tokens"] = content.pop("stage_max_new_tokens").get(stage, content["max_new_tokens"])
    del content["controls"]  # which controls there are changes none of them
    content["benchmarks"] = {
        name: benchmark for name, benchmark in content["benchmarks"].items() if stage in benchmark.pop("stages")
    }
    for benchmark in content["benchmarks"].values():
        if str(benchmark["dataset"]).endswith(LOCAL_FILES):  # a file of the same name may change
            benchmark["dataset_sha256"] = _sha256(benchmark["dataset"])
    return content


CONTROL_KINDS = {"matched": ("text", "sampled"), "theory": ("text",)}
"""Kinds of benchmarks that a control changes."""


def _control(evaluation: EvaluationConfig, stage: str, control: str) -> dict[str, Any]:
    """The part of the evaluation table that a control is measured on."""
    content = _evaluation(evaluation, stage)
    kinds = CONTROL_KINDS[control]
    content["benchmarks"] = {name: b for name, b in content["benchmarks"].items() if b["kind"] in kinds}
    return content


@cache
def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_CONTENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "data": _data,
    "text_versions": _text_versions,
    "model": _model,
    "objective": canonical_objective,
    "pretrain": _nameless,
    "midtrain_objective": _midtrain_objective,
    "midtrain": _midtrain,
    "grpo": _nameless,
    **{f"{stage} evaluation": partial(_evaluation, stage=stage) for stage in TRAINING_STAGES},
    **{
        f"{stage} {control}": partial(_control, stage=stage, control=control)
        for stage in TRAINING_STAGES
        for control in CONTROLS
    },
}
"""Name of a fragment -> what it is made of: the part of the configuration that can change a result."""
