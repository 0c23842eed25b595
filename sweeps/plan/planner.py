"""From cells to one graph of stage runs, in which cells share what they have in common."""

import os
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from pipelines.configuration import STAGE_VERSIONS, START, TOKEN_STAGES, TRAINING_STAGES
from pipelines.configuration.cell import Cell
from pipelines.configuration.data import text_versions
from pipelines.configuration.start_checkpoint import StartCheckpoint
from pipelines.plugins.loading import planned_plugins
from sweeps.plan.controls import control_runs
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.names import ACTS_FROM, Variant, cell_name, checkpoint_name, objective_name, shown, variants
from sweeps.plan.signatures import (
    Content,
    SharedContents,
    data_content,
    evaluation_content,
    grpo_content,
    local_files,
    midtrain_content,
    midtrain_objective_content,
    model_content,
    nameless_content,
    objective_content,
    stage_signature,
)


def plan(cells: Iterable[Cell]) -> Plan:
    """Returns the graph of stage runs that `cells` need, shared ones once."""
    cells = list(cells)
    contents = SharedContents()
    cell_variants = variants(cells)
    # A list of stage runs per cell, in which equal stage runs are repeated; the graph drops the repetitions.
    chains = [_Chain(cell, variant, contents).runs for cell, variant in zip(cells, cell_variants, strict=True)]
    controls = control_runs(cells, chains, variants=cell_variants, contents=contents)
    # Controls follow all chains, because a control may need what any of them trains.
    graph = Plan()
    for runs in (*chains, *controls):
        for run in runs:
            graph.add(run)
    # A ce cell owns the controls that were planned for it.
    for cell, variant, chain, own_controls in zip(cells, cell_variants, chains, controls, strict=True):
        name = "/".join([cell_name(cell), *shown(variant, parts=set(ACTS_FROM))])
        graph.cells[name] = list(dict.fromkeys(run.signature for run in (*chain, *own_controls)))
    return graph


