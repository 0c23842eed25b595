"""The order of work: overrides become cells, cells become one graph of stage runs, and executors run what is missing.

`composition` (overrides -> cells), `plan` (cells -> stage runs with signatures), `store` (stage runs on disk),
`executor` (submitit jobs in warm workers), `work` (one stage run inside a worker), `run` and `commands` (the
commands). Nothing here loads torch at import; only a worker does.
"""
