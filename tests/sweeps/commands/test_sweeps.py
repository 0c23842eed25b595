"""The daily commands on a store whose stage runs are made by the real executor and train nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluation.samples import SAMPLES, write_rows
from pipelines.files import read_sealed, write_sealed
from sweeps.monitor.index import summaries
from sweeps.store.stage_runs import Store
from tests.in_process import Result, in_process
from tests.published import publish

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
FAKE = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'tests/sweeps/fake'}:{REPOSITORY}"}
FEW = ["pretrain.milestones=1", "midtrain.milestones=1", "grpo.milestones=1", "tracking=off",
       "evaluation.controls.matched=[]", "evaluation.controls.theory=[]"]  # fmt: skip


def process(module: str, *arguments: str, cwd: Path, **environment: str) -> Result:
    """Run a command in a new process, because its workers are forked from it and must not train."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**FAKE, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def run(*arguments: str, cwd: Path, **environment: str) -> Result:
    """Run `shaping-run` without training."""
    return process("sweeps.commands.run", *arguments, cwd=cwd, **environment)


def sweeps(*arguments: str, cwd: Path, **environment: str) -> Result:
    """Run `shaping-sweeps` without training."""
    if arguments[0] == "retry":
        result = process("sweeps.commands.shaping_sweeps", *arguments, cwd=cwd, **environment)
    else:
        result = in_process("sweeps.commands.shaping_sweeps", *arguments, cwd=cwd, environment={**FAKE, **environment})
    assert "Traceback" not in result.stderr, result.stderr
    return result


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


def rows(folder: Path, *filters: str) -> list[dict[str, Any]]:
    return json.loads(sweeps("status", "--json", *filters, cwd=folder).stdout)


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


def test_verify_reports_changed_files(folder: Path) -> None:
    fine = sweeps("verify", cwd=folder)
    assert (fine.returncode, "15 stage runs checked, 0 with faults" in fine.stdout) == (0, True)
    store = Store.open(folder / "store")
    changed, lost, swapped = [run for run in store.runs() if run.stage == "pretrain" and run.result]
    weights = next(changed.folder.glob("checkpoints/*/weights"))
    weights.write_text("other")
    next(lost.folder.glob("checkpoints/*/weights")).unlink()
    write_sealed(swapped.folder / "spec.json", swapped.spec | {"config": swapped.spec["config"] | {"seed": 99}})
    checked = sweeps("verify", "--json", cwd=folder)
    assert checked.returncode == 1
    faults = json.loads(checked.stdout)["faults"]
    assert set(faults) == {changed.signature, lost.signature, swapped.signature}
    assert "its sha256 is" in faults[changed.signature][0]
    assert "was published and is missing" in faults[lost.signature][0]
    assert "its content has the signature" in faults[swapped.signature][0]


def test_a_changed_checkpoint_is_refused_and_run_again_with_what_descends_from_it(folder: Path) -> None:
    """Only the last four bytes are others, and the file has its size and time."""
    store = Store.open(folder / "store")
    cell = {run.stage: run for run in store.runs() if run.spec["labels"]["objective"] == "precision"}
    weights = next(cell["midtrain"].folder.glob("checkpoints/*/weights"))
    times = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-4] + b"WXYZ")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.rmtree(cell["grpo"].folder)
    # What has to be trained from it is refused, by the name of the file and with the command that mends it.
    refused = run("objective=ce,precision", *FEW, cwd=folder)
    assert refused.returncode == 1
    assert f"FAILED grpo nano/precision/seed1: StageFailure: {weights}: its sha256 is" in refused.stdout
    assert "shaping-sweeps verify --redo" in refused.stdout
    # What was trained from it is named.
    checked = json.loads(sweeps("verify", "--json", cwd=folder).stdout)
    assert set(checked["faults"]) == {cell["midtrain"].signature}
    descendants = {run.signature for run in store.runs() if cell["midtrain"].signature in str(run.spec["parent"])}
    assert set(checked["descendants"]) >= descendants
    assert cell["pretrain"].signature not in checked["descendants"]
    # One command runs both again.
    redone = process("sweeps.commands.shaping_sweeps", "verify", "--redo", cwd=folder)
    assert redone.returncode == 0, redone.stdout + redone.stderr
    assert sweeps("verify", cwd=folder).returncode == 0
    assert {row["status"] for row in rows(folder, "objective=precision")} == {"done"}


