"""How many seeds a study's undecided claims need, and what may be said after looking more than once.

`shaping-sweeps seeds` prints `seeds_lines`. The number of seeds of a claim is that with which its test, at the level
that Holm's correction asks for at first, succeeds with 80 % power if differences and variances are as measured so far.

A level of 5 % holds for seeds that were fixed before looking. Who looks, and adds seeds where nothing is decided, has
several chances of a false alarm. There are two ways to pay. New seeds only: a number is chosen now, and the new seeds
are judged by themselves, once, at the whole level. Or all seeds, at a few fixed counts (`LOOKS`), each at a sixth of
the level: whichever of these looks are taken, and whatever that depends on, the chance of any wrong verdict is at most
5 % (Bonferroni over the looks). tests/analysis/test_seeds.py simulates both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.claims import (
    AS_CLAIMED,
    LOOK_ALPHA,
    LOOKS,
    MISSING,
    OPPOSITE,
    UNDECIDED,
    Comparison,
    Verdict,
)
from analysis.reproduce import Options, command_of, judged, read_source
from analysis.statistics import ALPHA, Estimate

POWER = 0.8
MOST_SEEDS = 1000
"""Beyond which a number of seeds is no plan."""


@dataclass(frozen=True)
class Need:
    """What an undecided claim needs."""

    verdict: Verdict
    seeds: int
    """Seeds that its comparisons have."""
    new: int | None
    """New seeds that probably decide it by themselves, judged once; None if no number does."""
    looking: int | None
    """The look at which it is probably decided, by the levels of `LOOKS`; None if none does."""
    reason: str = ""
    """Why no number of seeds decides it."""


def needs(verdicts: Sequence[Verdict]) -> list[Need]:
    """Returns what every undecided claim needs."""
    found = []
    for verdict in verdicts:
        if verdict.verdict != UNDECIDED:
            continue
        members = sum(other.claim.family == verdict.claim.family for other in verdicts)
        found.append(_need(verdict, hypotheses=2 * members))
    return found


def _need(verdict: Verdict, *, hypotheses: int) -> Need:
    comparisons = verdict.comparisons
    seeds = max((c.estimate.n for c in comparisons if c.estimate), default=0)
    if missing := [c for c in comparisons if c.direction == MISSING]:
        return Need(verdict, seeds, None, None, missing[0].evidence.removeprefix("missing: "))
    if seeds < 2:
        return Need(verdict, seeds, None, None, "one seed has no variance; two or more have one")
    new = smallest(range(2, MOST_SEEDS + 1), comparisons, level=ALPHA / hypotheses)
    looking = smallest([n for n in LOOKS if n > seeds], comparisons, level=LOOK_ALPHA / hypotheses)
    reason = "" if new else f"its difference is too small for {MOST_SEEDS} seeds"
    return Need(verdict, seeds, new, looking, reason)


def smallest(counts: Sequence[int], comparisons: Sequence[Comparison], *, level: float) -> int | None:
    """Returns the first number of seeds that gives the claim's test 80 % power at a one-sided `level`."""
    for count in counts:
        if claim_power(count, comparisons, level=level) >= POWER:
            return count
    return None


def claim_power(count: int, comparisons: Sequence[Comparison], *, level: float) -> float:
    """Returns the chance that a claim is decided with `count` seeds, if effects are those measured.

    A claim with a comparison that points the other way is contradicted by any such; otherwise all must be significant,
    which are taken as independent.
    """
    opposed = [c for c in comparisons if c.direction == OPPOSITE and c.estimate]
    if opposed:
        share = level / len(comparisons)
        return max(power_of(count, c.estimate, level=share) for c in opposed if c.estimate)
    claimed = [c for c in comparisons if c.direction == AS_CLAIMED and c.estimate]
    if len(claimed) < len(comparisons):
        return 0.0
    return math.prod(power_of(count, c.estimate, level=level) for c in claimed if c.estimate)


def power_of(count: int, estimate: Estimate, *, level: float) -> float:
    """Returns the power of a one-sided paired t-test with `count` seeds, for the estimate's difference and variance."""
    if estimate.p is None or estimate.value == 0 or estimate.n < 2:
        return 0.0
    # The p-value is that of a t statistic, from which the standard deviation of a seed's difference follows.
    statistic = float(special.stdtrit(estimate.n - 1, 1 - max(estimate.p, 1e-300) / 2))
    effect = statistic / math.sqrt(estimate.n)
    critical = float(special.stdtrit(count - 1, 1 - level))
    power = 1 - float(special.nctdtr(count - 1, effect * math.sqrt(count), critical))
    return power if np.isfinite(power) else 1.0  # scipy's tail of an enormous effect


def seeds_lines(scale: str, store: str) -> list[str]:
    """Returns the lines of `shaping-sweeps seeds SCALE`. Raises `UserError` if there is no such sweep or store."""
    options = Options(scale=scale, sweep=scale, store=store)
    source = read_source(options)
    verdicts, _ = judged(options, source.study)
    return report(needs(verdicts), options, taken=max(source.seeds, default=0))


def report(found: Sequence[Need], options: Options, *, taken: int) -> list[str]:
    """Returns what each undecided claim needs and the commands; seeds up to `taken` exist."""
    if not found:
        return ["No claim is undecided."]
    lines = []
    for need in found:
        count = f"{need.seeds} seed" + ("" if need.seeds == 1 else "s")
        lines.append(f"{need.verdict.claim.name}: undecided with {count}")
        if need.reason:
            lines.append(f"  no number of seeds can be given: {need.reason}")
            continue
        look = "none of the looks" if need.looking is None else f"the look with {need.looking} seeds"
        lines.append(f"  about {need.new} new seeds by themselves, or {look} (80 % power)")
    new = [need.new for need in found if need.new is not None]
    looking = [need.looking for need in found if need.looking is not None]
    scale = "" if options.scale == "nano" else f" scale={options.scale}"
    if new:
        last = taken + max(new)
        seeds = ",".join(map(str, range(taken + 1, last + 1)))
        lines += [
            "New seeds, fixed now and judged once by themselves, which keeps the level of 5 %:",
            f"  {command_of(options, f'range({taken + 1},{last + 1})')}",
            f"  reproduce-paper-tables --claims{scale} seeds=[{seeds}]",
        ]
    if looking:
        lines += [
            f"All seeds, judged at {', '.join(map(str, LOOKS))} seeds only, each time at {100 * LOOK_ALPHA:.2g} %:",
            f"  {command_of(options, f'range(1,{min(looking) + 1})')}",
            f"  reproduce-paper-tables --claims{scale} looks=true",
        ]
    return lines
