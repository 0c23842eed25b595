"""The number that decides a claim: which comparison it is from, its unit, and when there is no interval."""

from dataclasses import replace

import pytest

from analysis.claim_words import corrected_p, decision, in_words
from analysis.claims import Claim, Comparison, Verdict
from analysis.statistics import Estimate

ENTROPY = 'value("precision", stage="pretrain", metric="entropy") < value("ce", stage="pretrain", metric="entropy")'
RATIO = 'value("a", stage="pretrain", metric="perplexity") / value("b", stage="pretrain", metric="perplexity")'


def comparison(text: str, *numbers: float | None, greater: bool = False, p: float | None = 0.01) -> Comparison:
    value, low, high = numbers
    assert value is not None
    direction = "as claimed" if (value > 0) == greater else "the other way"
    return Comparison(text, "nano", direction, "", greater, Estimate(value, low, high, p, 5))


@pytest.mark.parametrize(
    ("text", "numbers", "expected"),
    [
        (ENTROPY, (-0.08, -0.11, -0.04),
         ("precision < ce", "entropy after pre-training", "−0.08 nats", "[−0.11, −0.04]")),
        (ENTROPY, (-0.08, None, None), ("precision < ce", "entropy after pre-training", "−0.080 nats", "no interval")),
        (ENTROPY, (0.5, 0.5, 0.5), ("precision < ce", "entropy after pre-training", "+0.50 nats", "no interval")),
        ('value("a") > value("b")', (12.0, 10.0, 14.0), ("a > b", "Pass@k after RL", "+12.0 points", "[+10.0, +14.0]")),
        ('value("a", at="first", metric="avg", benchmark="Chain-5") > value("b", at="first", metric="avg", '
         'benchmark="Chain-5")', (1.0, -1.0, 3.0),
         ("a > b", "Avg@n of Chain-5 before RL", "+1.00 points", "[−1.00, +3.00]")),
        # with a constant, the side that is measured is shown: -0.05 - log(a / b) = -0.039 is a ratio of 1 - 1.1 %
        (f"-0.05 < log({RATIO})", (-0.039, -0.064, -0.014),
         ("−0.05 < log(a / b)", "perplexity after pre-training", "−1.09 %", "[−3.54, +1.41]")),
        (f"log({RATIO}) < 0.05", (-0.039, -0.064, -0.014),
         ("log(a / b) < 0.05", "perplexity after pre-training", "+1.11 %", "[−1.39, +3.67]")),
        ('rl("a", "entropy_fall") > rl("b", "entropy_fall")', (0.1, 0.05, 0.15),
         ("a > b", "share of entropy lost in RL", "+0.10", "[+0.05, +0.15]")),
        ('value("a", model="largest") - value("b", model="largest") > value("a", model="smaller") - value("b", '
         'model="smaller")', (1.0, 0.5, 1.5),
         ("a (largest) − b (largest) > a (smaller) − b (smaller)", "Pass@k after RL",
          "+1.00 points", "[+0.50, +1.50]")),
    ],
)  # fmt: skip
def test_a_comparison_in_words(text: str, numbers: tuple, expected: tuple[str, str, str, str]) -> None:
    words = in_words(comparison(text, *numbers))
    assert (words.short, words.quantity, words.number, words.interval) == expected


def test_the_weakest_decides_a_supported_claim_and_the_strongest_opposition_a_contradicted_one() -> None:
    claim = Claim("name", "Statement.", "", ())
    strong = comparison('value("a") < value("b")', -3.0, -4.0, -2.0, p=0.001)
    weak = comparison('value("c") < value("d")', -1.0, -2.0, -0.1, p=0.03)
    wrong = comparison('value("e") < value("f")', 2.0, 1.0, 3.0, p=0.002)
    missing = Comparison('value("g") < value("h")', "", "missing", "missing: nothing")
    for verdict, comparisons, deciding in [
        ("supported", (strong, weak), weak),
        ("contradicted", (strong, wrong, missing), wrong),
        ("undecided", (strong, wrong), wrong),
        ("undecided", (strong, missing, weak), weak),  # a measured one comes before a missing one
        ("undecided", (missing,), missing),
    ]:
        judged = Verdict(claim, "this study", verdict, 0.01, comparisons)
        assert decision(judged).comparison is deciding
        assert decision(replace(judged, comparisons=comparisons[::-1])).comparison is deciding


@pytest.mark.parametrize(
    ("p", "words"), [(None, ""), (1.0, "p = 1"), (0.996, "p = 1"), (0.994, "p = 0.99"), (0.0123, "p = 0.012")]
)
def test_the_p_value_of_a_verdict_in_words(p: float | None, words: str) -> None:
    assert corrected_p(Verdict(Claim("name", "Statement.", "", ()), "this study", "undecided", p)) == words
