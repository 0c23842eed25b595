"""The headline in words: one sentence of result, what would decide it, and what hides differences.

Differences are hidden by saturation, by intervals that are wider than they are, and by one seed that went astray.
"""

from collections.abc import Sequence
from statistics import median

from analysis.headline import (
    ENOUGH_SEEDS,
    ENTROPY,
    HIGHER,
    LOWER,
    NOT_TOLD_APART,
    PERPLEXITY,
    Difference,
    Headline,
    HeadlineRow,
    Measure,
)
from analysis.seed_spread import odd_seeds
from analysis.statistics import Estimate
from analysis.tables import Entry

CEILING = 95.0
"""Percent above which a result is called saturated."""
CLOSE = 0.2
"""Share by which perplexities may differ and still be called close."""
NAMED = 3
"""Most settings that a sentence names."""
MANY_SEEDS = 200
"""Beyond which a forecast of seeds is no plan, and is not given as a number."""
POWER = "paired t-test at 5 %, 80 % power, before correction"
"""What forecasts of seeds are of."""
PERPLEXITY_FORMAT = f"{{:.{PERPLEXITY.digits}f}}"


def result_sentence(headline: Headline) -> str:
    """Returns what the study shows in one sentence."""
    rows = [row for row in headline.rows if row.entropy.value is not None or row.after.value is not None]
    if not rows:
        return "Nothing is measured yet."
    count = max(max(row.entropy.n, row.after.n) for row in rows)
    parts = [_range_part(headline, rows) if count == 1 else _told_apart_part(headline, rows)]
    parts[0] += _perplexities(rows)
    of_rl = max(row.after.n for row in rows)
    if any(row.after.value is not None for row in rows):
        # Pre-training may have more seeds than RL.
        own = "" if of_rl == count else f"{'with one seed' if of_rl == 1 else f'over {of_rl} seeds'}, "
        parts.append(own + (_rl_range(headline, rows) if of_rl == 1 else _rl_part(headline, rows)))
    beginning = "With one seed" if count == 1 else f"Over {count} seeds"
    sentence = f"{beginning}, {'; after RL, '.join(parts)}"
    return sentence + ("; one seed decides nothing." if 1 in (count, of_rl) else ".")


def _range_part(headline: Headline, rows: Sequence[HeadlineRow]) -> str:
    """The lowest and highest entropy."""
    measured = sorted((row for row in rows if row.entropy.value is not None), key=lambda row: row.entropy.value or 0)
    if not measured:
        return "entropy is not measured"
    low, high = measured[0], measured[-1]
    if low is high:
        return f"{headline.name(low)} has an entropy of {_number(low.entropy)} nats after pre-training"
    return (
        f"entropy after pre-training goes from {_number(low.entropy)} nats ({headline.name(low)}) to "
        f"{_number(high.entropy)} ({headline.name(high)})"
    )


def _rl_range(headline: Headline, rows: Sequence[HeadlineRow]) -> str:
    measured = sorted((row for row in rows if row.after.value is not None), key=lambda row: row.after.value or 0)
    low, high = measured[0], measured[-1]
    if low is high:
        return f"the {headline.result.title} is {_number(low.after)} %"
    return (
        f"the {headline.result.title} goes from {_number(low.after)} % ({headline.name(low)}) to "
        f"{_number(high.after)} % ({headline.name(high)})"
    )


def _told_apart_part(headline: Headline, rows: Sequence[HeadlineRow]) -> str:
    """Which settings have another entropy than cross-entropy."""
    told = _told_apart(rows, "entropy")
    if not any("entropy" in row.differences for row in rows):
        return _range_part(headline, rows)
    if not told:
        return "no setting’s entropy after pre-training can be told apart from cross-entropy’s"
    return f"entropy after pre-training is {_listing(headline, told, ENTROPY)}"


def _rl_part(headline: Headline, rows: Sequence[HeadlineRow]) -> str:
    told = _told_apart(rows, "result")
    if not any("result" in row.differences for row in rows):
        return _rl_range(headline, rows)
    if not told:
        return f"no setting’s {headline.result.title} can be told apart from cross-entropy’s"
    listing = _listing(headline, told, headline.result)
    return f"the {headline.result.title} is {listing}"


def _told_apart(rows: Sequence[HeadlineRow], name: str) -> list[HeadlineRow]:
    """The rows that differ from their baseline, the strongest first."""
    told = [row for row in rows if name in row.differences and row.differences[name].word != NOT_TOLD_APART]
    return sorted(told, key=lambda row: -abs(row.differences[name].estimate.value))


def _listing(headline: Headline, rows: Sequence[HeadlineRow], measure: Measure) -> str:
    """`lower than cross-entropy’s with precision (-0.08 nats [-0.11, -0.04]) and ..., and higher with ...`"""
    phrases: list[str] = []
    for word in (LOWER, HIGHER):
        of_word = [row for row in rows if row.differences[measure.name].word == word]
        if of_word:
            # The strongest has its number; the others are only named.
            first, *others = (headline.name(row) for row in of_word)
            names = [
                f"{first} ({difference_text(of_word[0].differences[measure.name], measure)})",
                *others[: NAMED - 1],
            ]
            if len(others) >= NAMED:
                names.append(f"{len(others) - NAMED + 1} more")
            listing = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            phrases.append(f"{word}{' than cross-entropy’s' if not phrases else ''} with {listing}")
    return ", and ".join(phrases)


