"""The configuration of a cell: every key with its default and its checks, one module per group of `conf/`.

The dataclasses are the types into which Hydra composes `conf/`; `cell` joins them. Nothing here imports torch.
"The paper's" after a key means that its default is the paper's value, "ours" that the paper states none.
"""

TOKEN_STAGES = ("pretrain", "midtrain")
"""Stages that train on the next token."""
TRAINING_STAGES = (*TOKEN_STAGES, "grpo")
"""Stages that train, in the order in which they run."""
START = "start"
"""The stage that copies a start checkpoint into the store."""
STAGES = (START, *TRAINING_STAGES, "evaluate")
"""All stages; `evaluate` measures a checkpoint of any other stage."""

STAGE_VERSIONS = {"start": 1, "pretrain": 3, "midtrain": 3, "grpo": 3, "evaluate": 3}
"""Version of what a stage computes. Raise it when results change; stage runs of an older version are not reused."""

DATA_VERSION = 2
"""Version of the corpus that the code builds from a `data` configuration. Raise it when the corpus changes; it is in
all signatures and in the name of the corpus in the cache."""
