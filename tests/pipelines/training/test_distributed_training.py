"""Two gloo processes train as one does: copies (DDP), shards (FSDP2) and both (HSDP); dense models and mixtures;
accumulation; activation checkpointing; and a trainer state goes on in another number of processes.

Processes are started as torchrun starts them, by environment variables.
"""

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.configuration.budgets import PretrainConfig
from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.data import DataConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.errors import Interrupted
from pipelines.ledger import Ledger
from pipelines.models.causal_lm import build_model
from pipelines.training import next_token
from pipelines.training.next_token import train
from shaping import Objective
from tests.forked import forked

pytestmark = pytest.mark.slow

DENSE = ModelConfig("dense", layers=2, d_model=16, ffn=32, heads=2, kv_heads=1, head_dim=8)
MIXTURE = ModelConfig("moe", layers=2, d_model=16, ffn=16, heads=2, kv_heads=1, head_dim=8, experts=4, active_experts=2)
BUDGET = PretrainConfig(
    tokens=128 * 6,
    batch_tokens=128,
    sequence_length=16,
    learning_rate=1e-2,
    rope_base=1e4,
    mixture={"chain3": 2.0, "boolean": 1.0},
    milestones=2,
    warmup_steps=2,
)
OBJECTIVE = Objective(-0.25, lam_tail=-0.1, top_k=8)

RUNS: dict[str, tuple[ModelConfig, ComputeConfig]] = {
    "ddp, accumulation": (DENSE, ComputeConfig(strategy="ddp", micro_batch_tokens=32)),
    "fsdp": (DENSE, ComputeConfig(strategy="fsdp")),
    "fsdp, checkpointing": (
        DENSE,
        ComputeConfig(strategy="fsdp", activation_checkpointing="selective", micro_batch_tokens=32),
    ),
    "fsdp, fused loss": (DENSE, ComputeConfig(strategy="fsdp", activation_checkpointing="selective")),
    "hsdp": (DENSE, ComputeConfig(strategy="hsdp", shard_ranks=2)),
    "ddp, experts": (MIXTURE, ComputeConfig(strategy="ddp", micro_batch_tokens=32)),
    "fsdp, experts": (MIXTURE, ComputeConfig(strategy="fsdp", activation_checkpointing="full")),
}


def run(corpus: Path, folder: Path, name: str, rank: int, ranks: int, stop_after: int = 0) -> None:
    """Train as one of `ranks`; rank 0 leaves ledger and last weights in `folder`."""
    shape, compute = RUNS[name]
    next_token.CHUNK_BYTES = 0 if "fused" in name else 2**25
    own = folder if rank == 0 else folder / f"rank{rank}"
    own.mkdir(parents=True, exist_ok=True)
    opened = Corpus(corpus)
    model = build_model(shape, opened.tokenizer, 1e4, seed=3)
    asked: list[int] = []

    def interrupted() -> bool:
        asked.append(1)
        return rank == ranks - 1 and len(asked) == stop_after

    def keep(model: Any, step: int, weights: Any) -> None:
        torch.save(weights or {n: t.clone() for n, t in model.state_dict().items()}, folder / f"{step}.pt")

    with Ledger(own) as ledger, contextlib.suppress(Interrupted):
        train(
            model, OBJECTIVE, BUDGET, opened, 7, ledger, keep, folder / "resume", interrupted, rank, ranks, 1, compute
        )


def work(rank: int, ranks: int, port: int, corpus: Path, jobs: list[tuple[Path, str, int]]) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
    for folder, name, stop_after in jobs:
        run(corpus, folder, name, rank, ranks, stop_after)


def together(ranks: int, corpus: Path, jobs: list[tuple[Path, str, int]]) -> None:
    """Do `jobs` in `ranks` new processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [forked.Process(target=work, args=(r, ranks, port, corpus, jobs)) for r in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * ranks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run in one process and in two; and some that change the number of processes halfway."""
    folder = tmp_path_factory.mktemp("distributed")
    corpus = prepare(DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8), folder / "cache").folder
    moves = [("fsdp", 1, 2), ("fsdp, experts", 2, 1), ("ddp, accumulation", 2, 2)]
    one: list[tuple[Path, str, int]] = [(folder / "1" / name, name, 0) for name in RUNS]
    two = [(folder / "2" / name, name, 0) for name in RUNS]
    halves = {n: [(folder / "moved" / name, name, 3) for name, first, _ in moves if first == n] for n in (1, 2)}
    rests = {n: [(folder / "moved" / name, name, 0) for name, _, then in moves if then == n] for n in (1, 2)}
    together(2, corpus, [*two, *halves[2]])
    together(1, corpus, [*one, *halves[1], *rests[1]])
    together(2, corpus, rests[2])
    return folder


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(trained: Path, name: str) -> None:
    one, two = trained / "1" / name, trained / "2" / name
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    weights, expected = (torch.load(place / "6.pt") for place in (two, one))
    assert set(expected) - set(weights) <= {"lm_head.weight"}  # tied: gathered once
    for key, value in weights.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("name", "other"), [("fsdp", "1"), ("fsdp, experts", "1"), ("ddp, accumulation", "2")])
def test_a_trainer_state_goes_on_in_another_number_of_processes(trained: Path, name: str, other: str) -> None:
    """Three steps in one number of processes, three in another (or the same): the curve of a run in one go."""
    moved, whole = losses(trained / "moved" / name), losses(trained / other / name)
    if other == "2":
        assert moved == whole
    assert moved == pytest.approx(whole, rel=2e-5)
