"""Every key of a cell with its default and its check, one file for each group of `conf/`; `cell` joins them.

The dataclasses are the types that Hydra composes `conf/` into. Nothing here imports torch.
"""

TOKEN_STAGES = ("pretrain", "midtrain")
"""Stages that train on the next token."""
TRAINING_STAGES = (*TOKEN_STAGES, "grpo")
"""Stages that train, in the order of the chain."""
STAGES = (*TRAINING_STAGES, "evaluate")
"""All stages; an evaluation measures a checkpoint of any other stage."""

STAGE_VERSIONS = {"pretrain": 1, "midtrain": 1, "grpo": 2, "evaluate": 2}
"""Raised when a stage computes something else than before; old stage runs then count as not done."""