def test_a_model_that_was_trained_again_with_other_weights_makes_its_descendants_doubtful(folder: Path) -> None:
    store = Store.open(folder / "store")
    midtrain = next(run for run in store.runs() if run.stage == "midtrain" and run.result)
    weights = next(midtrain.folder.glob("checkpoints/*/weights"))
    weights.write_text("trained on another machine")
    publish(midtrain.folder)
    checked = sweeps("verify", cwd=folder)
    assert checked.returncode == 1
    assert f"it was computed from other weights than midtrain/{midtrain.signature} has now" in checked.stdout


@pytest.mark.parametrize("name", ["state.json", "index.json"])
def test_a_broken_file_that_is_written_again_makes_nothing_train_again(folder: Path, name: str) -> None:
    store = Store.open(folder / "store")
    done = next(run for run in store.runs() if run.status == "done")
    path = store.root / name if name == "index.json" else done.folder / name
    for content in ("{", "[]", '{"runs": {"pretrain/x": 3}, "status": 5, "attempts": {}}'):
        path.write_text(content)
        assert f"done        {done.signature}" in sweeps("status", "--all", cwd=folder).stdout
        assert sweeps("show", done.signature, cwd=folder).returncode == 0
        checked = sweeps("verify", cwd=folder)
        assert "--redo" not in checked.stdout
        assert checked.returncode == (name == "state.json")
        assert ("delete only this file" in checked.stdout) == (name == "state.json")
    path.unlink(missing_ok=True)
    assert sweeps("verify", cwd=folder).returncode == 0


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"nonsense", b'{"benchmark": 1}\n'])
def test_measure_names_changed_samples(folder: Path, content: bytes) -> None:
    store = Store.open(folder / "store")
    first, second = [run for run in store.runs() if run.stage == "evaluate" and run.result][:2]
    rows_of = [{"benchmark": "B", "item": 0, "vote": 1, "answer": "1", "reward": 1.0, "length": 3, "question": "q"}]
    for evaluation in (first, second):
        write_rows(evaluation.folder / SAMPLES, rows_of)
        publish(evaluation.folder)
    (first.folder / SAMPLES).write_bytes(content)
    measured = sweeps("measure", "--json", cwd=folder)
    assert measured.returncode == 1
    assert f"{first.folder / SAMPLES}: its sha256 is" in measured.stderr
    assert {row["stage_run"] for row in json.loads(measured.stdout)} == {second.signature}


