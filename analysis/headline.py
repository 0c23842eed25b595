"""The result in one table and one sentence: each setting's distribution after pre-training and what RL makes of it.

The page, the terminal and W&B begin with it. Differences are to cross-entropy, paired by seed, with the interval of the
hierarchical bootstrap; Holm's correction runs over all of them. One seed has an interval over its problems only, and
decides nothing.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from analysis.claim_language import Term
from analysis.claim_sources import StudySource
from analysis.claims import with_seeds
from analysis.estimates import Precision, seed_mean
from analysis.figures.charts import setting_order
from analysis.learning import rl_curves
from analysis.statistics import ALPHA, Estimate, Floats, Sampled, hierarchical_bootstrap, holm, seeds_needed
from analysis.study import NotMeasured, Study, baselines
from analysis.tables import Entry

HIGHER, LOWER, NOT_TOLD_APART = "higher", "lower", "not told apart"
ENOUGH_SEEDS = 5
"""Seeds that a study of one seed should have: the fewest with which a paired test often decides."""


@dataclass(frozen=True)
class Measure:
    """A column of the headline."""

    name: str
    title: str
    """In words, for a figure's axis and a sentence."""
    short: str
    """For the head of a column."""
    unit: str
    digits: int


ENTROPY = Measure("entropy", "entropy after pre-training", "entropy", "nats", 2)
PERPLEXITY = Measure("perplexity", "perplexity after pre-training", "perplexity", "", 1)
"""Of held-out text at the last checkpoint."""


@dataclass(frozen=True)
class Difference:
    """A setting minus its baseline."""

    estimate: Estimate
    by_seed: tuple[float, ...]
    seeds: tuple[int, ...]
    word: str = NOT_TOLD_APART
    """Higher, lower or not told apart."""
    p: float | None = None
    """Of the two-sided test, Holm-corrected over all differences of the headline; None for one seed."""

    @property
    def seeds_needed(self) -> int | None:
        """How many seeds would tell a difference like this one (80 % power); None if that is not known."""
        return seeds_needed(self.by_seed)


@dataclass(frozen=True)
class HeadlineRow:
    """One setting of one model."""

    model: str
    setting: str
    entropy: Entry
    perplexity: Entry
    before: Entry
    after: Entry
    """Of RL."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """Measure's name -> difference to the baseline; none for the baseline itself."""
    by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    """`entropy`, `perplexity`, `before` and `after` -> seed -> value, of what is measured."""


@dataclass(frozen=True)
class Headline:
    """The rows of all settings, baselines first, and what they were compared with."""

    rows: list[HeadlineRow]
    baselines: dict[str, str]
    """Model -> its cross-entropy setting."""
    result: Measure
    """What is shown before and after RL."""
    seeds: list[int]
    has_rl: bool
    """Whether the study has RL, done or not; without, there is no before and after to show."""

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """All columns."""
        return (ENTROPY, PERPLEXITY, self.result)

    @property
    def models(self) -> list[str]:
        """The models in the order of the rows."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def name(self, row: HeadlineRow) -> str:
        """The setting, with its model if there are several."""
        return row.setting if len(self.models) == 1 else f"{row.setting}, {row.model}"


def headline(study: Study) -> Headline:
    """Returns the headline of a study; numbers that are missing are empty entries."""
    result, measured = measures(study)
    plain = baselines(study)
    rows = []
    for model in dict.fromkeys(model for model, _ in measured):
        settings = [setting for other, setting in measured if other == model]
        baseline = plain.get(model)
        for setting in sorted(settings, key=lambda name: name != baseline):
            of_baseline = measured.get((model, str(baseline)), {}) if setting != baseline else {}
            rows.append(_row((model, setting), measured[model, setting], of_baseline))
    seeds = sorted(study.runs["seed"].unique().tolist())
    return Headline(_with_words(rows), plain, result, seeds, has_rl=bool((study.runs["stage"] == "grpo").any()))


Measured = dict[str, Sampled | None]
"""`entropy`, `perplexity`, `before` and `after` -> values by seed; None if it is not measured."""


def measures(study: Study) -> tuple[Measure, dict[tuple[str, str], Measured]]:
    """Returns what RL is judged by, and the values of every (model, setting), settings in their usual order."""
    source = StudySource(study)
    result, quantities = _result(study, source)
    cells = study.runs[["model", "objective"]].drop_duplicates()
    measured: dict[tuple[str, str], Measured] = {}
    for model in cells["model"].unique().tolist():
        for setting in setting_order(cells.loc[cells["model"] == model, "objective"]):
            measured[model, setting] = {
                "entropy": _of_text(source, setting, model=model, metric="entropy"),
                "perplexity": _of_text(source, setting, model=model, metric="perplexity"),
                **quantities.get((model, setting), {}),
            }
    return result, measured


def _row(cell: tuple[str, str], own: Measured, baseline: Measured) -> HeadlineRow:
    """The row of a (model, setting); `baseline` is empty for the baseline itself."""
    differences = {}
    for name, key in (("entropy", "entropy"), ("perplexity", "perplexity"), ("result", "after")):
        if found := difference(own.get(key), baseline.get(key)):
            differences[name] = found
    return HeadlineRow(
        model=cell[0],
        setting=cell[1],
        entropy=sampled_entry(own.get("entropy"), ENTROPY.digits),
        perplexity=sampled_entry(own.get("perplexity"), PERPLEXITY.digits),
        before=sampled_entry(own.get("before"), 1),
        after=sampled_entry(own.get("after"), 1),
        differences=differences,
        by_seed={
            name: dict(zip(sampled.seeds, sampled.values.tolist(), strict=True))
            for name, sampled in own.items()
            if sampled is not None
        },
    )


def sampled_entry(sampled: Sampled | None, digits: int) -> Entry:
    """Returns a quantity's mean with its interval; an empty entry if it is not measured."""
    form = f"{{:.{digits}f}}"
    if sampled is None:
        return Entry(None, number_format=form)
    is_share = math.isfinite(sampled.bounds[1])
    errors = [float(np.nan_to_num(error[0])) for _, _, error in sampled.parts]
    error = math.sqrt(sum(error**2 for error in errors)) / max(1, len(errors))
    # A benchmark's item moves the mean over several benchmarks by its share of it.
    item = sampled.resolution * math.sqrt(max(1, len(sampled.parts)))
    mean = seed_mean(sampled.values.tolist(), Precision(error, sampled.resolution, item), is_share=is_share)
    return Entry(mean.value, mean.low, mean.high, mean.n, by_seed=mean.by_seed, number_format=form)


