"""The first screen: the result in a sentence, a table and a figure, what hides differences, and what would decide."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.figures.headline_figure import first_rows
from analysis.headline import ENTROPY, Difference, Headline, HeadlineRow, Measure
from analysis.headline_words import (
    cautions,
    difference_text,
    forecast,
    interval_text,
    result_sentence,
    seeds_that_decide,
)
from analysis.seed_spread import after_rl, from_others, furthest_seed
from analysis.tables import Entry

OPEN_ROWS = 40
"""Most rows of the table by seed that is shown unfolded."""


def headline_view(headline: Headline, colours: Mapping[str, str], panels: Sequence[str]) -> dict[str, Any]:
    """Returns the first screen for the template, without what would decide."""
    first = first_rows(headline)
    baselines = set(headline.baselines.values())
    return {
        "sentence": result_sentence(headline),
        "rows": [_row(headline, row, colours) for row in first],
        "more": [_row(headline, row, colours) for row in headline.rows if row not in first],
        "baseline": baselines.pop() if len(baselines) == 1 else "cross-entropy",
        "has_rl": headline.has_rl,
        "result_short": headline.result.short,
        "cautions": cautions(headline),
        "furthest": furthest_seed(headline),
        "by_seed": _by_seed(headline, colours),
        "seeds_open": len(headline.rows) * len(headline.seeds) <= OPEN_ROWS,
        "panels": panels,
        "figure": "The result",
        "caption": _caption(headline),
    }


def _caption(headline: Headline) -> str:
    if len(headline.seeds) == 1:
        return "95 % intervals over the problems or rows of one seed, which say nothing about other seeds."
    return f"95 % intervals over {len(headline.seeds)} seeds; the words are Holm-corrected over all differences."


def decide_view(headline: Headline, command: str, time: str) -> dict[str, str] | None:
    """Returns how many seeds would decide, with the command and its time; None if nothing is open."""
    if seeds_that_decide(headline) is None:
        return None
    return {"words": forecast(headline, time), "command": command}


def _row(headline: Headline, row: HeadlineRow, colours: Mapping[str, str]) -> dict[str, Any]:
    is_baseline = headline.baselines.get(row.model) == row.setting
    return {
        "name": headline.name(row),
        "colour": colours[row.setting],
        "entropy": cell_view(row.entropy),
        "perplexity": cell_view(row.perplexity),
        "before": cell_view(row.before),
        "after": cell_view(row.after),
        "entropy_difference": difference_view(row.differences.get("entropy"), ENTROPY),
        "difference": difference_view(row.differences.get("result"), headline.result),
        "no_difference": "baseline" if is_baseline else "not run",
    }


def difference_view(difference: Difference | None, measure: Measure) -> dict[str, str] | None:
    """Returns a difference with its interval, its word and its corrected p-value apart; None without one."""
    if difference is None:
        return None
    number, _, _ = difference_text(difference, measure).partition(" ")
    interval = interval_text(difference.estimate, measure.digits).replace("-", "−")
    p = "" if difference.p is None else "p = 1" if difference.p >= 0.995 else f"p = {difference.p:.2g}"
    return {"number": number, "interval": interval, "word": difference.word, "p": p}


def _by_seed(headline: Headline, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each setting and seed; empty with one seed, whose numbers are those of the table."""
    if len(headline.seeds) < 2:
        return []
    rows = []
    for row in headline.rows:
        for seed in headline.seeds:
            values = {name: by_seed.get(seed) for name, by_seed in row.by_seed.items()}
            away = from_others(after_rl(row), seed)
            rows.append(
                {
                    "name": headline.name(row),
                    "colour": colours[row.setting],
                    "seed": seed,
                    "entropy": _number(values.get("entropy"), ENTROPY.digits),
                    "before": _number(values.get("before"), 1),
                    "after": _number(values.get("after"), 1),
                    "away": "–" if away is None else f"{away:+.1f}".replace("-", "−"),
                }
            )
    return rows


def _number(value: float | None, digits: int) -> str:
    return "not run" if value is None else f"{value:.{digits}f}"


def cell_view(entry: Entry) -> dict[str, str]:
    """Returns a number with its interval apart."""
    if entry.value is None:
        return {"text": "not run", "interval": ""}
    number, _, interval = str(entry).partition(" ")
    return {"text": number, "interval": interval}
