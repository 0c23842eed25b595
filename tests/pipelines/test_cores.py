"""A process's share of the cores of its machine."""

import os

import pytest

from pipelines import cores


@pytest.mark.parametrize(
    ("affinity", "quota", "environment", "ranks", "expected"),
    [
        (64, None, {}, 1, 64),
        (64, 10, {}, 1, 10),
        (64, None, {}, 8, 8),
        (4, None, {}, 8, 1),
        (64, None, {"SHAPING_CORES": "3"}, 1, 3),
        (2, None, {"SHAPING_CORES": "3"}, 1, 2),
        (64, None, {"SLURM_CPUS_ON_NODE": "64"}, 8, 8),  # tasks that are not bound to cores
        (8, None, {"SLURM_CPUS_ON_NODE": "64"}, 8, 8),  # and those that are
        (64, None, {"SHAPING_CORES": "many", "SLURM_CPUS_ON_NODE": ""}, 1, 64),
    ],
)
def test_cores_are_shared_by_the_ranks_that_see_them(
    monkeypatch: pytest.MonkeyPatch,
    affinity: int,
    quota: int | None,
    environment: dict[str, str],
    ranks: int,
    expected: int,
) -> None:
    for name in ("SHAPING_CORES", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(affinity))
    monkeypatch.setattr(cores, "cores_allowed", lambda: quota)
    assert cores.share_of_cores(ranks) == expected
