"""Stores that the real executor has filled and no training."""

import shutil
from pathlib import Path

import pytest

from tests.sweeps.commands.untrained import FEW, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two finished cells, and one that failed in mid-training."""
    folder = tmp_path_factory.mktemp("made")

    assert run("objective=ce,precision", *FEW, cwd=folder, FAKE_FAIL="no such word").returncode == 0
    failed = run("seed=7", *FEW, cwd=folder, FAKE_FAIL='"stage": "midtrain"')
    assert failed.returncode == 1
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which a test may change."""
    shutil.copytree(made / "store", tmp_path / "store")
    return tmp_path
