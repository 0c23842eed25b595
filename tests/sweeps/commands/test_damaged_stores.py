"""Changed, broken, unreadable and half written files of a store are named, and only what they concern is done again."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.evaluation.samples import SAMPLES, write_rows
from pipelines.files import write_sealed
from sweeps.monitor.index import summaries
from sweeps.store.stage_runs import Store
from tests.published import publish
from tests.sweeps.commands.untrained import FAKE, FEW, process, rows, run, sweeps

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("stage", ["pretrain", "evaluate"])
def test_a_disk_that_was_full_for_a_moment_is_named_with_the_way_out(stage: str, tmp_path: Path) -> None:
    """A ledger's row did not fit, and there was space again when the attempt was recorded."""
    failed = run("seed=1", *FEW, "until=pretrain", cwd=tmp_path, FAKE_FULL=f'"stage": "{stage}"')
    assert failed.returncode == 1
    (row,) = [row for row in rows(tmp_path) if row["status"] == "failed"]
    assert (row["stage"], "ledger.jsonl: No space left on device; free some space and run" in row["error"]) == (
        stage,
        True,
    )
    assert run("seed=1", *FEW, "until=pretrain", cwd=tmp_path).returncode == 0


def test_what_another_command_s_worker_left_is_removed_though_it_lived_when_this_command_began(tmp_path: Path) -> None:
    """It was killed between publishing and tidying, while this command ran something else."""
    few = [*FEW, "until=pretrain"]
    assert run("seed=1", *few, cwd=tmp_path).returncode == 0
    done = next(run for run in Store.open(tmp_path / "store").runs() if run.stage == "pretrain")
    code = (
        f"import pathlib, time, sweeps.store.leases as l; l.claim(pathlib.Path({str(done.folder)!r})); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], env=FAKE)
    other = subprocess.Popen(
        [sys.executable, "-m", "sweeps.commands.run", "seed=1,2", *few],
        cwd=tmp_path, env={**FAKE, "FAKE_SECONDS": "2"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("store/pretrain/*/work-*/ledger.jsonl"))) < 1:  # of seed 2, which has begun
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (done.folder / "leases").exists()
    worker.kill()
    worker.wait()
    assert other.wait(60) == 0
    assert not (done.folder / "leases").exists()
    assert list(done.folder.glob("work-*")) == []
