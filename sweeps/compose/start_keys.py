"""Overrides that a start checkpoint leaves without effect: those of stages that do not run, and of its architecture.

A cell does not know which of its values were typed, so the overrides themselves are looked at.
"""

from collections.abc import Sequence

from pipelines.configuration import TRAINING_STAGES
from pipelines.configuration.cell import Cell
from pipelines.errors import UserError


def check_start_keys(overrides: Sequence[str], cell: Cell) -> None:
    """Raise `UserError` for the first override that changes nothing because of `start`, or that lacks `start`."""
    start = cell.start
    before = TRAINING_STAGES[: TRAINING_STAGES.index(start.stage)]
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        part = key.split(".")[0]
        if start.checkpoint is None:
            if part == "start" and not override.endswith("=null") and key != "start.checkpoint":
                raise UserError(f"{override}: nothing starts from a checkpoint; name one with start.checkpoint")
        elif part in before:
            raise UserError(
                f"{override}: {part} does not run, since start.stage={start.stage}; leave it out, or set "
                f"start.stage={part}"
            )
        elif part == "model":
            raise UserError(
                f"{override}: the model is that of start.checkpoint={start.checkpoint}; leave it out (start.name=NAME "
                "names it in tables)"
            )
        elif key in ("pretrain.rope_base", "midtrain.rope_base"):
            raise UserError(f"{override}: the model of start.checkpoint keeps its positions; leave it out")
        elif key in ("data.vocab_size", "data.tokenizer"):
            raise UserError(f"{override}: the tokenizer is that of start.checkpoint; leave it out")
