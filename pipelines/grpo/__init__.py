"""GRPO with verifiable rewards: sample groups, pay right answers, raise what did better than its group.

`algorithm` is the arithmetic, `collection` samples and drops groups, `update` changes the weights, `diagnostics` and
`collapse` tell why a run rises or falls, `training` is the stage from first step to last.
"""

from pipelines.grpo.training import train_grpo

__all__ = ["train_grpo"]
