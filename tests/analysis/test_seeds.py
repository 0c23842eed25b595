"""How many seeds claims need: power against simulation, and false alarms under the rules of looking again."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis.claims import LOOK_ALPHA, LOOKS, Claim, Comparison, Verdict
from analysis.reproduce import Options, judged
from analysis.seeds import Need, claim_power, needs, power_of, report, seeds_lines, smallest
from analysis.statistics import ALPHA, Estimate, holm
from analysis.study import read_study
from pipelines.errors import UserError
from tests.analysis.test_claims import ORDERED, numbers

STUDIES = 4000
CLAIMS = 3


def estimate_of(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), None, None, float(stats.ttest_1samp(values, 0).pvalue), len(values))


def test_power_is_that_of_simulated_studies() -> None:
    rng = np.random.default_rng(0)
    # Six seeds whose difference is exactly 0.8 standard deviations.
    first = rng.normal(size=6)
    first = (first - first.mean()) / first.std(ddof=1) + 0.8
    for count, level in ((8, 0.025), (12, 0.004)):
        p = stats.ttest_1samp(rng.normal(0.8, 1, (20_000, count)), 0, axis=1, alternative="greater").pvalue
        expected = (p < level).mean()
        assert power_of(count, estimate_of(first), level=level) == pytest.approx(expected, abs=0.015)


def test_a_claim_needs_all_of_its_comparisons_and_is_contradicted_by_one() -> None:
    def comparison(t: float, direction: str) -> Comparison:
        p = float(2 * stats.t.sf(abs(t), 5))
        return Comparison("", "nano", direction, "", estimate=Estimate(t, None, None, p, 6))

    strong, weak = comparison(6.0, "as claimed"), comparison(1.5, "as claimed")
    assert strong.estimate is not None
    assert weak.estimate is not None
    both = claim_power(20, [strong, weak], level=0.01)
    assert both == pytest.approx(power_of(20, strong.estimate, level=0.01) * power_of(20, weak.estimate, level=0.01))
    wrong = comparison(-6.0, "the other way")
    assert claim_power(20, [weak, wrong], level=0.01) > 0.99
    needed = smallest(range(2, 500), [weak], level=0.025)
    assert needed is not None
    assert claim_power(needed, [weak], level=0.025) >= 0.8 > claim_power(needed - 1, [weak], level=0.025)


def test_the_next_look_that_decides_is_one_of_the_list_at_its_own_level() -> None:
    """t = 2.2 with six seeds, one claim: the smallest n in (8, 12, ...) with a power of 0.8 at 0.05 / 6 / 2."""
    p = float(2 * stats.t.sf(2.2, 5))
    comparison = Comparison("", "nano", "as claimed", "", estimate=Estimate(2.2, None, None, p, 6))
    (need,) = needs([Verdict(Claim("c", "s", "", ("x",)), "this study", "undecided", 0.3, (comparison,))])
    effect = 2.2 / np.sqrt(6)

    def power(n: int, level: float) -> float:
        return float(stats.nct.sf(stats.t.isf(level, n - 1), n - 1, effect * np.sqrt(n)))

    assert (need.seeds, need.reason) == (6, "")
    assert need.looking == next(n for n in (8, 12, 20, 32, 50) if power(n, 0.05 / 6 / 2) >= 0.8)
    assert need.new == next(n for n in range(2, 1001) if power(n, 0.05 / 2) >= 0.8)


def false_alarms(*, alpha: float, looks: tuple[int, ...], new_only: bool = False) -> float:
    """The share of simulated studies without any effect that have a verdict, with looks wherever power says so."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(STUDIES):
        # Paired differences of correlated claims, all of mean 0: [claims, seeds].
        noise = rng.normal(size=(CLAIMS, looks[-1] if not new_only else 200))
        noise += rng.normal(size=noise.shape[1])
        used, begin = looks[0], 0
        while True:
            values = noise[:, begin:used]
            estimates = [estimate_of(row) for row in values]
            one_sided = [[e.p / 2 if (e.value > 0) == up else 1.0 for up in (True, False)] for e in estimates if e.p]
            if begin or not new_only:  # the first seeds are not judged when only new ones are
                if (holm(np.array(one_sided).ravel()) < alpha).any():
                    alarms += 1
                    break
                if new_only:
                    break
            # As many seeds as the claim needs that is nearest to a verdict.
            level = alpha / (2 * CLAIMS)
            counts = range(2, 101) if new_only else [n for n in looks if n > used]
            wanted = [
                smallest(counts, [Comparison("", "", "as claimed", "", estimate=e)], level=level) for e in estimates
            ]
            reached = [count for count in wanted if count]
            if not reached and (new_only or used == looks[-1]):
                break
            if new_only:
                begin, used = used, used + min(reached)
            else:
                used = min(reached) if reached else looks[-1]
    return alarms / STUDIES


