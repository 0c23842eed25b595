"""The stage `start`: a start checkpoint becomes the checkpoint of a stage run, step 0 of everything that follows.

The files are copied as they are, with only what is loaded of them. So a store does not depend on a folder that may
change, and every reader of checkpoints (verification, evaluation, lineage, clean-up) treats them like those trained
here.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipelines.configuration.start_checkpoint import (
    CODE,
    INDEX,
    MODEL_FILES,
    TOKENIZER_FILES,
    WEIGHTS,
    content_of,
    download,
    imported_files,
)
from pipelines.errors import StageFailure, UserError
from pipelines.files import replacing

CHECKPOINT = "step-000000"


def import_start(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the start checkpoint of a stage run into its `folder`; returns the outcome of the stage.

    Raises `StageFailure` if the checkpoint is not the one that was planned, or cannot be downloaded.
    """
    planned, source = spec["config"]["start"], spec["compute"]["start"]
    code = bool(planned.get("code"))
    try:
        if "hub" in planned:
            patterns = (
                *MODEL_FILES,
                *TOKENIZER_FILES,
                WEIGHTS,
                INDEX,
                "model-*.safetensors",
                *([CODE] if code else []),
            )
            path = download(planned["hub"], planned["revision"], patterns)
        else:
            path = Path(source)
        names = imported_files(path, f"start.checkpoint={source}", code=code)
        checkpoint = folder / "checkpoints" / CHECKPOINT
        checkpoint.parent.mkdir(exist_ok=True)
        with replacing(checkpoint) as temporary:
            temporary.mkdir()
            for name in names:
                shutil.copyfile(path / name, temporary / name)
        if "content" in planned and content_of(checkpoint, code=code) != planned["content"]:
            raise StageFailure(
                f"start.checkpoint={source}: its files have changed since this stage run was planned; launch it again "
                "to plan it with the current ones"
            )
    except UserError as error:
        raise StageFailure(str(error)) from error
    except OSError as error:
        raise StageFailure(f"start.checkpoint={source}: it cannot be copied ({error.strerror})") from error
    return {"metrics": {"parameters": _numbers(checkpoint, names)}, "measurements": []}


def _numbers(checkpoint: Path, names: list[str]) -> int:
    """How many numbers the weights are; tied ones are stored once."""
    count = 0
    for name in names:
        if name.endswith(".safetensors"):
            with safe_open(checkpoint / name, "pt") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return count