def difference_text(difference: Difference, measure: Measure) -> str:
    """Returns a difference with its unit and interval: `-0.08 nats [-0.11, -0.04]`."""
    unit = "points" if measure.unit == "percent" else measure.unit
    text = f"{difference.estimate.value:+.{measure.digits}f} {unit}".strip()
    return " ".join(filter(None, [text, interval_text(difference.estimate, measure.digits)])).replace("-", "−")


def interval_text(estimate: Estimate, digits: int) -> str:
    """Returns `[low, high]`; empty if the interval is not known, or is a point when rounded."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = f"{estimate.low:+.{digits}f}", f"{estimate.high:+.{digits}f}"
    return "" if low == high else f"[{low}, {high}]"


def _number(entry: Entry) -> str:
    return "–" if entry.value is None else entry.number_format.format(entry.value)


def _perplexities(rows: Sequence[HeadlineRow]) -> str:
    """The range of the perplexities, and by how much the largest is above the smallest; empty if they are far apart."""
    values = [row.perplexity.value for row in rows if row.perplexity.value is not None]
    if len(values) < 2 or min(values) <= 0 or max(values) / min(values) - 1 >= CLOSE:
        return ""
    low, high = (PERPLEXITY_FORMAT.format(value) for value in (min(values), max(values)))
    return f", at perplexities from {low} to {high} ({100 * (max(values) / min(values) - 1):.1f} % apart)"


def seed_count(count: int) -> str:
    """Returns a forecast of seeds in words: `about 12`, or `more than 200`."""
    return f"more than {MANY_SEEDS}" if count > MANY_SEEDS else f"about {count}"


def nearest_to_decision(headline: Headline) -> tuple[HeadlineRow, int] | None:
    """Returns the row whose open difference after RL needs the fewest seeds, and how many; None if none is known.

    The number is that of `Difference.seeds_needed`, the definition that claims have too: before correction.
    """
    needed = [(row, row.differences["result"].seeds_needed) for row in _open_rows(headline)]
    known = [(row, count) for row, count in needed if count and len(headline.seeds) < count <= MANY_SEEDS]
    return min(known, key=lambda pair: pair[1], default=None)


def _open_rows(headline: Headline) -> list[HeadlineRow]:
    """The rows whose results after RL are not told apart from the baseline's."""
    compared = [row for row in headline.rows if "result" in row.differences]
    return [row for row in compared if row.differences["result"].word == NOT_TOLD_APART]


def seeds_that_decide(headline: Headline) -> int | None:
    """Returns how many seeds would decide the open difference that needs the fewest; None if none is open.

    With one seed nothing is known of the spread over seeds, and `ENOUGH_SEEDS` are a start.
    """
    if not _open_rows(headline):
        return ENOUGH_SEEDS if len(headline.seeds) == 1 else None
    if len(headline.seeds) > 1 and (nearest := nearest_to_decision(headline)):
        return nearest[1]
    return ENOUGH_SEEDS if len(headline.seeds) < ENOUGH_SEEDS else None


def forecast(headline: Headline, time: str) -> str:
    """Returns what `seeds_that_decide` seeds would decide; `time` is how long they take: `, about 5 minutes more`."""
    count = seeds_that_decide(headline)
    if len(headline.seeds) == 1:
        return f"One seed decides nothing; {count} seeds{time}:"
    if nearest := nearest_to_decision(headline):
        others = len(_open_rows(headline)) - 1
        more = f"; the other {others} open need more or have no forecast" if others else ""
        return (
            f"{count} seeds{time}, would tell {headline.name(nearest[0])} from cross-entropy after RL if their "
            f"difference is as measured ({POWER}){more}:"
        )
    return f"No difference after RL is near a decision ({POWER}); {count} seeds{time}, are a start:"


def cautions(headline: Headline) -> list[str]:
    """Returns a sentence for each thing that hides differences: odd seeds, saturation, and noise."""
    sentences = []
    named = []
    for odd in odd_seeds(headline):
        row = next(row for row in headline.rows if (row.model, row.setting) == (odd.model, odd.setting))
        low, high = odd.others
        named.append(f"{headline.name(row)} seed {odd.seed} at {odd.value:.0f} % (its others: {low:.0f} to {high:.0f})")
    if named:
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        sentences.append(f"Odd seed{'s' if len(named) > 1 else ''} after RL: {', '.join(named[:NAMED])}{more}.")
    results = [row.after.value for row in headline.rows if row.after.value is not None]
    full = sum(value >= CEILING for value in results)
    if len(results) > 1 and full * 2 >= len(results):
        sentences.append(
            f"Saturated: {full} of {len(results)} settings end RL at {CEILING:.0f} % or more; differences cannot show."
        )
    sentences += _noise(headline)
    return sentences


def _noise(headline: Headline) -> list[str]:
    """Whether intervals over seeds are wider than the differences that they are about."""
    pairs = []
    for row in headline.rows:
        difference = row.differences.get("result")
        if difference and len(difference.seeds) > 1 and difference.estimate.low is not None:
            assert difference.estimate.high is not None
            half = (difference.estimate.high - difference.estimate.low) / 2
            pairs.append((half, abs(difference.estimate.value)))
    wide = [pair for pair in pairs if pair[0] > pair[1]]
    if not pairs or len(wide) * 2 < len(pairs):
        return []
    halves, largest = sorted(half for half, _ in wide), max(value for _, value in pairs)
    return [
        f"Noisy: the 95 % intervals of the differences from cross-entropy after RL (median: ±{median(halves):.0f} "
        f"points) are wider than the differences themselves (at most {largest:.0f} points)."
    ]