def difference(setting: Sampled | None, baseline: Sampled | None) -> Difference | None:
    """Returns the difference over the seeds that both have; None without any."""
    if setting is None or baseline is None:
        return None
    seeds = tuple(seed for seed in setting.seeds if seed in baseline.seeds)
    if not seeds:
        return None
    pair = [with_seeds(setting, seeds), with_seeds(baseline, seeds)]
    estimate = hierarchical_bootstrap(pair, _minus)
    return Difference(estimate, tuple((pair[0].values - pair[1].values).tolist()), seeds)


def _minus(values: list[Floats]) -> Floats:
    return values[0] - values[1]


def _with_words(rows: list[HeadlineRow]) -> list[HeadlineRow]:
    """The rows with a word for each difference, by tests that are corrected together."""
    keys = [(number, name) for number, row in enumerate(rows) for name in row.differences]
    worded = dict(zip(keys, with_words([rows[number].differences[name] for number, name in keys]), strict=True))
    return [
        replace(row, differences={name: worded[number, name] for name in row.differences})
        for number, row in enumerate(rows)
    ]


def with_words(differences: list[Difference]) -> list[Difference]:
    """Returns the differences with their words, by two-sided tests with Holm's correction over all of them."""
    p = [found.estimate.p for found in differences]
    corrected = holm(np.array([1.0 if value is None else value for value in p]))
    return [
        replace(found, word=_word(found.estimate.value, value), p=None if found.estimate.p is None else value)
        for found, value in zip(differences, corrected.tolist(), strict=True)
    ]


def _word(value: float, p: float) -> str:
    if not p < ALPHA:
        return NOT_TOLD_APART
    return HIGHER if value > 0 else LOWER


def _of_text(source: StudySource, setting: str, *, model: str, metric: str) -> Sampled | None:
    """A metric of held-out text after pre-training."""
    return quantity(source, setting, model, stage="pretrain", metric=metric)


def quantity(source: StudySource, setting: str, model: str, **options: str | int) -> Sampled | None:
    """Returns what the term value(SETTING, OPTIONS) of a claim is on a model; None if it is not measured."""
    try:
        return source.quantity(Term("value", setting, tuple(sorted(options.items()))), model)
    except NotMeasured:
        return None


Quantities = dict[tuple[str, str], Measured]
"""(model, setting) -> `before` and `after`."""


def _result(study: Study, source: StudySource) -> tuple[Measure, Quantities]:
    """What RL is judged by, and its values: the reward on held-out problems as RL samples them, else Avg@n."""
    if held_out := held_out_rewards(study):
        temperature = _temperature(study)
        at = "" if temperature is None else f"at temperature {temperature:g}"
        title = f"reward on held-out problems {at}".strip()
        quantities = {
            key: {"before": steps.get(0), "after": steps[max(steps)]} for key, steps in held_out.items() if steps
        }
        return Measure("result", title, at or "held-out reward", "percent", 1), quantities
    pairs = study.runs[["model", "objective"]].drop_duplicates().itertuples(index=False)
    averages: Quantities = {}
    for model, setting in pairs:
        before, after = (quantity(source, setting, model, metric="avg", at=at) for at in (0, "last"))
        averages[model, setting] = {"before": before, "after": after}
    return Measure("result", "average over the held-out benchmarks", "Avg@n", "percent", 1), averages


def _temperature(study: Study) -> float | None:
    """The temperature at which RL samples, if all its runs have the same."""
    runs = study.runs[study.runs["stage"] == "grpo"]["stage_run"]
    temperatures = {study.specs[run]["config"].get("grpo", {}).get("temperature") for run in runs}
    return temperatures.pop() if len(temperatures) == 1 else None


def held_out_rewards(study: Study) -> dict[tuple[str, str], dict[int, Sampled]]:
    """Returns RL's reward on held-out problems, in percent, of each (model, setting) at each step where it is measured.

    A seed with several RL seeds counts once, with their mean.
    """
    rewards: dict[tuple[str, str], dict[int, Sampled]] = {}
    for (model, setting, variant), curves in rl_curves(study).items():
        by_step: dict[int, dict[int, list[tuple[float, float]]]] = {}
        for curve in curves if variant == "" else ():
            for step, reward, deviation in zip(curve.steps.tolist(), curve.rewards, curve.deviations, strict=True):
                by_step.setdefault(int(step), {}).setdefault(curve.seed, []).append((reward, deviation))
        problems = curves[0].problems
        for step, by_seed in sorted(by_step.items()):
            # [2, seeds]: mean rewards, and their deviations over problems.
            means = 100 * np.array([np.mean(pairs, axis=0) for pairs in by_seed.values()]).T
            errors = means[1] / math.sqrt(max(1, problems - 1))
            parts = (("held-out problems", None, errors),)
            sampled = Sampled(tuple(by_seed), means[0], parts, 100 / problems, (0.0, 100.0))
            rewards.setdefault((model, setting), {})[step] = sampled
    return rewards
