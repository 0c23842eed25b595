"""Every key of a cell, once, with its default and its check, one file a group of `conf/`; `pipelines.configuration.cell` joins them.

The dataclasses are what Hydra composes `conf/` into. No torch at import: composing and planning must not load it.
"""

STAGES = ("pretrain", "midtrain", "grpo")
"""The training stages in their order; evaluations hang off their checkpoints."""
STAGE_VERSIONS = {"pretrain": 1, "midtrain": 1, "grpo": 2, "evaluate": 2}
"""Version of each stage's code, part of its signature: raised by hand when a change alters results."""
