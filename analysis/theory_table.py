"""The table of theory against measurement: what each setting's objective predicts, and what its model came to.

The prediction is an evaluation variant `theory:SETTING` of the cross-entropy model of the same seed: the stationary
distribution of SETTING's objective with that model's own distribution as the data's (`shaping.theory`).
"""

from typing import Any

import pandas as pd

from analysis.claim_sources import StudySource
from analysis.estimates import Estimates
from analysis.headline import Difference, difference, quantity, sampled_entry
from analysis.study import Study, baselines
from analysis.table_columns import with_columns
from analysis.tables import Column, Entry, Table, interval_note

THEORY = "theory:"
"""How the variant of a prediction begins; the setting follows."""
METRICS = {"entropy": ("entropy, nats", 3), "head_mass": ("head mass", 4), "tail_mass": ("tail mass", 4)}
"""Metric of held-out text -> the group of its columns, and digits."""


def theory_table(study: Study, estimates: Estimates, model: str, *, provenance: str) -> Table | None:
    """Returns the table of one model after pre-training; None unless predictions and their settings are measured."""
    baseline = baselines(study).get(model)
    of_baseline = [q for q in estimates.grid.rows if q[:2] == (model, baseline)]
    variants = dict.fromkeys(q.variant for q in of_baseline if q.variant.startswith(THEORY))
    source = StudySource(study, estimates.grid)
    records, index = [], []
    for variant in variants:
        setting = variant.removeprefix(THEORY)
        record: dict[Column, Any] = {}
        for metric, (title, digits) in METRICS.items():
            predicted = quantity(source, str(baseline), model, stage="pretrain", metric=metric, variant=variant)
            measured = quantity(source, setting, model, stage="pretrain", metric=metric)
            record |= {
                (title, "predicted"): sampled_entry(predicted, digits),
                (title, "measured"): sampled_entry(measured, digits),
                (title, "measured - predicted"): _difference_entry(difference(measured, predicted), digits),
            }
        if any(entry.value is not None for (_, name), entry in record.items() if name == "measured - predicted"):
            records.append(record)
            index.append(setting)
    if not records:
        return None
    cells = with_columns(records, pd.Index(index, name="setting"))
    # A store whose evaluations lack a metric has no columns for it.
    cells = cells.loc[:, [any(entry.value is not None for entry in cells[column]) for column in cells]]
    caption = (
        "The stationary distribution of each setting's objective, with the distribution of the cross-entropy model of "
        "the same seed as the data's, against the trained model, on the same held-out text after pre-training. "
        "Differences are paired by seed; an interval that holds 0 agrees with theory. "
        f"{interval_note(cells)} {provenance}"
    )
    return Table(f"theory-{model}", None, f"Theory against measurement, {model}", caption, cells, model)


def _difference_entry(found: Difference | None, digits: int) -> Entry:
    form = f"{{:+.{digits}f}}"
    if found is None:
        return Entry(None, number_format=form)
    estimate = found.estimate
    return Entry(estimate.value, estimate.low, estimate.high, estimate.n, by_seed=found.by_seed, number_format=form)