def test_a_folder_that_cannot_be_entered_stops_only_its_stage_run(folder: Path) -> None:
    """Permissions bind a process of root that gave up the right to ignore them."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv here")
    store = Store.open(folder / "store")
    closed = next(run for run in store.runs() if run.stage == "midtrain" and run.spec["labels"]["objective"] == "ce")
    # Only new enough to be read: what the index has read before is still right.
    (folder / "store" / "index.json").unlink(missing_ok=True)
    closed.folder.chmod(0)
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        for words, message in {
            ("sweeps.commands.run", "objective=ce,precision", *FEW): "it cannot be written (Permission denied)",
            ("sweeps.commands.shaping_sweeps", "verify"): "it cannot be read (Permission denied)",
            ("sweeps.commands.shaping_sweeps", "status"): "corrupt",
        }.items():
            command = [*bound, sys.executable, "-m", *words]
            ended = subprocess.run(command, cwd=folder, env=FAKE, capture_output=True, text=True, check=False)
            assert ended.returncode == 1, ended.stdout + ended.stderr
            assert "Traceback" not in ended.stdout + ended.stderr
            assert message in ended.stdout
        assert "1 with faults" in subprocess.run(
            [*bound, sys.executable, "-m", "sweeps.commands.shaping_sweeps", "verify"],
            cwd=folder, env=FAKE, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
    finally:
        closed.folder.chmod(0o755)
    assert sweeps("verify", cwd=folder).returncode == 0


def test_stage_runs_can_be_copied_to_another_store(made: Path, tmp_path: Path) -> None:
    """Their folders are copied as rsync does it, and they count as done."""
    copy = Store.create(tmp_path / "store")
    for stage in ("pretrain", "midtrain", "grpo", "evaluate"):
        shutil.copytree(made / "store" / stage, copy.root / stage)
    assert sweeps("verify", cwd=tmp_path).returncode == 0
    again = run("objective=ce,precision", *FEW, cwd=tmp_path)
    assert "Nothing to do: all 12 stage runs" in again.stdout


def test_gc_lists_first_and_keeps_what_a_named_sweep_needs(folder: Path) -> None:
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
    assert len(listed) == 13  # of 15, the two that the named sweep needs stay
    assert sweeps("gc", "--weights", "--yes", cwd=folder).returncode == 0
    assert {row["status"] for row in rows(folder, "sweep=nano")} == {"done"}


def test_the_index_can_be_deleted_and_damaged(folder: Path) -> None:
    store = Store.open(folder / "store")
    expected = summaries(store)
    index = store.root / "index.json"
    for damage in (index.unlink, lambda: index.write_text("{"), lambda: index.write_text('{"format": 0, "runs": 3}')):
        if index.exists():
            damage()
        assert summaries(store) == expected
    (one, *_) = [run for run in store.runs() if run.stage == "grpo"]
    time.sleep(2.1)
    assert summaries(store)[one.signature].status == "done"
    (one.folder / "result.json").unlink()
    assert summaries(store)[one.signature].status == "corrupt"  # as its state.json says that it was done
    assert "result.json: it was published and is missing" in sweeps("verify", cwd=folder).stdout
    write_sealed(one.folder / "state.json", one.state | {"status": "failed"})
    assert summaries(store)[one.signature].status == "failed"
    (one.folder / "spec.json").write_text("{")
    assert summaries(store)[one.signature].status == "corrupt"
    assert sweeps("status", cwd=folder).returncode == 1
    shutil.rmtree(one.folder)
    assert one.signature not in summaries(store)


def test_why_names_the_keys(folder: Path) -> None:
    words = ["plan", *FEW, "grpo.learning_rate=1e-4", "midtrain.decay=linear", "--why", "nano/ce/seed1"]
    output = sweeps(*words, cwd=folder).stdout
    assert "pretrain nano/ce/seed1" in output
    assert ": done" in output.splitlines()[0]
    midtrain, grpo = output.split("midtrain nano/ce/seed1")[1].split("grpo nano/ce/seed1")
    assert [line.strip() for line in midtrain.splitlines()[1:]] == ["midtrain.decay: 'linear' here, 'cosine' there"]
    assert "grpo.learning_rate: 0.0001 here, 0.0003 there" in grpo
    assert "midtrain.decay: 'linear' here, 'cosine' there" in grpo
    one_stage = sweeps(*words[:-1], "nano/ce/seed1:midtrain", cwd=folder).stdout
    assert "grpo" not in one_stage


def test_why_names_a_raised_stage_version(folder: Path) -> None:
    store = Store.open(folder / "store")
    for run in list(store.runs()):
        if run.stage == "pretrain":
            other = run.signature[::-1]
            write_sealed(run.folder / "spec.json", run.spec | {"version": 0, "signature": other})
            run.folder.rename(run.folder.with_name(other))
    output = sweeps("plan", *FEW, "--why", "nano/ce/seed1:pretrain", cwd=folder).stdout
    assert "pretrain.version: 2 here, 0 there" in output


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


def test_a_full_disk_is_named_and_free_space_is_enough_to_resume(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root may mount the small disk that this fills")
    try:
        failed = run("seed=1", *FEW, "store=disk/store", cwd=tmp_path, FAKE_BYTES="900000")
        assert failed.returncode == 1
        assert "No space left on device; free some space" in failed.stderr + failed.stdout
        assert "Traceback" not in failed.stderr + failed.stdout
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert run("seed=1", *FEW, "store=disk/store", cwd=tmp_path, FAKE_BYTES="900000").returncode == 0
        assert "0 with faults" in sweeps("verify", "--store", "disk/store", cwd=tmp_path).stdout
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
