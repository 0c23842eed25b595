"""Composing, planning and reading load no torch; the arrows between the packages hold (import-linter checks those)."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["sweeps.run", "sweeps.commands", "sweeps.executor", "analysis.reproduce", "pipelines.cell", "shaping.objective"],
)
def test_no_torch_at_import(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'lightning', 'wandb'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shaping_loads_torch_and_nothing_of_ours() -> None:
    code = (
        "import sys, shaping; shaping.shaped_cross_entropy; shaping.entropy;"
        "sys.exit(bool({'pipelines', 'sweeps', 'analysis', 'hydra', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
