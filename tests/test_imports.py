"""Composing, planning and reading do not import torch; `shaping` imports no other package of the project."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "sweeps.commands.run",
        "sweeps.commands.shaping_sweeps",
        "sweeps.execute.local",
        "sweeps.commands.data",
        "sweeps.commands.torchrun",
        "analysis.reproduce",
        "pipelines.configuration.cell",
        "shaping.objective",
    ],
)
def test_no_torch_at_import(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers', 'lightning', 'wandb'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shaping_imports_no_other_package_of_the_project() -> None:
    code = (
        "import sys, shaping; shaping.shaped_cross_entropy; shaping.entropy;"
        "sys.exit(bool({'pipelines', 'sweeps', 'analysis', 'hydra', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shaping_needs_no_package_but_torch() -> None:
    """All modules but the Triton kernels, with everything that a trainer depends on made unimportable."""
    code = """
import importlib, pkgutil, sys
for name in ("transformers", "accelerate", "trl", "lightning", "triton", "numpy", "scipy", "hydra", "wandb"):
    sys.modules[name] = None
import shaping
for module in pkgutil.iter_modules(shaping.__path__):
    if module.name != "triton_kernels":
        importlib.import_module(f"shaping.{module.name}")
import torch
hidden, weight, targets = torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1])
loss = shaping.linear_shaped_cross_entropy(hidden, weight, targets, shaping.Objective(0.5))
assert loss.isfinite()
"""
    finished = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.ci_only
def test_a_type_checker_finds_the_package_from_another_folder(tmp_path: Path) -> None:
    """An editable install is a folder on the path, which type checkers follow; they do not follow import hooks."""
    (tmp_path / "use.py").write_text("from shaping import Objective, __version__\nwrong: int = Objective(beta=0.5)\n")
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "use.py"]
    checked = subprocess.run(mypy, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert 'expression has type "Objective"' in checked.stdout
    assert "Found 1 error in 1 file" in checked.stdout
