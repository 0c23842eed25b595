"""The public set of escapes and reward hacks: each scores 0 and changes nothing outside."""

import os
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.verifiers import code, namespaces
from tests.pipelines.verifiers.escapes import RIGHT, SLOW, STRICT, TESTS, attempts, machine, system_calls
from tests.pipelines.verifiers.test_judge import rewards


@pytest.fixture
def victim() -> Iterator[int]:
    """A process outside the sandbox."""
    process = subprocess.Popen(["sleep", "600"])
    while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
        time.sleep(0.01)
    yield process.pid
    process.kill()
    process.wait()


def state_of(process: int) -> dict[str, Any]:
    """What a program might change of a process: its limits, priority, processors, scheduler and signals."""
    status = Path(f"/proc/{process}/status").read_text().split("\n")
    return {
        "limits": [resource.prlimit(process, limit) for limit in range(16)],
        "priority": os.getpriority(os.PRIO_PROCESS, process),
        "processors": os.sched_getaffinity(process),
        "scheduler": os.sched_getscheduler(process),
        "status": [
            line for line in status if line.startswith(("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "Uid", "Gid"))
        ],
        "group": os.getpgid(process),
    }


def state_of_file(path: Path) -> tuple[Any, ...]:
    """Content and metadata; the time of the last change (ctime) shows any change of times, mode or attributes."""
    metadata = path.stat()
    return path.read_bytes(), metadata.st_mode, metadata.st_mtime_ns, metadata.st_ctime_ns, metadata.st_nlink


@pytest.mark.parametrize(
    "step", [pytest.param(5, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.ci_only)], ids=["some", "all"]
)
def test_no_attempt_succeeds_or_changes_anything(
    step: int, tmp_path: Path, *, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_WORD", "xyzzy")
    file = tmp_path / "victim"
    file.write_text("whole")
    before = state_of_file(file), state_of(victim), state_of(os.getpid())["limits"]
    every = attempts(str(file), victim)
    assert len(every) > 800
    chosen = list(every)[::step]
    passed = dict(zip(chosen, rewards("code", [every[name] for name in chosen], workers=2), strict=True))
    assert [name for name, reward in passed.items() if reward] == []
    assert (state_of_file(file), state_of(victim), state_of(os.getpid())["limits"]) == before
    assert os.listdir(tmp_path) == ["victim"]
    assert Path(f"/proc/{victim}/stat").read_text().split()[2] == "S"
    assert not Path("/tmp/made-by-a-program").exists()
    # The tests that the attempts could not deceive are passed by a right program.
    assert rewards("code", [(RIGHT, STRICT), (RIGHT, TESTS)]) == [1, 1]


REFUSED = r"\[Errno 1\] Operation not permitted|\[Errno 13\] Permission denied"
OTHER_REFUSALS = {
    **dict.fromkeys(
        ("environment", "environment of C", "shell", "web browser", "queued signal", "trace"), "AssertionError"
    ),
    **dict.fromkeys(("memory", "memory, bit by bit"), "MemoryError"),
    **dict.fromkeys(("thread", "executor"), "can't start new thread"),
    "many files": r"\[Errno 24\] Too many open files",
    "mask": "'OSError'",
    "terminal": "out of pty devices",
    "database": "unable to open database file",
    "deep recursion": "RecursionError",
    "home": "Could not determine home directory|" + REFUSED,
    "temporary": "No usable temporary directory",
    "its limits": "not allowed to raise maximum limit",
    "name": "'gaierror'",
}
"""What an attack on the machine ends with where Python or C has other words for the kernel's refusal."""


@pytest.mark.ci_only
@pytest.mark.parametrize("way", sorted(namespaces.ways(code.COMMAND)))
def test_attacks_on_the_machine_end_because_they_are_refused(way: str, tmp_path: Path, victim: int) -> None:
    """Not because of a mistake in the attack, or because what it wants is nowhere on this machine."""
    try:
        nursery = code.Nursery(namespaces.ways(code.COMMAND)[way])
    except code.SandboxFailure as failure:
        pytest.skip(f"{way}: {failure}")
    file = tmp_path / "victim"
    file.write_text("whole")
    for name, (program, tests) in machine(str(file), victim):
        why = code.why_wrong(program, tests, nursery) or "it passed"
        hidden = re.search(r"\[Errno 2\] No such file or directory: '([^']*)'", why)
        expected = OTHER_REFUSALS.get(name.removeprefix("machine: "), REFUSED)
        assert (hidden and Path(hidden[1]).exists()) or re.search(expected, why), (name, why)
    for name, (program, tests) in system_calls():
        why = code.why_wrong(program, tests, nursery)
        own_check = "AssertionError: " if name.startswith("every") else "the program raised [['AssertionError'], '']"
        assert why == own_check, (name, why)
    nursery.close()


@pytest.mark.ci_only
def test_a_program_that_uses_all_its_time_is_wrong() -> None:
    assert rewards("code", [(f"{RIGHT}{program}", TESTS) for program in SLOW.values()], workers=2) == [0] * len(SLOW)
