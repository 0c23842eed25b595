"""What is measured at the milestone checkpoints, and how."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipelines.configuration import TRAINING_STAGES
from pipelines.configuration.engines import ENGINES, TYPES, engine_version
from pipelines.configuration.local_files import content_name
from pipelines.configuration.signed_content import added_later
from pipelines.errors import require, require_option, require_positive
from pipelines.files import sha256
from pipelines.verifiers.content import installed_version
from pipelines.verifiers.registry import VERIFIERS

HARNESS = ("harness", "harness_choice")
"""Kinds of benchmarks that are tasks of lm-eval."""
SAMPLED = ("sampled", "harness")
"""Kinds of benchmarks whose answers are sampled; the others only score given texts."""
KINDS = ("sampled", "choice", "text", *HARNESS)
CHOICE_TASKS = {
    "module": "pipelines.evaluation.multiple_choice:module_items",
    "continuation": "pipelines.evaluation.multiple_choice:continuation_items",
}
"""Multiple-choice tasks -> `module:function` (corpus, count) that builds their items, imported when it is used."""
TASK_FILES = Path(__file__).parents[1] / "evaluation" / "lm_eval_task_files"
"""Our task files for lm-eval, which take precedence over its own."""
LOCAL_FILES = (".jsonl", ".parquet")
"""Suffixes by which a data set is a local file."""
DEFINED_TASK = re.compile(rb"^(?:task|group|tag):[ \t]*[\"']?([^\"'#\s\[]+)", re.MULTILINE)
"""The line of a task file for lm-eval with the name of the task."""
CONTROLS = ("matched", "theory", "tempered")


@dataclass
class BenchmarkConfig:
    """One benchmark: a row of the evaluation table."""

    kind: str = MISSING
    """`sampled`: sampled answers are verified; `choice`: the likeliest continuation is the answer; `text`: held-out
    text; `harness` and `harness_choice`: generation and log-likelihood tasks of lm-eval (the extra `evaluation`)."""
    group: str = MISSING
    """Column group in the paper's tables: knowledge, commonsense, logic, math, code, or text."""
    task: str = MISSING
    """What is measured: a task family, a multiple-choice task, a source of held-out text, or a task of lm-eval. For
    `sampled` with a `dataset`: the format of its questions, a name of `pipelines.tasks.formats.FORMATS`."""
    stages: list[str] = field(default_factory=lambda: list(TRAINING_STAGES))
    """Stages whose milestone checkpoints are measured."""
    items: int = MISSING
    """Largest number of items. If there are more, they are drawn evenly: from all of a file, and from each task of a
    group in proportion to its size."""
    samples: int = 1
    """Samples per item (`sampled` and `harness`); 1 in `harness`: one greedy answer that lm-eval scores."""
    dataset: str | None = None
    """Name of the data set on the Hub, or a local .jsonl or .parquet file in place of it; null: generated items."""
    shots: int | None = None
    """Number of worked examples before the question; null: the default of lm-eval's task."""
    metric: str | None = None
    """Metric of lm-eval in the tables, with its filter if it has one (`exact_match,strict-match`)."""
    verifier: str | None = None
    """Verifier of sampled answers in `harness`: a name of `pipelines.verifiers`; null: lm-eval's own scoring."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; null: `evaluation.max_new_tokens`."""

    task_folder: str | None = added_later(as_before=None)
    """Folder with task files for lm-eval of one's own, one of which defines `task`; null: ours and lm-eval's."""

    def check(self, key: str) -> None:
        """Raise a `UserError` for an impossible value; `key` is the key of this benchmark in the configuration."""
        require_option(f"{key}.kind", self.kind, KINDS)
        require_positive(key, self, "items", "samples")
        for stage in self.stages:
            require_option(f"{key}.stages", stage, TRAINING_STAGES)
        if self.local:
            require(
                Path(self.dataset or "").is_file(),
                f"{key}.dataset",
                self.dataset,
                fix="no such file; give the path of an existing one",
            )
        self._check_task_folder(key)
        require(self.shots is None or self.shots >= 0, f"{key}.shots", self.shots, fix="it must be 0 or more")
        if self.verifier is not None:
            require_option(f"{key}.verifier", self.verifier, VERIFIERS)
        require(
            self.max_new_tokens is None or self.max_new_tokens > 0,
            f"{key}.max_new_tokens",
            self.max_new_tokens,
            fix="it must be above 0",
        )

    def _check_task_folder(self, key: str) -> None:
        if self.task_folder is None:
            return
        fix = "only tasks of lm-eval have one; set the kind to harness or harness_choice, or leave it out"
        require(self.kind in HARNESS, f"{key}.task_folder", self.task_folder, fix=fix)
        folder = Path(self.task_folder)
        require(folder.is_dir(), f"{key}.task_folder", self.task_folder, fix="no such folder; name an existing one")
        tasks = [
            match.group(1).decode(errors="replace")
            for file in sorted(folder.rglob("*.yaml"))
            for match in DEFINED_TASK.finditer(file.read_bytes())
        ]
        fix = "it has no file NAME.yaml with a line `task: NAME`; docs/evaluation.md shows one"
        require(bool(tasks), f"{key}.task_folder", self.task_folder, fix=fix)
        require_option(f"{key}.task", self.task, tasks)

    @property
    def local(self) -> bool:
        """Whether the items are in a local file."""
        return self.dataset is not None and self.dataset.endswith(LOCAL_FILES)

    @property
    def examples(self) -> Path | None:
        """FILE.train.jsonl next to a local FILE.jsonl, with the worked examples of a task of lm-eval; None without."""
        if not self.local or self.kind not in HARNESS:
            return None
        file = Path(str(self.dataset))
        examples = file.with_suffix(f".train{file.suffix}")
        return examples if examples.is_file() else None

    @property
    def task_file(self) -> Path:
        """Our task file for lm-eval; it does not exist for lm-eval's own tasks."""
        return TASK_FILES / f"{self.task}.yaml"

    @property
    def definition(self) -> dict[str, str | None]:
        """Where lm-eval's task is defined: its version, and the hash of our task file or of one's own folder."""
        if self.task_folder is not None:
            return {"lm_eval": installed_version("lm_eval"), "file": content_name(self.task_folder)}
        file = sha256(self.task_file) if self.task_file.is_file() else None
        return {"lm_eval": installed_version("lm_eval"), "file": file}


