"""Slurm clusters that stand for a whole test session, started when they are first needed."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sweeps.cluster import SCRIPT, Cluster

Start = Callable[[str], Cluster]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a cluster of a kind, `no accounting` or `slurmdbd`, the first time that it is asked for."""
    started: dict[str, Path] = {}

    def cluster(kind: str) -> Cluster:
        if kind not in started:
            accounting = ["accounting"] if kind == "slurmdbd" else []
            if accounting and (lacking := [n for n in ("slurmdbd", "mariadbd") if shutil.which(n) is None]):
                pytest.skip(f"no accounting here ({', '.join(lacking)}); tests/slurm/cluster.sh install")
            folder = started[kind] = tmp_path_factory.mktemp("slurm")
            for parent in (folder, *folder.parents):  # MariaDB's own user reads its files there
                if parent != Path("/") and not parent.stat().st_mode & 0o001:
                    parent.chmod(0o755)
            begun = subprocess.run([SCRIPT, "up", folder, *accounting], capture_output=True, text=True, check=False)
            assert begun.returncode == 0, begun.stdout + begun.stderr
        return Cluster(started[kind])

    try:
        yield cluster
    finally:
        for folder in started.values():
            subprocess.run([SCRIPT, "down", folder], check=False)


@pytest.fixture(params=["no accounting", "slurmdbd"])
def cluster(request: pytest.FixtureRequest, start: Start) -> Cluster:
    """Either kind of cluster, for what looks at the states of jobs."""
    return start(request.param)


@pytest.fixture
def plain(start: Start) -> Cluster:
    """The cluster without accounting, for what does not depend on it."""
    return start("no accounting")
