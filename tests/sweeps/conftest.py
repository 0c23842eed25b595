"""Slurm clusters that run for a whole test session, started when they are first needed."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sweeps.cluster import SCRIPT, Cluster

Start = Callable[[str], Cluster]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a cluster, `no accounting` or `slurmdbd`, when it is first requested."""
    folders: dict[str, Path] = {}

    def cluster(accounting: str) -> Cluster:
        if accounting not in folders:
            arguments = ["accounting"] if accounting == "slurmdbd" else []
            if arguments and (missing := [n for n in ("slurmdbd", "mariadbd") if shutil.which(n) is None]):
                pytest.skip(f"no accounting here ({', '.join(missing)}); tests/slurm/cluster.sh install")
            folder = folders[accounting] = tmp_path_factory.mktemp("slurm")
            for parent in (folder, *folder.parents):  # the user of MariaDB must be able to read its files
                if parent != Path("/") and not parent.stat().st_mode & 0o001:
                    parent.chmod(0o755)
            finished = subprocess.run([SCRIPT, "up", folder, *arguments], capture_output=True, text=True, check=False)
            assert finished.returncode == 0, finished.stdout + finished.stderr
        return Cluster(folders[accounting])

    try:
        yield cluster
    finally:
        for folder in folders.values():
            subprocess.run([SCRIPT, "down", folder], check=False)


@pytest.fixture(params=["no accounting", "slurmdbd"])
def cluster(request: pytest.FixtureRequest, start: Start) -> Cluster:
    """Both clusters in turn, for tests that depend on the states of jobs."""
    return start(request.param)


@pytest.fixture
def plain(start: Start) -> Cluster:
    """The cluster without accounting, for tests that do not depend on it."""
    return start("no accounting")
