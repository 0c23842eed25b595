"""Training data and questions.

`corpus` turns text (`docstrings`) and generated tasks into tokens with a `tokenizer` that is trained on them. For more
data, `preparation` has processes (`part_worker`) read parts of `sources` (`source_files`, `compressed_files`) in the
order of `part_schedule`, and write `token_shards` (through `shard_writer`). `training_order` orders the rows of both.
`questions` are what RL and evaluation ask, `selection` limits their number, and `contamination` looks for evaluation
sets in the training text by `ngrams`.
"""
