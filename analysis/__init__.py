"""The reading: what a store holds becomes frames, tables, claims, figures, one report and dashboards.

    import analysis
    frame = analysis.load("store")       one row a measurement; analysis.COLUMNS says what each column is
    analysis.ledger("store")             metrics over training steps
    analysis.samples("store")            sampled answers

`index` and `frames` (store -> pandas), `statistics`, `layout` and `tables` (the paper's tables by number), `formats`,
`claims`, `figures`, `report` (one self-contained page), `dashboard` (Weights & Biases), `reproduce` (the
command). Nothing here loads torch.
"""

from analysis.study import COLUMNS, ledger, load, samples

__all__ = ["COLUMNS", "ledger", "load", "samples"]
