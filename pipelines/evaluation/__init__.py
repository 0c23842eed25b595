"""Evaluation of a checkpoint.

`evaluate` measures a table of benchmarks, each kind in a module: `held_out_text` (with `distribution`),
`multiple_choice`, `sampled_answers`, and `lm_eval_tasks` (with `lm_eval_model` and our task files). `benchmark_cache`
stores results, `samples` stores sampled answers, and `metrics` computes the metrics of samples.
"""
