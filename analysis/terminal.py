"""The headline in the terminal: the sentence, the table of settings, and what hides differences."""

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from analysis.headline import ENTROPY, Headline, HeadlineRow
from analysis.headline_words import cautions, difference_text, result_sentence
from analysis.seed_spread import furthest_seed
from analysis.tables import Entry


def print_headline(headline: Headline, console: Console) -> None:
    """Print the result of a study as the page shows it first."""
    console.print(result_sentence(headline), markup=False)
    if any(row.entropy.value is not None or row.after.value is not None for row in headline.rows):
        console.print(headline_table(headline))
    if furthest := furthest_seed(headline):
        console.print(furthest, markup=False)
    for caution in cautions(headline):
        console.print(f"! {caution}", markup=False)


def headline_table(headline: Headline) -> Table:
    """Returns the headline's rows: entropy, perplexity, RL's result before and after, and the difference to ce.

    Without RL in the study, the difference is that of entropies.
    """
    title = f"before -> after RL: {headline.result.title}, percent" if headline.has_rl else "after pre-training, nats"
    table = Table(box=None, title=title, title_justify="left")
    of_rl = ["before -> after"] if headline.has_rl else []
    # Names that are made of parameters have no spaces to break at.
    settings = [", ".join(part.strip() for part in headline.name(row).split(",")) for row in headline.rows]
    longest = max((len(word) for name in settings for word in name.split()), default=0)
    for name in ("setting", "entropy", "perplexity", *of_rl, "minus baseline", ""):
        # In a narrow terminal a long name, the interval and the word take further lines.
        narrowest = {"setting": longest, "minus baseline": len("[−10.0,"), "": len("baseline")}.get(name)
        justify: JustifyMethod = "left" if name in ("setting", "") else "right"
        table.add_column(name, justify=justify, no_wrap=narrowest is None, min_width=narrowest)
    for name, row in zip(settings, headline.rows, strict=True):
        table.add_row(escape(name), *map(escape, cells(headline, row)))
    return table


def cells(headline: Headline, row: HeadlineRow) -> list[str]:
    """Returns a row's numbers as text: entropy, perplexity, before and after RL, difference, and a word for it.

    Without RL in the study, the difference is that of entropies, and there is no before and after.
    """
    name, measure = ("result", headline.result) if headline.has_rl else ("entropy", ENTROPY)
    found = row.differences.get(name)
    is_baseline = headline.baselines.get(row.model) == row.setting
    size, word = ("", "baseline" if is_baseline else "not run")
    if found:
        size, word = difference_text(found, measure).replace(" points", "").replace(" nats", ""), found.word
    of_rl = [f"{_number(row.before)} -> {_number(row.after)}"] if headline.has_rl else []
    return [_number(row.entropy), _number(row.perplexity), *of_rl, size, word]


def _number(entry: Entry) -> str:
    """A number without its interval."""
    return str(entry) if entry.value is None else entry.number_format.format(entry.value)