@pytest.mark.ci_only
def test_false_alarms_stay_at_their_level_under_the_rules_of_looking() -> None:
    """At most 5 % of studies without any effect have a verdict, with the chance that 4,000 simulations leave."""
    bound = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / STUDIES)
    assert false_alarms(alpha=LOOK_ALPHA, looks=LOOKS) <= bound
    assert false_alarms(alpha=ALPHA, looks=(5,), new_only=True) <= bound
    # What the rules are for: looking again and again at the whole level has more.
    assert false_alarms(alpha=ALPHA, looks=LOOKS) > bound


def test_undecided_claims_have_numbers_and_commands(make_store: Callable) -> None:
    study = read_study(
        *make_store(
            ["objective=ce,tail_penalty,precision,diversity", "seed=1,2,3"],
            number=numbers({"tail_penalty": 0.003}, ORDERED),
        )
    )
    verdicts, _ = judged(Options(), study)
    found = {need.verdict.claim.name: need for need in needs(verdicts)}
    assert "beta-orders-entropy" not in found  # decided
    tail = found["tail-penalty-after-rl"]
    assert tail.seeds == 3
    assert tail.new is not None
    assert tail.reason == ""
    assert "only model" in found["precision-grows-with-size"].reason
    text = "\n".join(report(list(found.values()), Options(scale="nano", sweep="nano"), taken=3))
    most = max(need.new for need in found.values() if need.new)
    assert f"shaping-run -m +sweep=nano 'seed=range(4,{4 + most})'" in text
    assert "reproduce-paper-tables --claims seeds=[4," in text
    assert f"about {tail.new} new seeds by themselves" in text
    assert report([], Options(), taken=3) == ["No claim is undecided."]


def test_between_two_looks_nothing_is_judged(make_store: Callable) -> None:
    study = read_study(*make_store(["objective=ce,precision", "seed=1,2,3"]))
    with pytest.raises(UserError, match="looks=true: the study has 3 seeds, and is judged at 5, 8, 12, 20, 32, 50"):
        judged(Options(looks=True), study)


def compared(t: float, seeds: int, direction: str = "as claimed") -> Comparison:
    p = float(2 * stats.t.sf(abs(t), seeds - 1))
    return Comparison("", "nano", direction, "", estimate=Estimate(t, None, None, p, seeds))


def undecided(name: str, comparison: Comparison, family: str = "") -> Verdict:
    return Verdict(Claim(name, "s", "", ("x",), family), "this study", "undecided", 0.3, (comparison,))


def test_only_claims_of_the_same_family_are_corrected_together() -> None:
    weak = compared(1.8, 6)
    (only,) = needs([undecided("a", weak)])
    first, second, third = needs([undecided("a", weak), undecided("b", weak, "own"), undecided("c", weak, "own")])
    assert first == only
    assert second.new == third.new
    assert only.new is not None
    assert second.new is not None
    assert second.new > only.new


def test_a_look_is_at_more_seeds_than_there_are() -> None:
    """A difference so large that any number of seeds would show it, at a look that was taken already."""
    for seeds, look in ((4, 5), (5, 8), (8, 12), (50, None)):
        (need,) = needs([undecided("a", compared(60.0, seeds))])
        assert need.looking == look


def test_one_of_several_comparisons_contradicts_at_its_share_of_the_level() -> None:
    weak, wrong = compared(1.0, 6), compared(-2.5, 6, "the other way")
    assert wrong.estimate is not None
    power = claim_power(9, [weak, wrong, weak], level=0.03)
    assert power == pytest.approx(power_of(9, wrong.estimate, level=0.01))
    assert power < power_of(9, wrong.estimate, level=0.03) - 0.05
    assert claim_power(9, [weak, Comparison("", "nano", "missing", "")], level=0.03) == 0.0


def test_the_commands_are_for_all_new_seeds_and_for_the_next_look() -> None:
    soon, late = undecided("soon", compared(4.0, 6)), undecided("late", compared(2.2, 6))
    found = [Need(soon, 6, 4, 8), Need(late, 6, 11, 20), Need(late, 6, None, None, "its difference is too small")]
    lines = report(found, Options(scale="micro", sweep="micro"), taken=9)
    assert "  shaping-run -m +sweep=micro 'seed=range(10,21)'" in lines  # as many as the claim that needs most
    assert f"  reproduce-paper-tables --claims scale=micro seeds=[{','.join(map(str, range(10, 21)))}]" in lines
    assert "  shaping-run -m +sweep=micro 'seed=range(1,9)'" in lines
    assert "  reproduce-paper-tables --claims scale=micro looks=true" in lines
    assert "  about 4 new seeds by themselves, or the look with 8 seeds (80 % power)" in lines
    assert "  no number of seeds can be given: its difference is too small" in lines


def test_new_seeds_follow_the_largest_that_the_store_has(make_store: Callable) -> None:
    _, store = make_store(
        ["objective=ce,tail_penalty,precision,diversity", "seed=3,5,7"],
        number=numbers({"tail_penalty": 0.006}, ORDERED),
    )
    text = "\n".join(seeds_lines("nano", str(store.root)))
    assert "undecided with 3 seeds" in text
    assert "'seed=range(8," in text
    assert "seeds=[8," in text
