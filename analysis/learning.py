"""Measures of RL's course, run by run: how soon it learns on held-out problems, and the entropy that it spends on it.

`MEASURES` lists them. Claims name them as rl(OBJECTIVE, MEASURE), and the table of learning shows them. A run with
several RL seeds counts as one seed of pre-training, with the mean over its RL seeds; `analysis.variance` separates the
two. `rl_runs("store")` has every run with its measures.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.published_files import COURSE_COLUMNS, CURVE_ENDS
from analysis.statistics import UNBOUNDED, Floats, Sampled
from analysis.study import SETTING, NotMeasured, Study, read_stored
from pipelines.evaluation.learning import area, area_weights, price, steps_to
from sweeps.store.stage_runs import Store

Key = tuple[str, str, str]
"""(model, objective, variant); the variant is empty, or `tempered:SETTING` for RL from a tempered start."""


@dataclass(frozen=True)
class RLCurve:
    """One RL run as its ledger has it."""

    seed: int
    rl_seed: int
    stage_run: str
    ends: dict[str, tuple[float, float]]
    """Ledger column -> its means over the first and over the last steps."""
    steps: Floats = field(default_factory=lambda: np.zeros(0))
    """Steps at which held-out problems were measured, [S], increasing; step 0 is the model before RL."""
    rewards: Floats = field(default_factory=lambda: np.zeros(0))
    """[S] rewards there, as fractions, at RL's temperature."""
    deviations: Floats = field(default_factory=lambda: np.zeros(0))
    """[S] their standard deviations over problems."""
    passes: dict[str, Floats] = field(default_factory=dict)
    """`pass@k` -> [S]."""
    problems: int = 1

    @property
    def has_area(self) -> bool:
        """Whether held-out problems were measured often enough."""
        return len(self.steps) >= 2

    @property
    def gain(self) -> float:
        """Held-out reward at the last step minus that before RL."""
        return float(self.rewards[-1] - self.rewards[0]) if self.has_area else float("nan")

    def change(self, column: str, measure: Callable[[float, float], float]) -> float:
        """Returns a measure of a ledger column's means over the first and the last steps; NaN without them."""
        return measure(*self.ends[column]) if column in self.ends else float("nan")


@dataclass(frozen=True)
class LearningMeasure:
    """One number of an RL run. `of` maps a curve and a reward in percent to it, NaN if it does not have one."""

    title: str
    of: Callable[[RLCurve, float], float]
    deviation: Callable[[RLCurve], float] = lambda curve: 0.0
    """Its standard deviation over problems; 0 where that is not known."""
    is_percent: bool = False
    """Whether it is between 0 and 100, and one problem moves it."""
    needs_reward: bool = False


def _area(curve: RLCurve, _: float) -> float:
    return 100 * area(curve.steps.tolist(), curve.rewards.tolist()) if curve.has_area else float("nan")


def _area_deviation(curve: RLCurve) -> float:
    # Every step has the same problems, so what they do to the steps adds up.
    return 100 * float(area_weights(curve.steps.tolist()) @ curve.deviations) if curve.has_area else 0.0


def _steps_to(curve: RLCurve, reward: float) -> float:
    if not curve.has_area:
        return float("nan")
    # A curve that never gets there counts with its whole length (the restricted mean of survival analysis).
    reached = steps_to(curve.steps.tolist(), curve.rewards.tolist(), reward / 100)
    return float(curve.steps[-1]) if reached is None else reached


def _spent(first: float, last: float) -> float:
    return first - last


def _price(curve: RLCurve, _: float) -> float:
    paid = price(curve.change("entropy", _spent), curve.gain)
    return float("nan") if paid is None else paid / 10


MEASURES: dict[str, LearningMeasure] = {
    "entropy_fall": LearningMeasure(
        "share of entropy lost in RL", lambda curve, _: curve.change("entropy", lambda first, last: 1 - last / first)
    ),
    "length_change": LearningMeasure(
        "last response length / first",
        lambda curve, _: curve.change("response_length", lambda first, last: last / first),
    ),
    "area": LearningMeasure("mean held-out reward over RL (percent)", _area, _area_deviation, is_percent=True),
    "gain": LearningMeasure("held-out reward gained in RL (points)", lambda curve, _: 100 * curve.gain),
    "steps_to": LearningMeasure("RL steps to a held-out reward", _steps_to, needs_reward=True),
    "entropy_spent": LearningMeasure("entropy spent in RL (nats)", lambda curve, _: curve.change("entropy", _spent)),
    "entropy_price": LearningMeasure("entropy spent for ten points of reward (nats)", _price),
}
"""Second argument of rl() -> measure. A further one is one entry here; its test belongs in
tests/analysis/test_learning.py."""


@lru_cache(maxsize=2)
def rl_curves(study: Study) -> dict[Key, list[RLCurve]]:
    """Returns the curves of all finished RL runs, by model, objective and variant."""
    curves: dict[Key, list[RLCurve]] = {}
    for run in study.runs[study.runs["stage"] == "grpo"].to_dict("records"):
        if rows := study.courses.get(run["stage_run"]):
            key = (str(run["model"]), str(run["objective"]), str(run["variant"]))
            curves.setdefault(key, []).append(
                _curve(run, rows, study.specs[run["stage_run"]]["config"].get("grpo", {}))
            )
    for of_setting in curves.values():
        of_setting.sort(key=lambda curve: (curve.seed, curve.rl_seed))
    return curves


