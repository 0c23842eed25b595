"""The daily commands on a store whose stage runs are made by the real executor and train nothing."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.files import read_sealed, write_sealed
from sweeps.compose.cells import compose_cells
from sweeps.monitor import upkeep
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store
from tests.in_process import in_process
from tests.sweeps.commands.untrained import FAKE, FEW, rows, run, sweeps

pytestmark = pytest.mark.slow


def test_status_lists_failures_first(made: Path) -> None:
    shown = sweeps("status", cwd=made)
    assert shown.returncode == 1
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["stage", "failed", "blocked", "done"]
    assert lines[1].split() == ["pretrain", "3"]
    assert lines[2].split() == ["midtrain", "1", "2"]
    (failed,) = [line for line in lines if line.startswith("failed")]
    assert "nano/ce/seed7:midtrain" in failed
    assert "RuntimeError: asked to fail; log: " in shown.stdout
    listed = rows(made)
    assert [row["status"] for row in listed] == ["failed"] + ["blocked"] * 3 + ["done"] * 14
    assert sweeps("status", "objective=precision", cwd=made).returncode == 0


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["objective=precision"], 6),
        (["objective=precision,ce", "stage=grpo"], 3),
        (["model=4B"], None),
        (["seed=7", "status=done"], 2),
        (["nano/*/seed1"], 12),
        (["nano/*/seed1:grpo"], 2),
        (["nano/ce/seed?:evaluate@step-00000*"], None),
        (["*:midtrain", "status=done"], 2),
        (["seed=[17]", "stage=pretrain"], 3),
    ],
)
def test_filters(made: Path, filters: list[str], count: int | None) -> None:
    if count is None:
        nothing = sweeps("status", *filters, cwd=made)
        assert nothing.returncode == 2
        assert "no stage run in" in nothing.stderr
    else:
        assert len(rows(made, *filters)) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "objctive=ce"], "unknown key objctive; did you mean 'objective'"),
        (["status", "status=faild"], "did you mean 'failed'"),
        (["status", "--store", "elsewhere"], "store=elsewhere: the folder does not exist"),
        (["logs", "nano/ce/seed9"], "no stage run in"),
        (["logs", "nano/ce/seed7:grpo"], "none of its stage runs has started"),
        (["show", "zzzz"], "no signature begins so"),
        (["cancel"], "name what to stop"),
        (["plan", "--why", "nano/ce/seed3"], "--why=nano/ce/seed3: the command line has no such cell"),
        (["plan", "--device", "h10"], "--device=h10: did you mean 'h100'"),
        (["plan", "--mfu", "40"], "--mfu=40.0: it is a share, above 0 and at most 1"),
        (["plan", "hydra.launcher.wrkers=1"], "did you mean 'hydra.launcher.workers'"),
        (["plan", "--devices", "-3"], "Invalid value for '--devices'"),
        (["plan", "--prompt-tokens", "nan"], "--prompt-tokens=nan: it is a number of tokens"),
        (["sizes", "--vocabulary", "-5"], "Invalid value for '--vocabulary'"),
        (["status", "--sotre", "x"], "No such option: --sotre (Possible options: --json, --store)"),
        (["show"], "Missing argument 'signature'"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_with_2(made: Path, arguments: list[str], message: str) -> None:
    refused = sweeps(*arguments, cwd=made)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--processes", "-1"], "Invalid value for '--processes'"),
        (["show"], "shaping-data: Missing argument 'folder'"),
        (["verify", "--foldr"], "No such option: --foldr"),
    ],
)
def test_mistakes_of_shaping_data_are_a_sentence_too(tmp_path: Path, arguments: list[str], message: str) -> None:
    refused = in_process("sweeps.commands.data", *arguments, cwd=tmp_path, environment=FAKE)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert message in refused.stderr


def test_plan_finds_a_store_in_the_home_folder(made: Path, tmp_path: Path) -> None:
    words = ["plan", *FEW, "store='~/store'", "--no-tree"]
    assert "\nNothing to do\n" in sweeps(*words, cwd=tmp_path, HOME=str(made)).stdout


def test_retry_names_the_command_of_what_torchrun_launched(folder: Path) -> None:
    for path in (folder / "store" / "sweeps").glob("*.json"):
        changes = {"launcher": "torchrun", "options": {"ranks": 8, "words": ["seed=7,8"]}}
        write_sealed(path, read_sealed(path) | changes)
    refused = in_process("sweeps.commands.shaping_sweeps", "retry", cwd=folder, environment=FAKE)
    assert refused.returncode == 2
    assert "with 8 ranks; start it again: torchrun ... --no-python shaping-torchrun seed=7,8" in refused.stderr


def test_logs(folder: Path) -> None:
    shown = sweeps("logs", "nano/ce/seed7:midtrain", cwd=folder).stdout
    assert "==> nano/ce/seed7:midtrain" in shown
    assert "RuntimeError: asked to fail" in shown
    assert "working on" in sweeps("logs", rows(folder, "nano/ce/seed1:grpo")[0]["signature"][:9], cwd=folder).stdout
    state = Store.open(folder / "store").run("midtrain", rows(folder, "*:midtrain", "seed=7")[0]["signature"])
    attempts = [attempt | {"log": "/gone/0_log.err"} for attempt in state.state["attempts"]]
    write_sealed(state.folder / "state.json", state.state | {"attempts": attempts})
    without_log = sweeps("logs", "nano/ce/seed7:midtrain", cwd=folder)
    assert without_log.returncode == 2
    assert "its log /gone/0_log.err does not exist any more" in without_log.stderr


ATTACK = "\x1b]0;owned\x07\x1b[2J\u202e\x9b1m"


@pytest.mark.parametrize(
    "command",
    [("status",), ("logs", "nano/ce/seed7:midtrain"), ("show", "SIGNATURE"), ("verify",)],
    ids=" ".join,
)
def test_nothing_in_a_store_controls_the_terminal(command: tuple[str, ...], folder: Path) -> None:
    """An error, a host and a log with escape sequences."""
    signature = rows(folder, "*:midtrain", "seed=7")[0]["signature"]
    run = Store.open(folder / "store").run("midtrain", signature)
    attempts = run.state["attempts"]
    hostile = [attempt | {"error": f"boom {ATTACK}", "host": f"host{ATTACK}"} for attempt in attempts]
    write_sealed(run.folder / "state.json", run.state | {"attempts": hostile, "error": f"boom {ATTACK}"})
    log = Path(attempts[-1]["log"])
    if not log.is_relative_to(folder):  # of the store that was copied
        log = log.with_name("hostile.err")
        write_sealed(run.folder / "state.json", run.state | {"attempts": [a | {"log": str(log)} for a in hostile]})
    log.write_text(f"50%\r100%\r\n\x1b[34mwandb\x1b[0m: {ATTACK} end\n")
    result = sweeps(*(signature[:12] if part == "SIGNATURE" else part for part in command), cwd=folder)
    for text in (result.stdout, result.stderr):
        assert not set(text) & set("\x1b\x07\x9b\r\u202e")
    if command[0] == "logs":
        assert "50%\n100%\nwandb: \\x1b]0;owned\\x07\\x1b[2J\\u202e\\x9b1m end\n" in result.stdout


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_logs_follow_a_worker_that_is_cancelled_and_resumes_when_retried(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweeps.commands.run", *FEW, "until=pretrain"]
    working = subprocess.Popen(command, cwd=tmp_path, env={**FAKE, "FAKE_SECONDS": "60"}, stdout=subprocess.DEVNULL)
    until(lambda: list(tmp_path.glob("store/pretrain/*/work-*/ledger.jsonl")))
    time.sleep(0.5)
    (row,) = rows(tmp_path, "stage=pretrain")
    assert (row["status"], row["step"] is not None, row["rate"]) == ("running", True, 100.0)
    following = subprocess.Popen(
        [sys.executable, "-m", "sweeps.commands.shaping_sweeps", "logs", "-f", "nano/ce/seed1:pretrain"],
        cwd=tmp_path, env=FAKE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stopped = sweeps("cancel", "*:pretrain", cwd=tmp_path)
    assert (stopped.returncode, stopped.stdout.split()[0]) == (0, "1")
    assert "working on" in following.communicate(timeout=30)[0]  # it ends by itself
    assert working.wait(30) == 1
    assert rows(tmp_path, "stage=pretrain")[0]["status"] == "interrupted"
    retried = sweeps("retry", cwd=tmp_path, FAKE_SECONDS="0")
    assert retried.returncode == 0, retried.stderr
    assert {row["status"] for row in rows(tmp_path)} == {"done"}
    (result,) = [run.result for run in Store.open(tmp_path / "store").runs() if run.stage == "pretrain"]
    assert result is not None
    assert result["metrics"]["resumed"] > 0


def test_a_dismissed_stage_run_is_no_trouble_until_its_cell_is_launched_again(folder: Path) -> None:
    assert sweeps("status", cwd=folder).returncode == 1
    assert sweeps("dismiss", cwd=folder).returncode == 2  # filters are required
    dismissed = sweeps("dismiss", "seed=7", cwd=folder)
    assert "1 stage runs dismissed" in dismissed.stdout
    shown = sweeps("status", cwd=folder)
    assert shown.returncode == 0
    assert "asked to fail" not in shown.stdout
    assert [row["status"] for row in rows(folder, "seed=7")] == ["dismissed"] * 4 + ["done"] * 2
    assert "Nothing to retry" in sweeps("retry", cwd=folder).stdout
    assert run("seed=7", *FEW, cwd=folder).returncode == 0
    assert {row["status"] for row in rows(folder)} == {"done"}


def test_retry_runs_what_failed_and_what_waits_for_it(folder: Path) -> None:
    retried = sweeps("retry", "seed=7", cwd=folder)
    assert retried.returncode == 0, retried.stderr
    assert {row["status"] for row in rows(folder)} == {"done"}
    assert "4 stage runs done" in retried.stdout
    assert "Nothing to retry" in sweeps("retry", cwd=folder).stdout


def test_a_second_command_waits_for_what_the_first_is_running(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweeps.commands.run", *FEW, "until=pretrain"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, env={**FAKE, "FAKE_SECONDS": "3"}, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    runs = list(Store.open(tmp_path / "store").runs())
    assert [len(run.state["attempts"]) for run in runs] == [1, 1]
    assert sum(int(output.split(" stage runs done in")[0].split()[-1]) for output in outputs) == 2


def test_stage_runs_can_be_copied_to_another_store(made: Path, tmp_path: Path) -> None:
    """Their folders are copied as rsync does it, and they count as done."""
    copy = Store.create(tmp_path / "store")
    for stage in ("pretrain", "midtrain", "grpo", "evaluate"):
        shutil.copytree(made / "store" / stage, copy.root / stage)
    assert sweeps("verify", cwd=tmp_path).returncode == 0
    again = run("objective=ce,precision", *FEW, cwd=tmp_path)
    assert "Nothing to do: all 12 stage runs" in again.stdout


def test_gc_lists_first_and_keeps_what_a_named_sweep_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The named sweeps are composed once for the four commands.
    monkeypatch.setattr(upkeep, "needed_by_named_sweeps", functools.cache(upkeep.needed_by_named_sweeps))
    named = run("+sweep=nano", "objective=ce", *FEW, "until=pretrain", cwd=folder)  # names two of them
    assert named.returncode == 0, named.stderr
    store = Store.open(folder / "store")
    (failed,) = [run for run in store.runs() if run.status == "failed"]
    (failed.work / "resume").mkdir()
    (failed.work / "resume" / "state.pt").write_bytes(b"x" * 5000)
    before = sorted(folder.rglob("*"))
    listing = sweeps("gc", cwd=folder)
    assert "5.0 kB  trainer state" in listing.stdout.replace("5.1 kB", "5.0 kB")
    assert "--yes removes them" in listing.stdout
    assert [path for path in before if not path.exists()] == []
    assert sweeps("gc", "--yes", cwd=folder).returncode == 0
    assert not list(store.root.glob("*/*/work-*"))
    listed = json.loads(sweeps("gc", "--weights", "--json", cwd=folder).stdout)["items"]
    # Of 15, two stay for the launched sweep, and ten for `sizes`, which is in conf and has as few milestones.
    sizes = plan(compose_cells(["+sweep=sizes"])).runs
    assert sum(item["path"].rpartition("/")[2] in sizes for item in listed) == 0
    assert len(listed) == 3
    assert len([run for run in store.runs() if run.signature in sizes]) == 12
    assert sweeps("gc", "--weights", "--yes", cwd=folder).returncode == 0
    assert {row["status"] for row in rows(folder, "sweep=nano")} == {"done"}


def test_why_names_the_keys(folder: Path) -> None:
    words = ["plan", *FEW, "grpo.learning_rate=1e-4", "midtrain.decay=linear", "--why", "nano/ce/seed1"]
    output = sweeps(*words, cwd=folder).stdout
    assert "pretrain nano/ce/seed1" in output
    assert ": done" in output.splitlines()[0]
    midtrain, grpo = output.split("midtrain nano/ce/seed1")[1].split("grpo nano/ce/seed1")
    assert [line.strip() for line in midtrain.splitlines()[1:]] == ["midtrain.decay: 'linear' here, 'cosine' there"]
    assert "grpo.learning_rate: 0.0001 here, 5e-05 there" in grpo
    assert "midtrain.decay: 'linear' here, 'cosine' there" in grpo
    one_stage = sweeps(*words[:-1], "nano/ce/seed1:midtrain", cwd=folder).stdout
    assert "grpo" not in one_stage


def test_why_names_a_raised_stage_version(folder: Path) -> None:
    store = Store.open(folder / "store")
    for stored in list(store.runs()):
        if stored.stage == "pretrain":
            other = stored.signature[::-1]
            write_sealed(stored.folder / "spec.json", stored.spec | {"version": 0, "signature": other})
            stored.folder.rename(stored.folder.with_name(other))
    output = sweeps("plan", *FEW, "--why", "nano/ce/seed1:pretrain", cwd=folder).stdout
    assert "pretrain.version: 3 here, 0 there" in output


def test_the_shell_completes_cells(made: Path) -> None:
    completion = {
        "_SHAPING_SWEEPS_COMPLETE": "complete_bash",
        "COMP_WORDS": "shaping-sweeps status nano/pre",
        "COMP_CWORD": "2",
    }
    program = Path(sys.executable).with_name("shaping-sweeps")
    finished = subprocess.run(
        [program], cwd=made, env={**FAKE, **completion}, capture_output=True, text=True, check=False
    )
    assert "nano/precision/seed1" in finished.stdout.split()


def test_plan_counts_what_runs_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweeps.commands.run", *FEW, "until=pretrain"]
    working = subprocess.Popen(command, cwd=tmp_path, env={**FAKE, "FAKE_SECONDS": "60"}, stdout=subprocess.DEVNULL)
    until(lambda: list(tmp_path.glob("store/pretrain/*/state.json")))
    line = sweeps("plan", *FEW, "until=pretrain", "--no-tree", cwd=tmp_path).stdout.splitlines()[2]
    assert line.split()[:6] == ["pretrain", "1", "1", "0", "1", "0"]
    working.send_signal(signal.SIGINT)
    assert working.wait(30) == 130


def test_cells_of_one_name_are_told_apart(tmp_path: Path) -> None:
    cells = json.loads(sweeps("plan", "grpo.learning_rate=1e-4,2e-4", *FEW, "--json", cwd=tmp_path).stdout)["cells"]
    assert list(cells) == ["nano/ce/seed1/grpo.learning_rate=0.0001", "nano/ce/seed1/grpo.learning_rate=0.0002"]