class _Chain:
    """The stage runs of one cell: each training stage, followed by the evaluations of its milestones."""

    def __init__(self, cell: Cell, variant: Variant, contents: SharedContents) -> None:
        self._cell = cell
        self._variant = variant
        self._contents = contents
        # Names for people, which are in no signature.
        self._labels = {
            "model": cell.model_name,
            "objective": objective_name(cell),
            "scale": cell.scale,
            "seed": cell.seed,
            "sweep": cell.sweep.name,
            **{knob: getattr(cell.objective, knob) for knob in ("beta", "lam_head", "lam_tail", "top_k")},
        }
        files = contents(local_files, cell.grpo, cell.evaluation)
        shards = cell.data.shards and os.path.abspath(cell.data.shards)  # a job may start in another directory
        self._compute = asdict(cell.compute) | {"shards": shards, "files": files}
        # A worker loads the same plugins, also on a machine that has another environment.
        if plugins := planned_plugins():
            self._compute["plugins"] = plugins
        # What every stage of the chain but the start reads.
        self._common: Content = {
            "seed": cell.seed,
            "data": contents(data_content, cell.data),
            "text_versions": contents(text_versions, cell.data),
        }
        self._start = cell.starts_from
        if self._start:
            self._common["start"] = {"tokenizer": self._start.tokenizer}
        self.runs: list[StageRun] = []
        # Each stage starts from the last checkpoint of the one before.
        parent: StageRun | None = None
        if self._start:
            parent = self._imported(self._start)
            self.runs += [parent, *self._evaluations(parent)]
        for stage in cell.stages:
            parent = self._training(stage, parent)
            self.runs += [parent, *self._evaluations(parent)]

    def _imported(self, start: StartCheckpoint) -> StageRun:
        """Returns the stage run that copies the start checkpoint into the store."""
        content = {"start": start.content, "model": start.shape, "vocab_size": start.vocabulary}
        content["positions"] = start.positions
        run = self._stage_run(START, content, parent=None, checkpoint=None, steps=1, labels=self._variant_label(START))
        return replace(run, compute={"start": start.name or str(start.folder)})

    def _training(self, stage: str, parent: StageRun | None) -> StageRun:
        """Returns the training stage that starts from the last checkpoint of `parent`."""
        return self._stage_run(
            stage,
            self._common | self._stage_content(stage),
            parent=parent,
            checkpoint=checkpoint_name(self._steps(parent)[-1]) if parent else None,
            steps=getattr(self._cell, stage).steps,
            labels=self._variant_label(stage),
        )

    def _evaluations(self, trained: StageRun) -> list[StageRun]:
        """Returns an evaluation for each milestone of `trained`; none where its stage has no benchmarks.

        A start checkpoint is step 0 of the first stage, and measured as that stage's checkpoints are.
        """
        stage = self._cell.start.stage if trained.stage == START else trained.stage
        evaluation = self._contents(evaluation_content, self._cell.evaluation, stage)
        if not evaluation["benchmarks"]:
            return []
        runs = []
        for step in self._steps(trained):
            # RL has no budget in tokens.
            tokens = {"tokens": step * getattr(self._cell, stage).batch_tokens} if stage in TOKEN_STAGES else {}
            run = self._stage_run(
                "evaluate",
                self._common | {"evaluation": evaluation} | self._prompts(),
                parent=trained,
                checkpoint=checkpoint_name(step),
                steps=len(evaluation["benchmarks"]),
                labels=tokens | self._variant_label(stage, "evaluation"),
            )
            runs.append(run)
        return runs

    def _steps(self, trained: StageRun) -> list[int]:
        """Returns the steps of the checkpoints of a stage run; a start checkpoint is its step 0."""
        steps: list[int] = [0] if trained.stage == START else getattr(self._cell, trained.stage).checkpoints()
        return steps

    def _stage_content(self, stage: str) -> Content:
        """Returns what of the cell only this training stage reads."""
        cell, contents = self._cell, self._contents
        # A start checkpoint has an architecture and a RoPE base already.
        own_rope: Content = {"rope_base": None} if self._start else {}
        experts = self._start.shape.get("experts") if self._start else cell.model.experts
        balance = {"balance_rate": cell.model.balance_rate} if experts else {}
        if stage == "pretrain":
            content: Content = {
                "objective": contents(objective_content, cell.objective),
                "pretrain": contents(nameless_content, cell.pretrain) | own_rope,
            }
            return content | (balance if self._start else {"model": contents(model_content, cell.model)})
        if stage == "midtrain":
            # Mid-training continues to balance the experts.
            return {
                "objective": contents(midtrain_objective_content, cell.objective, cell.midtrain),
                "midtrain": contents(midtrain_content, cell.midtrain) | own_rope,
            } | balance
        return {"grpo": contents(grpo_content, cell.grpo, cell.seed)} | self._prompts()

    def _prompts(self) -> Content:
        """Returns how the questions of a start checkpoint are asked, with the tokenizer that every stage reads."""
        return {"start": self._common["start"] | {"prompts": self._cell.start.prompts}} if self._start else {}

    def _variant_label(self, stage: str, *more: str) -> dict[str, str]:
        """Returns the label with the variant's keys that affect `stage`, and those of `more` parts."""
        parts = {"start"}
        if stage != START:
            parts = {part for part, first in ACTS_FROM.items() if first <= TRAINING_STAGES.index(stage)}
        # A later stage's keys do not tell the runs of this stage apart: variants share it.
        keys = shown(self._variant, parts=parts | set(more))
        return {"variant": ",".join(keys)} if keys else {}

    def _stage_run(
        self,
        stage: str,
        config: Content,
        *,
        parent: StageRun | None,
        checkpoint: str | None,
        steps: int,
        labels: dict[str, Any],
    ) -> StageRun:
        version = STAGE_VERSIONS[stage]
        parent_signature = parent.signature if parent else None
        signature = stage_signature(
            stage, version=version, config=config, parent=parent_signature, checkpoint=checkpoint
        )
        return StageRun(
            stage=stage,
            signature=signature,
            version=version,
            config=config,
            parent=(parent.stage, parent.signature) if parent else None,
            checkpoint=checkpoint,
            steps=steps,
            labels=self._labels | labels,
            compute=self._compute,
        )