def rl_runs(store: str | Path) -> pd.DataFrame:
    """Returns the finished RL runs of a store as `run_table` has them. Raises `UserError` if it is not a store."""
    return run_table(read_stored(Store.open(store)))


def run_table(study: Study) -> pd.DataFrame:
    """Returns one row per finished RL run: its setting, held-out rewards in percent, and the `MEASURES` of its course.

    A measure that the run does not have is empty; those that need a reward are left out.
    """
    labels = ["scale", *SETTING, "rl_seed", "variant", "stage_run"]
    measures = {name: measure for name, measure in MEASURES.items() if not measure.needs_reward}
    settings: dict[str, dict[Any, Any]] = {run["stage_run"]: run for run in study.runs[labels].to_dict("records")}
    rows: list[dict[Any, Any]] = []
    for curve in (curve for curves in rl_curves(study).values() for curve in curves):
        before, after = 100 * curve.rewards[[0, -1]] if len(curve.rewards) else (None, None)
        rows.append(
            {
                **settings[curve.stage_run],
                "held_out_before": before,
                "held_out_after": after,
                **{name: measure.of(curve, 0.0) for name, measure in measures.items()},
            }
        )
    return pd.DataFrame(rows, columns=[*labels, "held_out_before", "held_out_after", *measures])


def _curve(run: Mapping[Any, Any], rows: list[dict[str, Any]], config: Mapping[str, Any]) -> RLCurve:
    """The curve of a run of `Study.runs`, from the rows of its ledger and its `grpo` configuration."""
    rows = sorted(rows, key=lambda row: row["step"])
    ends: dict[str, tuple[float, float]] = {}
    for column in COURSE_COLUMNS:
        numbers = [float(row[column]) for row in rows if row.get(column) is not None]
        if len(numbers) >= 2:
            count = max(1, min(CURVE_ENDS, len(numbers) // 2))
            ends[column] = (float(np.mean(numbers[:count])), float(np.mean(numbers[-count:])))
    curve = RLCurve(int(run["seed"]), int(run["rl_seed"]), str(run["stage_run"]), ends)
    held_out = [row for row in rows if row.get("held_out_reward") is not None]
    if not held_out:
        return curve
    prefix = "held_out_"
    passes = {
        name.removeprefix(prefix): np.array([row[name] for row in held_out], float)
        for name in held_out[0]
        if name.startswith(f"{prefix}pass@") and all(row.get(name) is not None for row in held_out)
    }
    rewards = np.array([row["held_out_reward"] for row in held_out], float)
    return replace(
        curve,
        steps=np.array([row["step"] for row in held_out], float),
        rewards=rewards,
        deviations=reward_deviations(rewards, passes.get("pass@2"), samples=config.get("samples") or 1),
        passes=passes,
        problems=config.get("held_out_problems") or 1,
    )


def reward_deviations(rewards: Floats, pass_2: Floats | None, *, samples: int) -> Floats:
    """Returns the standard deviation over problems of mean rewards [S], from Pass@2 [S] of the same samples.

    With the share q of right samples of a problem, Pass@2 is the mean of 1 - (1 - q)^2, so the variance of q over
    problems follows from it and from the mean of q. Without Pass@2, each problem has one sample.
    """
    square = 2 * rewards - (rewards if pass_2 is None else pass_2)
    variance = np.clip(square - rewards**2, 0, None) + np.clip(rewards - square, 0, None) / samples
    deviation: Floats = np.sqrt(variance)
    return deviation


def sampled(curves: Iterable[RLCurve], name: str, reward: float = 0.0) -> Sampled:
    """Returns a measure by seed of pre-training, each the mean over its RL seeds.

    Raises `NotMeasured` if no curve has it.
    """
    measure = MEASURES[name]
    values: dict[int, list[float]] = {}
    errors: dict[int, list[float]] = {}
    problems = 1
    for curve in curves:
        value = measure.of(curve, reward)
        if np.isfinite(value):
            values.setdefault(curve.seed, []).append(value)
            errors.setdefault(curve.seed, []).append(measure.deviation(curve) / np.sqrt(max(1, curve.problems - 1)))
            problems = curve.problems
    if not values:
        raise NotMeasured(f"no finished RL run has the measure {name}")
    by_seed = np.array([np.mean(numbers) for numbers in values.values()])
    # All runs answer the same problems, so between several seeds their error is shared and cancels in differences.
    over_problems = np.array([np.mean(numbers) for numbers in errors.values()])
    if len(values) > 1:
        over_problems = np.zeros_like(over_problems)
    parts = (("held-out problems", None, over_problems),) if measure.is_percent else ()
    return Sampled(
        tuple(values),
        by_seed,
        parts,
        resolution=100 / problems if measure.is_percent else 0.0,
        bounds=(0.0, 100.0) if measure.is_percent else UNBOUNDED,
    )
