"""`shaping-run` as a user types it: a tiny study that is really trained, sharing, kills, failures and mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.store.stage_runs import Store
from tests.conftest import SMALL

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]


def processes_in(folder: Path) -> list[int]:
    """Returns the live processes whose working directory is `folder`: a command, its workers and their children."""
    process_ids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "cwd") == str(folder) and "Z" not in (entry / "stat").read_text().split()[2]:
                    process_ids.append(int(entry.name))
            except OSError:
                continue
    return process_ids


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_every_stage_publishes_its_files(study: Path) -> None:
    runs = list(Store.open(study / "store").runs())
    count = {stage: sum(run.stage == stage for run in runs) for stage in ("pretrain", "midtrain", "grpo", "evaluate")}
    assert count == {"pretrain": 2, "midtrain": 2, "grpo": 2, "evaluate": 8 + 3}  # three controls of ce
    for run in runs:
        assert run.status == "done"
        assert run.result is not None
        assert {"shaping", "torch", "python"} <= set(run.spec["environment"])
        assert run.ledger()
        for name in run.result["files"]:
            assert (run.folder / name).is_file()
        if run.stage == "evaluate":
            measured = {m["benchmark"] for m in run.result["measurements"]}
            assert measured == set(run.spec["config"]["evaluation"]["benchmarks"]) >= {"Docstrings"}
        else:
            assert any(name.endswith("model.safetensors") for name in run.result["files"])
    # One W&B run for each stage run that trains; evaluations join them when they are sent.
    tracked = {path.name.rsplit("-", 1)[-1] for path in (study / "store" / "wandb").glob("offline-run-*")}
    assert tracked == {run.signature for run in runs if run.stage != "evaluate"}


def test_the_same_command_trains_nothing(study: Path, shaping_run: Command) -> None:
    again = shaping_run("-m", "objective=precision,ce", *SMALL, cwd=study)
    assert again.returncode == 0
    assert "Nothing to do: all 17 stage runs" in again.stdout


def test_only_what_differs_is_trained(study: Path, shaping_run: Command) -> None:
    """Another temperature of RL starts from the mid-trained model of the store."""
    finished = shaping_run("objective=ce", *SMALL, "grpo.temperature=0.9", "tracking=off", cwd=study)
    assert finished.returncode == 0, finished.stderr
    assert "2 stage runs done" in finished.stdout
    assert "5 were done before" in finished.stdout


def test_two_runs_of_one_spec_are_bit_for_bit_equal(study: Path, shaping_run: Command, tmp_path: Path) -> None:
    finished = shaping_run("objective=precision", *SMALL, "tracking=off", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    theirs = Store.open(study / "store")
    for run in Store.open(tmp_path / "store").runs():
        other = theirs.run(run.stage, run.signature)
        assert run.result is not None
        assert other.result is not None
        assert run.result["measurements"] == other.result["measurements"]
        weights = [name for name in run.result["files"] if name.endswith(".safetensors")]
        assert [run.result["files"][w] for w in weights] == [other.result["files"][w] for w in weights]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps.commands.run", "objective=ce,diversity", *SMALL, "tracking=off", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def attempts(store: Store) -> dict[str, int]:
    return {run.signature: len(run.state.get("attempts", [])) for run in store.runs()}


def test_kill_9_in_the_middle_loses_only_what_was_unfinished(tmp_path: Path, shaping_run: Command) -> None:
    process = start(tmp_path)
    done = lambda: list(tmp_path.glob("store/pretrain/*/result.json"))  # noqa: E731
    running = lambda: list(tmp_path.glob("store/midtrain/*/state.json"))  # noqa: E731
    until(lambda: done() and running())
    for pid in [process.pid, *processes_in(tmp_path)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    until(lambda: not processes_in(tmp_path), 10)
    store = Store.open(tmp_path / "store")
    finished_before = {run.signature for run in store.runs() if run.status == "done"}
    unfinished = {run.signature for run in store.runs()} - finished_before
    assert finished_before
    again = shaping_run("objective=ce,diversity", *SMALL, "tracking=off", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    counts = attempts(store)
    assert len(counts) == 17
    assert all(counts[signature] == 1 for signature in finished_before)
    assert all(counts[signature] <= 2 for signature in unfinished)


def test_killing_the_command_leaves_no_worker(tmp_path: Path) -> None:
    process = start(tmp_path, "pretrain.tokens=4096000", "pretrain.milestones=1")  # minutes, if it went on
    until(lambda: list(tmp_path.glob("store/pretrain/*/work-*/ledger.jsonl")))
    assert len(processes_in(tmp_path)) > 1, "there is no worker to be left behind"
    process.kill()
    process.wait()
    deadline = time.time() + 15
    while processes_in(tmp_path) and time.time() < deadline:
        time.sleep(0.05)
    assert processes_in(tmp_path) == []


def test_ctrl_c_stops_cleanly_and_names_the_way_to_resume(tmp_path: Path) -> None:
    process = start(tmp_path, "pretrain.tokens=4096000", "pretrain.milestones=1")
    until(lambda: list(tmp_path.glob("store/pretrain/*/work-*/ledger.jsonl")))
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again to resume" in output
    assert "Traceback" not in output
    until(lambda: not processes_in(tmp_path), 10)
    statuses = {run.status for run in Store.open(tmp_path / "store").runs()}
    assert statuses == {"interrupted"}


def test_a_failure_blocks_only_what_needs_it(study: Path, shaping_run: Command, tmp_path: Path) -> None:
    """A rate at which the loss blows up fails its own chain; the other cell finishes."""
    rates = "pretrain.learning_rate=1e-3,1e30"
    finished = shaping_run(
        rates, *SMALL, "until=pretrain", "midtrain.final_learning_rate=1e-4", "tracking=off", cwd=tmp_path
    )
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert "FloatingPointError" in finished.stdout
    statuses = [run.status for run in Store.open(tmp_path / "store").runs()]
    assert sorted(statuses) == ["done", "done", "done", "failed"]
    log = Path(finished.stdout.split("log: ")[1].split()[0])
    assert "FloatingPointError" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective=precison"], "did you mean 'precision'"),
        (["objective.beta=nan"], "objective.beta=nan: it must be a finite number"),
        (["store=/proc/store"], "store=/proc/store: it cannot be written"),
        (["hydra/launcher=slrm"], "hydra/launcher=slrm: unknown option"),
        (["hydra.launcher.workers=-1"], "hydra.launcher.workers=-1"),
        (["hydra.launcher.worker=1"], "did you mean 'hydra.launcher.workers'"),
        (["seed=[1"], "seed=[1: it is not of the form key=value"),
        (["seed"], "seed: it is not of the form key=value"),
        (["store=one,two"], "a command can write to only one store"),
        (["hydra.launcher.partition=gpu"], "it is a key of hydra/launcher=slurm; add hydra/launcher=slurm"),
        (["hydra/launcher=slurm", "hydra.launcher.workers=2"], "it is a key of hydra/launcher=local"),
        (["hydra/launcher=slurm", "hydra.launcher.grpo.nodse=2"], "did you mean 'hydra.launcher.grpo.nodes'"),
        (["hydra/launcher=slurm", "hydra.launcher.extra.wckey=us"], "+hydra.launcher.extra.wckey=... adds it"),
        (["pretrain.mixture.chian3=1"], "did you mean 'pretrain.mixture.chain3'"),
        (["evaluation.benchmarks.Chain3.items=1"], "did you mean 'evaluation.benchmarks.Chain-3'"),
        (["--debg"], "--debg: unknown flag; did you mean '--debug'"),
        (["--cfg=jbo"], "--cfg/-c: invalid choice: 'jbo'"),
        (["--run"], "--run: shaping-run always runs what is missing"),
        (["--resolve"], "add --cfg=job"),
        (["--cfg=job", "--info"], "--cfg, --info: they cannot be combined"),
        (["seed=1", "--cfg=job", "seed=2"], "seed=2: write all overrides together"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, shaping_run: Command
) -> None:
    finished = shaping_run(*arguments, cwd=tmp_path)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_slurm_is_refused_before_anything_is_written(
    tmp_path: Path, shaping_run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finished = shaping_run("hydra/launcher=slurm", cwd=tmp_path)
    assert finished.returncode == 2
    assert "hydra/launcher=slurm: sbatch is not installed on this machine" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_before_the_sentence(tmp_path: Path, shaping_run: Command) -> None:
    finished = shaping_run("--debug", "objective=c\x1b]0;owned\x07", cwd=tmp_path)
    assert finished.returncode == 2
    traceback, _, sentence = finished.stderr.rpartition("shaping-run: ")
    assert traceback.startswith("Traceback")
    assert "objective=c\\x1b]0;owned\\x07" in sentence
    assert not set(finished.stderr) & set("\x1b\x07")


def test_a_changed_token_cache_is_named_and_built_again(study: Path, tmp_path: Path, shaping_run: Command) -> None:
    shutil.copytree(study / "store" / "cache", tmp_path / "store" / "cache")
    shutil.copy(study / "store" / "STORE.json", tmp_path / "store")
    (tokens,) = (tmp_path / "store" / "cache").glob("*/tokens.npz")
    whole = tokens.read_bytes()
    tokens.write_bytes(whole + b"x")
    finished = shaping_run(*SMALL, "until=pretrain", "tracking=off", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert tokens.read_bytes() == whole
    logs = "".join(path.read_text() for path in (tmp_path / "store" / "jobs").glob("*/*log.err"))
    assert "tokens.npz: its sha256 is" in logs


def test_help_lists_the_options_and_cfg_shows_the_cell(tmp_path: Path, shaping_run: Command) -> None:
    help_text = shaping_run("--help", cwd=tmp_path).stdout
    for expected in (
        "objective: ce, diversity, head_reward, precision, tail_penalty",
        "+sweep=nano",
        "hydra/launcher",
        "model: 100M, 10B-A0.5B, 150M, 1B, 20M, 430M-A150M, 4B, 5B-A0.3B, micro, micro-moe, mini, nano, nano-moe, tiny",
    ):
        assert expected in help_text
    composed = shaping_run("--cfg", "job", "objective=precision", cwd=tmp_path).stdout
    assert "beta: -0.25" in composed
    assert list(tmp_path.iterdir()) == []


def test_the_plan_as_json(study: Path, shaping_run: Command) -> None:
    finished = shaping_run(
        "plan", "objective=ce,diversity", *SMALL, "--json", cwd=study, module="sweeps.commands.shaping_sweeps"
    )
    plan = json.loads(finished.stdout)
    statuses = [run["status"] for run in plan["stage_runs"]]
    assert (statuses.count("done"), statuses.count("missing")) == (7, 7 + 3)  # of ce three controls


def test_show_prints_one_stage_run(study: Path, shaping_run: Command) -> None:
    signature = next(study.glob("store/grpo/*")).name
    finished = shaping_run("show", signature[:10], cwd=study, module="sweeps.commands.shaping_sweeps")
    assert json.loads(finished.stdout)["signature"] == signature
    missing = shaping_run("show", "zzz", cwd=study, module="sweeps.commands.shaping_sweeps")
    assert missing.returncode == 2
    assert "zzz: no signature begins so" in missing.stderr
