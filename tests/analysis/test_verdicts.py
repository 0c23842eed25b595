"""Verdicts from numbers of known p-values: what supports, what contradicts, and what decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.claim_language import Term
from analysis.claims import Claim, Verdict, applicable, exit_code, judge, with_seeds
from analysis.statistics import Sampled, hierarchical_bootstrap
from analysis.study import NotMeasured

Z = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) / np.std([-1.0, -0.5, 0.0, 0.5, 1.0], ddof=1)
"""Five numbers with mean 0 and standard deviation 1."""


def with_p(p: float, sign: int = 1) -> list[float]:
    """Five differences whose paired t-test has this two-sided p-value."""
    return (sign * stats.t.isf(p / 2, 4) / np.sqrt(5) + Z).tolist()


class Numbers:
    """A source of numbers by setting and model, for the seeds 1, 2, ... unless others are given."""

    of = "a test"

    def __init__(
        self, values: Mapping[tuple[str, str], Sequence[float]], *, exact: bool = False, first_seed: int = 1
    ) -> None:
        self.values, self.exact, self.first_seed = values, exact, first_seed

    def models(self, term: Term) -> list[str]:
        return [model for objective, model in self.values if objective == term.objective]

    def quantity(self, term: Term, model: str) -> Sampled:
        if (term.objective, model) not in self.values:
            raise NotMeasured(f"{term.objective} of {model} is not measured")
        values = np.array(self.values[term.objective, model])
        first = self.first_seed if term.objective == "late" else 1
        return Sampled(tuple(range(first, first + len(values))), values, ())


def verdicts(source: Numbers, *holds: str | tuple[str, ...]) -> list[Verdict]:
    claims = [Claim(f"c{i}", "s", "", (text,) if isinstance(text, str) else text) for i, text in enumerate(holds)]
    return judge(claims, source)


def words(source: Numbers, *holds: str | tuple[str, ...]) -> list[str]:
    return [verdict.verdict for verdict in verdicts(source, *holds)]


def against_zero(**settings: list[float]) -> Numbers:
    return Numbers({(name, "m"): values for name, values in settings.items()} | {("zero", "m"): [0.0] * 5})


def above(name: str) -> str:
    return f'value("{name}") > value("zero")'


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
@pytest.mark.parametrize("effect", [0.2, 1.0])
def test_without_problems_the_bootstrap_is_the_paired_t_test(seeds: int, effect: float) -> None:
    """Its interval is Student's with the unbiased spread, wide for few seeds, and so is its p-value."""
    rng = np.random.default_rng(seeds)
    a, b = rng.normal(effect, 1, seeds), rng.normal(0, 1, seeds)
    quantities = [Sampled(tuple(range(seeds)), values, ()) for values in (a, b)]
    estimate = hierarchical_bootstrap(quantities, lambda v: v[0] - v[1], replicates=100_000)
    expected = stats.ttest_1samp(a - b, 0)
    interval = expected.confidence_interval(0.95)
    assert estimate.value == pytest.approx((a - b).mean())
    assert (estimate.low, estimate.high) == pytest.approx(
        (interval.low, interval.high), abs=0.03 * (interval.high - interval.low)
    )
    assert estimate.p == pytest.approx(expected.pvalue, rel=0.06)


def test_parts_are_averaged_and_seeds_drawn_once_for_all() -> None:
    """Four benchmarks with an error of 1 each, one seed: the mean has an error of 1 / 2."""
    one = Sampled((1,), np.array([3.0]), tuple((f"b{i}", None, np.array([1.0])) for i in range(4)))
    estimate = hierarchical_bootstrap([one], lambda v: v[0], replicates=100_000)
    assert estimate.high == pytest.approx(3 + 1.95996 / 2, abs=0.02)
    # Settings that differ by the same in every seed differ with certainty, however much the seeds do.
    seeds = np.array([1.0, 50.0, 9.0])
    pair = [Sampled((1, 2, 3), seeds + shift, ()) for shift in (0.0, 2.0)]
    estimate = hierarchical_bootstrap(pair, lambda v: v[1] - v[0])
    assert (estimate.value, estimate.low, estimate.p) == (2.0, None, 1.0)


