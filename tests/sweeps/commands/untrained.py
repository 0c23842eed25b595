"""The commands with stages that train nothing: all else, the executor and its workers among it, is real."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.in_process import Result, in_process

REPOSITORY = Path(__file__).parents[3]
FAKE = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'tests/sweeps/fake'}:{REPOSITORY}"}
FEW = ["pretrain.milestones=1", "midtrain.milestones=1", "grpo.milestones=1", "tracking=off",
       "evaluation.controls.matched=[]", "evaluation.controls.theory=[]"]  # fmt: skip


def process(module: str, *arguments: str, cwd: Path, **environment: str) -> Result:
    """Run a command in a new process, because its workers are forked from it and must not train."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**FAKE, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def run(*arguments: str, cwd: Path, **environment: str) -> Result:
    """Run `shaping-run` without training."""
    return process("sweeps.commands.run", *arguments, cwd=cwd, **environment)


def sweeps(*arguments: str, cwd: Path, **environment: str) -> Result:
    """Run `shaping-sweeps` without training."""
    if arguments[0] == "retry":
        result = process("sweeps.commands.shaping_sweeps", *arguments, cwd=cwd, **environment)
    else:
        result = in_process("sweeps.commands.shaping_sweeps", *arguments, cwd=cwd, environment={**FAKE, **environment})
    assert "Traceback" not in result.stderr, result.stderr
    return result


def rows(folder: Path, *filters: str) -> list[dict[str, Any]]:
    """What `shaping-sweeps status` shows of each stage run."""
    return json.loads(sweeps("status", "--json", *filters, cwd=folder).stdout)
