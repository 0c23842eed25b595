"""What a worker records of its machine."""

import errno
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.execute import worker
from sweeps.execute.worker import _Attempt, _name_job, package_versions, processor


@pytest.mark.parametrize(
    ("description", "model"),
    [
        (
            "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.10GHz \n\nmodel name\t: Other\n",
            " (Some CPU @ 2.10GHz)",
        ),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", ""),
        (None, ""),
    ],
)
def test_the_processor_is_named_as_far_as_the_kernel_tells(description: str | None, model: str, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    if description is not None:
        file.write_text(description)
    assert processor(file) == platform.machine() + model


def test_results_are_recorded_with_the_processor_that_rounded_them() -> None:
    assert package_versions()["processor"].startswith(platform.machine())


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, str]]]:
    """The versions where `git` is a script with the given command."""

    def versions(command: str) -> dict[str, str]:
        package_versions.cache_clear()
        (tmp_path / "git").write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / "git").chmod(0o755)
        return package_versions()

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(worker, "__file__", str(tmp_path / "sweeps/execute/worker.py"))
    (tmp_path / ".git").mkdir()
    yield versions
    package_versions.cache_clear()


def test_results_are_recorded_with_the_commit_where_git_tells_one(git: Callable[[str], dict[str, str]]) -> None:
    assert git("echo 0123456789ab-dirty")["commit"] == "0123456789ab-dirty"
    assert "commit" not in git("exit 128")  # a repository of another user, or without a commit


def test_a_task_of_a_mixed_array_is_named_by_its_cell_and_fails_with_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"stage": "grpo", "labels": {"model": "nano", "objective": "ce", "seed": 3}}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_NAME", "nano/*/seed1:pretrain")
    _name_job("7_2", spec)  # a node without scontrol
    scontrol = tmp_path / "scontrol"
    for code in (1, 0):
        scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit {code}\n')
        scontrol.chmod(0o755)
        _name_job("7_2", spec)
    monkeypatch.setenv("SLURM_JOB_NAME", "nano/ce/seed1:pretrain")
    _name_job("7_2", spec)
    assert (tmp_path / "asked").read_text() == "update JobId=7_2 JobName=nano/ce/seed3:grpo\n" * 2


def test_a_full_disk_is_recorded_with_the_file_that_did_not_fit(tmp_path: Path) -> None:
    attempt = SimpleNamespace(lease=SimpleNamespace(work=tmp_path / "work"))

    def reason(error: BaseException) -> str:
        return _Attempt._reason(attempt, error)  # type: ignore[arg-type]

    of_a_file = reason(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "ledger.jsonl")))
    assert of_a_file.startswith(f"StageFailure: {tmp_path / 'ledger.jsonl'}: ")
    assert of_a_file.endswith("and run the same command again")
    of_a_library = reason(RuntimeError("PytorchStreamWriter failed writing file"))
    assert of_a_library.startswith(f"StageFailure: {tmp_path / 'work'}: ")
    assert reason(ValueError("other")) == "ValueError: other"