@pytest.mark.parametrize("unit", [1.0, 0.001, 1000.0])
def test_one_claim_is_supported_below_five_percent_on_its_side(unit: float) -> None:
    """Its two directions are corrected together, so the two-sided p-value counts, whatever the unit."""
    p_values = {"low": (0.04, 1), "high": (0.06, 1), "opposite": (0.04, -1), "wrong": (0.06, -1)}
    source = against_zero(**{name: [unit * d for d in with_p(*p)] for name, p in p_values.items()})
    outcomes = {name: words(source, above(name))[0] for name in ("low", "high", "opposite", "wrong")}
    assert outcomes == {"low": "supported", "high": "undecided", "opposite": "contradicted", "wrong": "undecided"}


def test_a_p_value_that_is_just_the_level_decides_nothing() -> None:
    """Significant is below the level, in both directions."""
    source = against_zero(up=with_p(0.01), down=with_p(0.01, -1))
    for name, decided in (("up", "supported"), ("down", "contradicted")):
        claim = Claim(name, "s", "", (above(name),))
        (verdict,) = judge([claim], source)
        assert verdict.verdict == decided
        assert verdict.p is not None
        assert judge([claim], source, alpha=verdict.p)[0].verdict == "undecided"


def test_claims_of_a_family_are_corrected_together() -> None:
    """Six claims are twelve hypotheses: two-sided p-values of 0.02 are 0.01 each way, and 0.12 corrected."""
    source = against_zero(a=with_p(0.02), **{f"n{i}": Z.tolist() for i in range(5)})
    assert words(source, above("a")) == ["supported"]
    assert words(source, above("a"), *(above(f"n{i}") for i in range(5))) == ["undecided"] * 6
    (first, *_) = verdicts(source, above("a"), *(above(f"n{i}") for i in range(5)))
    assert first.p == pytest.approx(0.12, rel=0.2)
    strong = against_zero(a=with_p(0.004), **{f"n{i}": Z.tolist() for i in range(5)})
    assert words(strong, above("a"), *(above(f"n{i}") for i in range(5)))[0] == "supported"


def test_families_are_corrected_apart() -> None:
    source = against_zero(a=with_p(0.02), **{f"n{i}": Z.tolist() for i in range(5)})
    others = [Claim(f"n{i}", "s", "", (above(f"n{i}"),), "another") for i in range(5)]
    assert judge([Claim("a", "s", "", (above("a"),)), *others], source)[0].verdict == "supported"


@pytest.mark.parametrize("missing", ["nothing", "of another model"])
def test_a_claim_with_a_comparison_without_a_number_is_undecided(missing: str) -> None:
    """However strong its other comparisons are."""
    strong = with_p(1e-5)
    source = (
        against_zero(a=strong)
        if missing == "nothing"
        else Numbers({("a", "m"): strong, ("zero", "m"): [0.0] * 5, ("b", "other"): strong})
    )
    assert words(source, above("a")) == ["supported"]
    assert words(source, (above("a"), above("b"))) == ["undecided"]
    assert words(source, above("b")) == ["undecided"]
    assert verdicts(source, above("b"))[0].p is None


def test_a_claim_without_comparisons_is_undecided() -> None:
    assert words(against_zero(a=with_p(1e-5)), (), above("a")) == ["undecided", "supported"]
    assert words(Numbers({}, exact=True), ()) == ["undecided"]


def test_one_seed_in_a_comparison_supports_nothing() -> None:
    source = Numbers({("a", "m"): with_p(1e-5), ("zero", "m"): [0.0] * 5, ("b", "m"): [9.0]})
    assert words(source, (above("a"), above("b"))) == ["undecided"]


