"""Quick composition gives the cells that Hydra gives, and leaves to Hydra what it cannot do."""

import pytest

from sweeps.compose.cells import compose_cell
from sweeps.compose.composer import Composer, NeedsHydra
from sweeps.compose.config_files import initialized_hydra

USUAL = [
    [],
    ["objective=precision"],
    ["objective=tail_penalty", "objective.top_k=3", "seed=7"],
    ["objective.beta=0.25", "data.top_k=9"],  # the objective refers to data.top_k
    ["+sweep=nano", "objective=ce", "objective.lam_head=0.2", "pretrain.mixture.text=0.9", "until=pretrain"],
    ["data.vocab_size=300", "evaluation.benchmarks.Boolean.items=3", "evaluation.pass_k=[2,3]", "tracking=off"],
    [
        "pretrain.mixture.chain4=0.5",
        "+tracking.entity=we",
        "+evaluation.stage_max_new_tokens.grpo=9",
        "grpo.learning_rate=${pretrain.learning_rate}",
        "scale=mine",
    ],
    ["grpo.steps=${midtrain.milestones}0", "store=/elsewhere", "tracking.entity=me"],
    ["pretrain.learning_rate=${oc.env:RATE}", "midtrain.learning_rate=${pretrain.learning_rate}"],
    ["evaluation=paper", "data=paper", "pretrain=paper", "midtrain=paper", "grpo=paper", "model=4B"],
]


@pytest.mark.parametrize("job", USUAL, ids=" ".join)
def test_quick_composition_is_hydras(job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.01")
    with initialized_hydra():
        composer = Composer()
        # Another cell first: its parts must not be taken for those of the job.
        composer.cell(["objective=diversity", "seed=3", "data.top_k=4", "pretrain.mixture.text=0.5"])
        assert composer.cell(job) == compose_cell(job)


@pytest.mark.parametrize(
    "override",
    ["objective@model=ce", "~sweep", "++seed=4", "hydra.verbose=true", "objective=unknown"],
)
def test_unusual_overrides_are_left_to_hydra(override: str) -> None:
    with initialized_hydra(), pytest.raises(NeedsHydra):
        Composer().cell([override])
