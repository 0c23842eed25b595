"""Where a chain begins that does not begin with new weights: the keys `start.*` of a cell."""

import os
from dataclasses import dataclass

from pipelines.configuration import TRAINING_STAGES
from pipelines.errors import require, require_option

PROMPTS = ("plain", "chat")


@dataclass
class StartConfig:
    """A checkpoint that the first stage of a cell continues from, in place of a model that it would train itself."""

    checkpoint: str | None = None
    """A folder in Hugging Face format or a model's name on the Hub; null: new weights of the architecture `model`."""
    stage: str = "grpo"
    """The first stage that runs: `pretrain` (continued pre-training), `midtrain` or `grpo`."""
    name: str | None = None
    """Label of the model in tables; null: the last part of `checkpoint`."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub; null: its main branch as it is now."""
    remote_code: bool = False
    """Whether a checkpoint's own Python files are run as its model, with the rights of whoever runs the command."""
    prompts: str = "plain"
    """How questions are asked in RL and in sampled benchmarks: `plain` text, or in the tokenizer's `chat` template."""

    def __post_init__(self) -> None:
        self.checkpoint = self.checkpoint and os.path.expanduser(self.checkpoint)
        require_option("start.stage", self.stage, TRAINING_STAGES)
        require_option("start.prompts", self.prompts, PROMPTS)
        fix = "name a folder or a model on the Hub, or null"
        require(self.checkpoint is None or self.checkpoint.strip() != "", "start.checkpoint", "''", fix=fix)

    @property
    def label(self) -> str:
        """What the model is called in tables."""
        return self.name or os.path.basename(os.path.normpath(self.checkpoint or ""))