def test_all_comparisons_must_hold_and_one_that_is_opposite_is_enough() -> None:
    source = against_zero(
        a=with_p(1e-4), b=with_p(1e-4), c=with_p(0.5), wrong=with_p(1e-4, -1), slight=with_p(0.04, -1)
    )
    assert words(source, (above("a"), above("b"))) == ["supported"]
    assert words(source, (above("a"), above("c"))) == ["undecided"]
    assert words(source, (above("a"), above("wrong"))) == ["contradicted"]
    # The smallest of four opposite p-values is multiplied by four: 0.02 each way, 0.08, and 0.16 corrected.
    assert words(source, above("slight")) == ["contradicted"]
    assert words(source, (above("a"), above("b"), above("c"), above("slight"))) == ["undecided"]


def test_seeds_are_paired_and_those_of_one_side_left_out() -> None:
    """The seeds 1 to 5 against 2 to 6: four differences, each 1."""
    source = Numbers({("a", "m"): [1, 2, 30, 4, 50], ("late", "m"): [1, 29, 3, 49, 7]}, first_seed=2)
    (verdict,) = verdicts(source, 'value("a") > value("late")')
    (comparison,) = verdict.comparisons
    assert comparison.estimate is not None
    assert (comparison.estimate.value, comparison.estimate.n) == (1.0, 4)


def test_a_comparison_of_other_seeds_is_missing_and_says_why() -> None:
    source = Numbers({("a", "m"): [1, 2], ("late", "m"): [1, 2]}, first_seed=7)
    (verdict,) = verdicts(source, 'value("a") > value("late")')
    (comparison,) = verdict.comparisons
    assert (comparison.direction, comparison.estimate, verdict.p) == ("missing", None, None)
    assert comparison.evidence == "missing: no seed has all of its terms"


def test_a_seed_that_the_middle_one_of_three_terms_lacks_is_left_out() -> None:
    """The seeds 1 to 5, 2 to 6 and 1 to 5: two of the first three cancel, and the differences are those of the last."""
    source = Numbers(
        {("a", "m"): [9, 2, 3, 4, 5], ("late", "m"): [2, 3, 4, 5, 6], ("b", "m"): [7, 1, 2, 3, 4]}, first_seed=2
    )
    (verdict,) = verdicts(source, 'value("a") - value("late") > -value("b")')
    (comparison,) = verdict.comparisons
    assert comparison.estimate is not None
    assert (comparison.estimate.value, comparison.estimate.n) == (2.5, 4)


def test_a_claim_is_judged_for_each_model_that_has_all_of_its_terms() -> None:
    values = {("a", m): with_p(1e-4) for m in ("s", "m", "l")} | {("b", m): [0.0] * 5 for m in ("m", "l", "xl")}
    (verdict,) = verdicts(Numbers(values), 'value("a") > value("b")')
    assert [comparison.model for comparison in verdict.comparisons] == ["m", "l"]


def test_the_largest_model_is_the_last_and_the_smaller_one_the_first() -> None:
    values = {("a", m): [v + z for z in Z] for m, v in (("s", 1.0), ("m", 5.0), ("l", 20.0))}
    (verdict,) = verdicts(Numbers(values), 'value("a", model="largest") > value("a", model="smaller")')
    (comparison,) = verdict.comparisons
    assert comparison.estimate is not None
    assert comparison.estimate.value == pytest.approx(19)
    assert comparison.model == "l, s"
    single = Numbers({("a", "m"): [1.0] * 5})
    assert words(single, 'value("a", model="largest") > value("a", model="smaller")') == ["undecided"]


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        ((above("up"),), "supported"),
        ((above("down"),), "contradicted"),
        ((above("same"),), "undecided"),
        ((above("up"), above("same")), "undecided"),
        ((above("up"), above("absent")), "undecided"),
        ((above("up"), above("down")), "contradicted"),
    ],
)
def test_numbers_without_errors_are_judged_by_their_order(holds: tuple[str, ...], expected: str) -> None:
    values = {("up", "m"): [2.0], ("down", "m"): [0.5], ("same", "m"): [1.0], ("zero", "m"): [1.0]}
    assert words(Numbers(values, exact=True), holds) == [expected]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], 0),
        (["supported"], 0),
        (["supported", "undecided"], 4),
        (["undecided"], 4),
        (["supported", "contradicted"], 3),
        (["contradicted", "undecided", "supported"], 3),
    ],
)
def test_exit_codes(kinds: list[str], expected: int) -> None:
    claim = Claim("c", "s", "", ())
    assert exit_code([Verdict(claim, "o", kind, None) for kind in kinds]) == expected


