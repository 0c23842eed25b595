"""The first screen: the result in a sentence, a table and a figure, what hides differences, and what would decide."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.figures.headline_figure import first_rows
from analysis.headline import Headline, HeadlineRow
from analysis.headline_words import cautions, difference_text, interval_text, result_sentence, seeds_that_decide
from analysis.tables import Entry


def headline_view(headline: Headline, colours: Mapping[str, str], panels: Sequence[str]) -> dict[str, Any]:
    """Returns the first screen for the template, without what would decide."""
    first = first_rows(headline)
    baselines = set(headline.baselines.values())
    return {
        "sentence": result_sentence(headline),
        "rows": [_row(headline, row, colours) for row in first],
        "more": [_row(headline, row, colours) for row in headline.rows if row not in first],
        "baseline": baselines.pop() if len(baselines) == 1 else "cross-entropy",
        "result_short": headline.result.short,
        "cautions": cautions(headline),
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
    count = seeds_that_decide(headline)
    if count is None:
        return None
    needs = "One seed decides nothing;" if len(headline.seeds) == 1 else "The open differences after RL need"
    return {"words": f"{needs} {count} seeds{time}:", "command": command}


def _row(headline: Headline, row: HeadlineRow, colours: Mapping[str, str]) -> dict[str, Any]:
    difference = row.differences.get("result")
    view = None
    if difference:
        number, _, _ = difference_text(difference, headline.result).partition(" ")
        interval = interval_text(difference.estimate, headline.result.digits).replace("-", "−")
        view = {"number": number, "interval": interval, "word": difference.word}
    is_baseline = headline.baselines.get(row.model) == row.setting
    return {
        "name": headline.name(row),
        "colour": colours[row.setting],
        "entropy": cell_view(row.entropy),
        "perplexity": cell_view(row.perplexity),
        "before": cell_view(row.before),
        "after": cell_view(row.after),
        "difference": view,
        "no_difference": "baseline" if is_baseline else "not run",
    }


def cell_view(entry: Entry) -> dict[str, str]:
    """Returns a number with its interval apart."""
    if entry.value is None:
        return {"text": "not run", "interval": ""}
    number, _, interval = str(entry).partition(" ")
    return {"text": number, "interval": interval}
