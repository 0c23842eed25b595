"""Controls of a ce cell that imitate another objective: evaluations at the end of stages, and RL from a tempered model.

`matched` samples at the temperature that gives ce the shaped checkpoint's entropy; `theory` measures the distribution
that the objective would make of ce's own; `tempered` repeats RL, and its evaluations, from ce's mid-trained model with
its logits scaled until it has the entropy of the shaped one.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from pipelines.configuration import START, TRAINING_STAGES
from pipelines.configuration.cell import Cell
from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.configuration.objective import ObjectiveConfig
from pipelines.tasks.question_sets import plugin_set
from sweeps.plan.graph import StageRun
from sweeps.plan.names import Variant, checkpoint_name, knobs_name, objective_name, shown
from sweeps.plan.signatures import (
    SharedContents,
    control_content,
    data_content,
    evaluation_content,
    grpo_content,
    midtrain_content,
    model_content,
    nameless_content,
    objective_content,
    stage_signature,
)


@dataclass(frozen=True)
class _PlannedCell:
    """A cell with its stage runs."""

    index: int
    cell: Cell
    chain: list[StageRun]
    variant: Variant

    @property
    def is_ce(self) -> bool:
        return objective_content(self.cell.objective) == objective_content(ObjectiveConfig())

    @property
    def label(self) -> str:
        """The objective's name; with its knobs where another cell has the same name and other knobs."""
        return "/".join([objective_name(self.cell), *shown(self.variant, parts={"objective"})])


def control_runs(
    cells: list[Cell], chains: list[list[StageRun]], *, variants: list[Variant], contents: SharedContents
) -> list[list[StageRun]]:
    """Returns, for each cell, its controls: a ce cell has one for each cell that differs in the objective only."""
    # Cells by everything that can change a result except the objective.
    groups: dict[str, list[_PlannedCell]] = defaultdict(list)
    for index, cell in enumerate(cells):
        if cell.evaluation.controls:
            planned = _PlannedCell(index, cell, chains[index], variants[index])
            groups[_all_but_objective(cell, contents)].append(planned)
    # Every ce cell of a group is measured against every other objective of it.
    controls: list[list[StageRun]] = [[] for _ in cells]
    for group in groups.values():
        # Of cells with the same knobs the last one is the reference.
        others = {knobs_name(planned.cell): planned for planned in group if not planned.is_ce}
        for planned in group:
            if planned.is_ce:
                for other in others.values():
                    controls[planned.index] += _controls_of(planned, other, contents)
    return controls


def _all_but_objective(cell: Cell, contents: SharedContents) -> str:
    parts = [
        # Start checkpoints under one name are one model, pre-trained with several objectives.
        cell.model_name if cell.start.checkpoint else contents(model_content, cell.model),
        contents(data_content, cell.data),
        contents(nameless_content, cell.pretrain),
        contents(midtrain_content, cell.midtrain),
        contents(grpo_content, cell.grpo, cell.seed),
        *(contents(evaluation_content, cell.evaluation, stage) for stage in TRAINING_STAGES),
        cell.evaluation.controls,
    ]
    return json.dumps([*parts, cell.midtrain.objective, cell.seed], sort_keys=True)


def _controls_of(ce: _PlannedCell, other: _PlannedCell, contents: SharedContents) -> list[StageRun]:
    """Returns the controls of one ce cell against one other cell."""
    trained = {run.stage: run for run in other.chain if run.stage != "evaluate"}
    controls = _tempered(ce, other, trained) if ce.cell.evaluation.controls.get("tempered") else []
    for measured in ce.chain:
        # Controls are measured where a stage of both cells ends.
        if measured.stage != "evaluate" or measured.parent is None or measured.parent[0] not in trained:
            continue
        if measured.parent[0] == START:
            continue
        stage = measured.parent[0]
        if measured.checkpoint != checkpoint_name(getattr(ce.cell, stage).checkpoints()[-1]):
            continue
        for control, stages in ce.cell.evaluation.controls.items():
            if stage in stages and control != "tempered":
                evaluation = contents(control_content, ce.cell.evaluation, stage, control)
                # The name in the signature is made of knobs, so that renaming an objective changes no signature.
                variant: dict[str, Any] = {"name": f"{control}:{knobs_name(other.cell)}"}
                # `matched` needs the other checkpoint's entropy; `theory` needs only the knobs.
                if control == "matched":
                    variant["reference"] = {
                        "stage": stage, "signature": trained[stage].signature, "checkpoint": measured.checkpoint
                    }  # fmt: skip
                else:
                    variant["objective"] = objective_content(other.cell.objective)
                config = measured.config | {"evaluation": evaluation, "variant": variant}
                changed = replace(measured, steps=len(evaluation["benchmarks"]))
                controls.append(_control(changed, config, f"{control}:{other.label}"))
    return controls


def _tempered(ce: _PlannedCell, other: _PlannedCell, trained: dict[str, StageRun]) -> list[StageRun]:
    """Returns RL of the ce cell from its model tempered to the other's entropy, and the evaluations of that."""
    rl = next((run for run in ce.chain if run.stage == "grpo"), None)
    if rl is None or "midtrain" not in trained:
        return []
    # The text on which the temperature is found: the first by name, whatever the order of keys.
    evaluation = ce.cell.evaluation
    text = next(part for _, part in sorted(evaluation.benchmarks.items()) if part.kind == "text")
    variant = {
        "name": f"tempered:{knobs_name(other.cell)}",
        "reference": {
            "stage": "midtrain",
            "signature": trained["midtrain"].signature,
            "checkpoint": checkpoint_name(other.cell.midtrain.checkpoints()[-1]),
        },
        "text": {"task": text.task, "items": text.items, "length": evaluation.text_length} | _source(text),
    }
    label = f"tempered:{other.label}"
    control = _control(rl, rl.config | {"variant": variant}, label)
    measured = [run for run in ce.chain if run.stage == "evaluate" and run.parent == ("grpo", rl.signature)]
    moved = [replace(run, parent=("grpo", control.signature)) for run in measured]
    return [control, *(_control(run, run.config, label) for run in moved)]


def _control(run: StageRun, config: dict[str, Any], label: str) -> StageRun:
    """Returns a stage run with another configuration, and the label of its control."""
    signature = stage_signature(
        run.stage,
        version=run.version,
        config=config,
        parent=run.parent and run.parent[1],
        checkpoint=run.checkpoint,
    )
    return replace(run, signature=signature, config=config, labels=run.labels | {"control": label})


def _source(text: BenchmarkConfig) -> dict[str, Any]:
    """The code that held-out text of a plugin comes from."""
    items = plugin_set("text", text.task)
    return {"source": items.source} if items else {}
