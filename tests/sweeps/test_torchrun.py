"""A cell by two ranks that torchrun started, through the store: shared batches, sharded weights, one writer; and the
same result as one process, within the order of summation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.store import Store
from tests.conftest import SMALL

pytestmark = pytest.mark.slow

CELL = [
    *SMALL,
    "tracking=off",
    "until=midtrain",
    "model.experts=4",
    "model.active_experts=2",
    "compute.strategy=fsdp",
    "compute.micro_batch_tokens=256",
    "evaluation.benchmarks={Docstrings:{kind:text,group:text,task:text,items:4}}",
    "pretrain.milestones=1",
]


def torchrun(folder: Path, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
         "-m", "sweeps.torchrun", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_ranks_share_a_cell(tmp_path: Path) -> None:
    finished = torchrun(tmp_path, *CELL)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    store = Store.open(tmp_path / "store")
    (folder,) = (tmp_path / "store" / "pretrain").iterdir()
    pretrain = store.run("pretrain", folder.name)
    assert pretrain.status == "done"
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {"expert_load_max", "router_bias_span", "step_seconds_p50", "memory_gib"} <= rows[-1].keys()
    card = (folder / "checkpoints" / "step-000008" / "README.md").read_text()
    assert folder.name in card
    assert "beta 0.0" in card
    assert sorted(p.name for p in (tmp_path / "store").iterdir() if p.name in ("pretrain", "midtrain", "evaluate")) == [
        "evaluate", "midtrain", "pretrain",
    ]  # fmt: skip
    again = torchrun(tmp_path, *CELL, ranks=1)
    assert again.returncode == 0, again.stderr  # all is done
    other = torchrun(tmp_path, *CELL, "until=pretrain", f"store={tmp_path / 'one'}", ranks=1)
    assert other.returncode == 0, other.stderr
    alone = [json.loads(line) for line in next((tmp_path / "one").glob("pretrain/*/ledger.jsonl")).open()]
    assert [row["loss"] for row in alone] == pytest.approx([row["loss"] for row in rows], rel=1e-4)


def test_a_batch_that_does_not_divide_is_said_before_anything_is_written(tmp_path: Path) -> None:
    finished = torchrun(tmp_path, *CELL, "compute.micro_batch_tokens=null", ranks=3)
    assert finished.returncode != 0
    assert "its 16 rows of 64 cannot be shared by 3 ranks; rank counts that fit: 1, 2, 4, 8, 16" in finished.stderr
    assert not (tmp_path / "store").exists()
