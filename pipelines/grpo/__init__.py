"""GRPO with verifiable rewards: sample groups of responses and reinforce those that do better than their group.

`algorithm` is the arithmetic, `collection` samples groups and drops those without a signal, `update` changes the
weights, `diagnostics` and `collapse` show why a run improves or fails, and `training` runs the stage.
"""

from pipelines.grpo.training import train_grpo

__all__ = ["train_grpo"]