def test_the_arithmetic_of_a_claim() -> None:
    values = {("a", "m"): [3.0], ("b", "m"): [8.0], ("c", "m"): [float(np.exp(2))]}
    (verdict,) = verdicts(
        Numbers(values, exact=True), 'value("a") * 2 - value("b") / 4 > -log(value("c")) + (0.5 - value("a"))'
    )
    (comparison,) = verdict.comparisons
    assert comparison.estimate is not None
    assert comparison.estimate.value == pytest.approx((6 - 2) - (-2 + 0.5 - 3))
    assert (comparison.direction, comparison.greater) == ("as claimed", True)


def test_a_chain_is_a_comparison_of_each_pair_of_neighbours() -> None:
    values = {("a", "m"): [1.0], ("b", "m"): [4.0], ("c", "m"): [2.0]}
    (verdict,) = verdicts(Numbers(values, exact=True), 'value("a") < value("b") < value("c")')
    assert [c.estimate and c.estimate.value for c in verdict.comparisons] == [-3.0, 2.0]
    assert [c.greater for c in verdict.comparisons] == [False, False]
    assert verdict.verdict == "contradicted"


class Coarse(Numbers):
    """Numbers that one item moves by 3."""

    def quantity(self, term: Term, model: str) -> Sampled:
        return replace(super().quantity(term, model), resolution=3.0)


def test_more_seeds_are_only_asked_for_where_they_are_more() -> None:
    """Equal differences that one item could make: what is known of seeds says that two are enough."""
    values = {("a", "m"): [1.0, 1.01, 0.99, 1.0, 1.0], ("zero", "m"): [0.0] * 5}
    (verdict,) = verdicts(Coarse(values), above("a"))
    assert verdict.comparisons[0].seeds_needed == 2
    assert "80 % power" not in verdict.comparisons[0].evidence
    (verdict,) = verdicts(against_zero(a=with_p(0.2)), above("a"))
    needed = verdict.comparisons[0].seeds_needed
    assert needed is not None
    assert f"needs about {needed} seeds (80 % power), {needed - 5} more" in verdict.comparisons[0].evidence


def test_the_errors_of_chosen_seeds_are_theirs() -> None:
    matrix, errors = np.arange(6.0).reshape(3, 2), np.array([0.1, 0.2, 0.3])
    whole = Sampled((1, 2, 3), np.array([10.0, 20.0, 30.0]), (("a", matrix, errors), ("b", None, 2 * errors)))
    chosen = with_seeds(whole, [3, 1])
    assert (chosen.seeds, chosen.values.tolist()) == ((3, 1), [30.0, 10.0])
    (first, second) = chosen.parts
    assert first[1] is not None
    assert (first[1].tolist(), first[2].tolist()) == ([[4.0, 5.0], [0.0, 1.0]], [0.3, 0.1])
    assert (second[1], second[2].tolist()) == (None, [0.6, 0.2])


def test_a_claim_of_a_named_family_is_left_out_only_if_nothing_of_it_is_measured() -> None:
    source = against_zero(a=with_p(0.02))
    half, none = (Claim(name, "s", "", holds, "own") for name, holds in (
        ("half", (above("absent"), above("a"))), ("none", (above("absent"),))
    ))  # fmt: skip
    plain = Claim("plain", "s", "", (above("absent"),))
    assert applicable([half, none, plain], source) == [half, plain]
