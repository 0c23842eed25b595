"""Turns a store's results into frames, tables, claims, figures, one report and dashboards.

    import analysis
    frame = analysis.load("store")       one row per measurement; analysis.COLUMNS describes the columns
    analysis.ledger("store")             metrics over training steps
    analysis.samples("store")            sampled answers
    analysis.rl_runs("store")            one row per RL run: how soon it learns, and the entropy that it spends

Commands:   `reproduce` (reproduce-paper-tables), `dashboard` (shaping-dashboard), their options `command_line`
Numbers:    `result_cache` and `study` (store -> pandas), `measurement_grid` (arrays over seeds), `statistics`,
            `estimates` (means with intervals)
Paper:      `paper_tables` (what each table shows), `reference` (the numbers it reports)
Result:     `headline` (each setting's numbers and differences), `headline_words`, `terminal`, `provenance` (how it was
            made), `comparison` (two studies), `watch` (again as stage runs finish)
Tables:     `tables`, `table_columns`, `table_builder`, `best_entries` (significance), `table_files` (formats)
Claims:     `claims.yaml`, `claims`, `claim_language`, `claim_sources`, `claim_words`
Figures:    `figures`
Page:       `page`

Nothing here loads torch.
"""

from analysis.learning import rl_runs
from analysis.study import COLUMNS, ledger, load, samples

__all__ = ["COLUMNS", "ledger", "load", "rl_runs", "samples"]
