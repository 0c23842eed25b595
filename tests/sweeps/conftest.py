"""Slurm clusters that run for a whole test session, started when they are first needed."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sweeps.cluster import SCRIPT, Cluster

Start = Callable[[str], Cluster]


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Starts a cluster, `no accounting` or `slurmdbd`, when it is first requested.

    Not in pytest's own temporary folder: the user of MariaDB must be able to read its files, and every run of pytest
    that starts meanwhile closes the folder that all runs share to other users.
    """
    folders: dict[str, Path] = {}

    def cluster(accounting: str) -> Cluster:
        if accounting not in folders:
            arguments = ["accounting"] if accounting == "slurmdbd" else []
            if arguments and (missing := [n for n in ("slurmdbd", "mariadbd") if shutil.which(n) is None]):
                pytest.skip(f"no accounting here ({', '.join(missing)}); tests/slurm/cluster.sh install")
            folder = folders[accounting] = Path(tempfile.mkdtemp(prefix="shaping-slurm-"))
            folder.chmod(0o755)
            finished = subprocess.run([SCRIPT, "up", folder, *arguments], capture_output=True, text=True, check=False)
            assert finished.returncode == 0, finished.stdout + finished.stderr
        return Cluster(folders[accounting])

    try:
        yield cluster
    finally:
        for folder in folders.values():
            subprocess.run([SCRIPT, "down", folder], check=False)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["no accounting", "slurmdbd"])
def cluster(request: pytest.FixtureRequest, start: Start) -> Cluster:
    """Both clusters in turn, for tests that depend on the states of jobs."""
    return start(request.param)


@pytest.fixture
def plain(start: Start) -> Cluster:
    """The cluster without accounting, for tests that do not depend on it."""
    return start("no accounting")