@dataclass
class EvaluationConfig:
    """What is measured at every milestone checkpoint."""

    name: str = MISSING
    """Label of the evaluation."""
    temperature: float = 0.7
    """Sampling temperature. The paper's, for mathematics and code."""
    top_p: float = 0.95
    """Nucleus sampling: share of the probability that is sampled from, in (0, 1]. The paper's."""
    max_new_tokens: int = MISSING
    """Longest answer in tokens."""
    stage_max_new_tokens: dict[str, int] = field(default_factory=dict)
    """Longest answer in tokens for the checkpoints of a stage, where it differs."""
    text_length: int = MISSING
    """Tokens per row of held-out text, the same for every stage. Ours."""
    pass_k: list[int] = MISSING
    """Values of k for which Pass@k is reported. Samples are kept: `shaping-sweeps measure` can report others later."""
    benchmarks: dict[str, BenchmarkConfig] = MISSING
    """The benchmarks by name."""
    controls: dict[str, list[str]] = field(default_factory=dict)
    """Control -> stages at whose end the cross-entropy checkpoint is measured once more for each other objective of the
    sweep. `matched`: at the temperature that gives it the entropy of that objective's checkpoint; `theory`: with the
    distribution into which the objective would turn its own."""
    engine: str = added_later(as_before="transformers")
    """Engine that samples answers: `transformers`, the checkpoint itself in float32; `replica`, a copy; or `vllm`.
    Texts that are given are always scored by the checkpoint itself in float32. Ours."""
    precision: str | None = added_later(as_before=None)
    """Type in which the engine computes, `float32` or `bfloat16`; null: float32 for `transformers`, else bfloat16.
    Ours."""

    def __post_init__(self) -> None:
        for name, benchmark in self.benchmarks.items():
            benchmark.dataset = benchmark.dataset and os.path.expanduser(benchmark.dataset)
            benchmark.task_folder = benchmark.task_folder and os.path.expanduser(benchmark.task_folder)
            benchmark.check(f"evaluation.benchmarks.{name}")
        require_positive("evaluation", self, "temperature", "max_new_tokens", "text_length")
        require(0 < self.top_p <= 1, "evaluation.top_p", self.top_p, fix="it must be in (0, 1]")
        for stage, limit in self.stage_max_new_tokens.items():
            require_option("evaluation.stage_max_new_tokens", stage, TRAINING_STAGES)
            require(limit > 0, f"evaluation.stage_max_new_tokens.{stage}", limit, fix="it must be above 0")
        for k in self.pass_k:
            require(k >= 1, "evaluation.pass_k", k, fix="it must be 1 or more")
        self._check_controls()
        self._check_engine()

    @property
    def sampler(self) -> dict[str, Any] | None:
        """What samples answers and their values depend on, for signatures and cache keys; None: the checkpoint itself.

        `version` is that of an engine that is not part of this project.
        """
        if self.engine == "transformers":
            return None
        precision = self.precision or "bfloat16"
        return {"engine": self.engine, "precision": precision, "version": engine_version(self.engine)}

    def check_means_something(self) -> None:
        """Raise a `UserError` for benchmarks that are never measured and for Pass@k that is never reported.

        The evaluation of a single stage run has no lists of stages, so only a cell is checked.
        """
        fix = "name at least one benchmark; a cell without measurements has no row in a table"
        require(bool(self.benchmarks), "evaluation.benchmarks", self.benchmarks, fix=fix)
        for name, benchmark in self.benchmarks.items():
            key = f"evaluation.benchmarks.{name}"
            require(bool(benchmark.stages), f"{key}.stages", "[]", fix=f"it is never measured; delete it: ~{key}")
        samples = [part.samples for part in self.benchmarks.values() if part.kind in SAMPLED]
        fix = "it lists each k that is reported once, such as [1,4]"
        is_list = len(set(self.pass_k)) == len(self.pass_k) and (bool(self.pass_k) or not samples)
        require(is_list, "evaluation.pass_k", self.pass_k, fix=fix)
        for k in self.pass_k if max(samples, default=1) > 1 else ():
            fix = f"no benchmark has so many samples per item, the most are {max(samples)}; lower it, or raise samples"
            require(k <= max(samples), "evaluation.pass_k", k, fix=fix)

    def longest(self, stage: str) -> dict[str, int]:
        """Configuration key -> tokens of the longest rows and answers that checkpoints of `stage` are measured with."""
        longest: dict[str, int] = {}
        for name, benchmark in self.benchmarks.items():
            if stage in benchmark.stages and benchmark.kind == "text":
                longest["evaluation.text_length"] = self.text_length
            elif stage in benchmark.stages and benchmark.kind in SAMPLED:
                if benchmark.max_new_tokens is not None:
                    longest[f"evaluation.benchmarks.{name}.max_new_tokens"] = benchmark.max_new_tokens
                elif stage in self.stage_max_new_tokens:
                    longest[f"evaluation.stage_max_new_tokens.{stage}"] = self.stage_max_new_tokens[stage]
                else:
                    longest["evaluation.max_new_tokens"] = self.max_new_tokens
        return longest

    def _check_engine(self) -> None:
        require_option("evaluation.engine", self.engine, ENGINES)
        if self.precision is not None:
            require_option("evaluation.precision", self.precision, TYPES)
        require(
            self.engine != "transformers" or self.precision != "bfloat16",
            "evaluation.precision",
            self.precision,
            fix="evaluation.engine=transformers samples from the checkpoint in float32; choose replica or vllm",
        )

    def _check_controls(self) -> None:
        measures_text = any(benchmark.kind == "text" for benchmark in self.benchmarks.values())
        for control, stages in self.controls.items():
            require_option("evaluation.controls", control, CONTROLS)
            for stage in stages:
                require_option(f"evaluation.controls.{control}", stage, TRAINING_STAGES)
                require(
                    control != "tempered" or stage == "grpo",
                    f"evaluation.controls.{control}",
                    stage,
                    fix="it repeats RL from a tempered model, so its only stage is grpo",
                )
            require(
                not stages or measures_text or not self.benchmarks,
                f"evaluation.controls.{control}",
                stages,
                fix="a control is fitted on held-out text; add a benchmark of the kind text",
            )
