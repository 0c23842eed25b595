"""The cost model against stage runs whose seconds are known."""

import pytest

from pipelines.errors import UserError
from sweeps.plan.calibration import Timed, fit, groups
from sweeps.plan.cost import Rate, Work

STAGES = {"pretrain": (4e12, 0.0), "midtrain": (1e12, 0.0), "grpo": (2e12, 1e12), "evaluate": (0.0, 5e11)}


def stage_runs(model: str, rate: Rate, factors: dict[str, list[float]]) -> list[Timed]:
    """Returns stage runs that took these multiples of the time that `rate` predicts."""
    return [
        Timed(model, stage, Work(*STAGES[stage]), rate.seconds(Work(*STAGES[stage])) * factor)
        for stage, of_stage in factors.items()
        for factor in of_stage
    ]


def test_fit_recovers_the_shares_that_times_were_made_with() -> None:
    truth = Rate("core", 0.31, 0.07)
    runs = stage_runs("nano", truth, {stage: [1.0, 1.0] for stage in STAGES})
    assert fit(runs, "core").mfu == pytest.approx(0.31)
    assert fit(runs, "core").sampling_mfu == pytest.approx(0.07)
    by_stage = {group.stage: group for group in groups(runs, "core")}
    assert [group.error for group in by_stage.values()] == pytest.approx([0.0] * 4)
    assert by_stage["grpo"].share is None  # training and sampling together
    assert by_stage["pretrain"].device_seconds == pytest.approx(4e12 / (1e11 * 0.31))
    assert by_stage["evaluate"].share == pytest.approx(0.07)


def test_errors_are_those_of_predictions_by_other_stage_runs() -> None:
    """One stage run of each stage in each half; the second half takes a quarter longer."""
    truth = Rate("core", 0.5, 0.1)
    runs = stage_runs("nano", truth, {stage: [1.0, 1.25] for stage in STAGES})
    for group in groups(runs, "core"):
        # 1 predicted by 1.25: a quarter too much; 1.25 predicted by 1: a fifth too little
        assert group.error == pytest.approx((0.25 + 0.2) / 2)
        assert group.worst == pytest.approx(0.25)
        assert group.error_from_other_models is None


def test_other_models_predict() -> None:
    slow, fast = Rate("core", 0.2, 0.1), Rate("core", 0.4, 0.1)
    ones = {stage: [1.0, 1.0] for stage in STAGES}
    runs = [*stage_runs("small", slow, ones), *stage_runs("large", fast, ones)]
    errors = {(group.model, group.stage): group.error_from_other_models for group in groups(runs, "core")}
    assert errors["large", "pretrain"] == pytest.approx(1.0)  # predicted twice as long by the small one's share
    assert errors["small", "midtrain"] == pytest.approx(0.5)
    assert errors["small", "evaluate"] == pytest.approx(0.0)


def test_calibration_needs_training_and_evaluation() -> None:
    runs = stage_runs("nano", Rate("core", 0.3, 0.1), {"pretrain": [1.0]})
    with pytest.raises(UserError, match="none of the selected stage runs is a finished evaluation"):
        fit(runs, "core")
    (group,) = groups(runs, "core")
    assert (group.error, group.worst) == (None, None)
