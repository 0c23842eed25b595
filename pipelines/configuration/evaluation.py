"""What is measured at the milestones, and how."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from pipelines.configuration import TRAINING_STAGES
from pipelines.errors import nearest, require, require_positive
from pipelines.verifiers.registry import VERIFIERS

HARNESS = ("harness", "harness_choice")
CHOICE_TASKS = ("module", "continuation")
"""Multiple-choice tasks; `pipelines.evaluation.evaluate` builds their items."""
LOCAL_FILES = (".jsonl", ".parquet")
"""Endings of the names of data sets that are files here."""
CONTROLS = ("matched", "theory")


@dataclass
class BenchmarkConfig:
    """One row of the evaluation table."""

    kind: str = MISSING
    """`sampled` (answers are sampled and verified), `choice` (the likeliest continuation), `text`; `harness` and
    `harness_choice` are generation and log-likelihood tasks of lm-eval (the extra `evaluation`)."""
    group: str = MISSING
    """Column group of the paper's tables: knowledge, commonsense, logic, math, code, or text."""
    task: str = MISSING
    """What is asked: a family of tasks, a multiple-choice builder, a source of held-out text, or a task of lm-eval;
    of `sampled`, also a format of `pipelines.data.questions.FORMATS` for the questions of `dataset`."""
    stages: list[str] = field(default_factory=lambda: list(TRAINING_STAGES))
    """Stages whose milestone checkpoints are measured on it."""
    items: int = MISSING
    """Most items: the first ones."""
    samples: int = 1
    """Samples an item (`sampled` and `harness`); 1 in `harness`: one greedy answer, scored by lm-eval itself."""
    dataset: str | None = None
    """Where the items come from: a name on the hub, or a local .jsonl or .parquet file, which may stand in for any."""
    shots: int | None = None
    """Worked examples before the question; null: as lm-eval's task has it."""
    metric: str | None = None
    """What the tables show: a metric of lm-eval, with its filter where it has one (`exact_match,strict-match`)."""
    verifier: str | None = None
    """What judges a sampled answer of `harness`: a name of `pipelines.verifiers`; null: lm-eval's own scoring."""
    max_new_tokens: int | None = None
    """Longest answer in tokens, where it is not `evaluation.max_new_tokens`."""

    def check(self, key: str) -> None:
        """Raise a `UserError` for an impossible value; `key` is where this benchmark stands in the configuration."""
        kinds = ("sampled", "choice", "text", *HARNESS)
        require(self.kind in kinds, f"{key}.kind", self.kind, fix=nearest(self.kind, kinds))
        require_positive(key, self, "items", "samples")
        for stage in self.stages:
            require(stage in TRAINING_STAGES, f"{key}.stages", stage, fix=nearest(stage, TRAINING_STAGES))
        if self.local:
            require(Path(self.dataset or "").is_file(), f"{key}.dataset", self.dataset, fix="there is no such file")
        require(self.shots is None or self.shots >= 0, f"{key}.shots", self.shots, fix="it must be 0 or more")
        if self.verifier is not None:
            require(self.verifier in VERIFIERS, f"{key}.verifier", self.verifier, fix=nearest(self.verifier, VERIFIERS))
        require(
            self.max_new_tokens is None or self.max_new_tokens > 0,
            f"{key}.max_new_tokens",
            self.max_new_tokens,
            fix="it must be above 0",
        )

    @property
    def local(self) -> bool:
        """Whether the items are in a file here."""
        return self.dataset is not None and self.dataset.endswith(LOCAL_FILES)


@dataclass
class EvaluationConfig:
    """What is measured at every milestone checkpoint."""

    name: str = MISSING
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int = MISSING
    stage_max_new_tokens: dict[str, int] = field(default_factory=dict)
    """Longest answer of the models of a stage, where it is another."""
    text_length: int = MISSING
    """Tokens of a row of held-out text, the same for every stage."""
    pass_k: list[int] = MISSING
    """The k of Pass@k that are reported; the samples are kept, and any other k is `shaping-sweeps measure` away."""
    benchmarks: dict[str, BenchmarkConfig] = MISSING
    controls: dict[str, list[str]] = field(default_factory=dict)
    """Control -> stages at whose end the ce checkpoint is measured once more for each other objective of the
    sweep: `matched`, at the temperature that gives it the shaped checkpoint's entropy; `theory`, with the distribution
    that the objective would make of its own."""

    def __post_init__(self) -> None:
        for name, benchmark in self.benchmarks.items():
            benchmark.check(f"evaluation.benchmarks.{name}")
        require_positive("evaluation", self, "temperature", "max_new_tokens", "text_length")
        require(0 < self.top_p <= 1, "evaluation.top_p", self.top_p, fix="it must lie in (0, 1]")
        for stage, limit in self.stage_max_new_tokens.items():
            require(stage in TRAINING_STAGES, "evaluation.stage_max_new_tokens", stage, fix=nearest(stage, TRAINING_STAGES))
            require(limit > 0, f"evaluation.stage_max_new_tokens.{stage}", limit, fix="it must be above 0")
        for k in self.pass_k:
            require(k >= 1, "evaluation.pass_k", k, fix="it must be 1 or more")
        for control, stages in self.controls.items():
            require(control in CONTROLS, "evaluation.controls", control, fix=nearest(control, CONTROLS))
            for stage in stages:
                require(
                    stage in TRAINING_STAGES, f"evaluation.controls.{control}", stage, fix=nearest(stage, TRAINING_STAGES)
                )
            require(
                not stages or any(b.kind == "text" for b in self.benchmarks.values()),
                f"evaluation.controls.{control}",
                stages,
                fix="a control is found on held-out text: name a benchmark of the kind text",
            )
