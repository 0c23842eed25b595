"""What the processes of verifiers get and leave: no secrets, no children, and rewards between 0 and 1."""

import json
import time
from pathlib import Path

import pytest

from pipelines.verifiers import VERIFIERS, Judge, Verifier

FUNCTION = """
import json, os, subprocess, sys, time
def verify(answer, reference):
    if answer == "environment":
        with open(reference, "w") as file:
            json.dump(dict(os.environ), file)
    elif answer == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(reference, "w") as file:
            file.write(str(child.pid))
        time.sleep(600)
    return float(reference)
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    (tmp_path / "measuring.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(VERIFIERS, "ours", Verifier("measuring:verify", seconds=60.0))
    monkeypatch.setitem(VERIFIERS, "plugin", Verifier("measuring:verify", seconds=60.0, source="1"))
    monkeypatch.setitem(VERIFIERS, "hanging", Verifier("measuring:verify", seconds=2.0))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    return Judge(1)


def test_a_worker_gets_no_variable_but_the_listed_ones(judge: Judge, tmp_path: Path) -> None:
    with judge:
        judge.rewards([("ours", "environment", str(tmp_path / "variables.json"))])
    variables = json.loads((tmp_path / "variables.json").read_text())
    allowed = {"PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH"}
    assert set(variables) - {"LC_CTYPE"} <= allowed  # Python itself sets LC_CTYPE in the locale C
    assert variables["HOME"] == str(tmp_path)
    assert "secret" not in variables.values()


def test_what_a_worker_started_ends_with_it(judge: Judge, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with judge:
        (verdict,) = judge.rewards([("hanging", "child", str(note))])
    assert (verdict.reward, verdict.failure) == (0.0, "timeout")
    child = int(note.read_text())
    deadline = time.monotonic() + 20
    while _runs(child):
        assert time.monotonic() < deadline, "the child of a killed worker still runs"
        time.sleep(0.02)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_reward_is_between_0_and_1(judge: Judge) -> None:
    """Of ours it is cut; of a plugin, whose author means something else, it is a failure."""
    returned = ["0.25", "1", "1.5", "100", "-0.5", "nan", "inf"]
    with judge:
        ours = judge.rewards([("ours", "x", value) for value in returned])
        plugin = judge.rewards([("plugin", "x", value) for value in returned])
    assert [verdict.reward for verdict in ours] == [0.25, 1, 1, 1, 0, 0, 0]
    assert [verdict.failure for verdict in ours] == [None] * 5 + ["error"] * 2
    assert [verdict.reward for verdict in plugin] == [0.25, 1, 0, 0, 0, 0, 0]
    assert [verdict.failure for verdict in plugin] == [None] * 2 + ["error"] * 5


def test_the_limits_of_our_verifiers() -> None:
    limits = {name: (v.seconds, v.processor_seconds, v.longest) for name, v in VERIFIERS.items()}
    assert limits["math"] == (10.0, 0.5, 4096)
    assert limits["code"] == (600.0, None, 65_536)


def test_an_answer_has_the_processor_time_of_its_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limited.py").write_text(
        "import signal\ndef verify(answer, reference): return signal.getitimer(signal.ITIMER_PROF)[0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(VERIFIERS, "limited", Verifier("limited:verify", 60.0, 0.5))
    monkeypatch.setitem(VERIFIERS, "unlimited", Verifier("limited:verify", 60.0))
    with Judge(1) as judge:
        limited, again, unlimited = judge.rewards(
            [("limited", "x", "1"), ("limited", "y", "1"), ("unlimited", "x", "1")]
        )
    assert all(0.4 < verdict.reward < 0.6 for verdict in (limited, again))
    assert tuple(unlimited) == (0.0, None)
