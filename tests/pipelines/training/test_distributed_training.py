"""Two gloo processes train like one: copies (DDP), shards (FSDP2) and both (HSDP); dense models and mixtures;
accumulation; activation checkpointing; and a trainer state that another number of processes resumes.
"""

import contextlib
import json
from dataclasses import dataclass
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
from pipelines.stage_context import Ranks, StageContext
from pipelines.training import causal_loss, parallel
from pipelines.training.train import train
from pipelines.training.weight_stream import weight_stream
from shaping import Objective
from tests.ranks import run_ranks

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


@dataclass(frozen=True)
class Job:
    """A training that all processes share; it stops after the step `stop_after`, or at the end if that is 0."""

    folder: Path
    name: str
    stop_after: int = 0


@dataclass(frozen=True)
class SavedWeights(StageContext):
    """A context whose milestones are files of whole weights, under their names in a checkpoint."""

    def save_milestone(self, model: Any, step: int, weights: Any = None) -> None:
        weights = weights or weight_stream(model, tied_output=False)
        torch.save({name: tensor.clone() for name, tensor in weights}, self.folder / f"{step}.pt")


def train_as(ranks: Ranks, corpus_folder: Path, job: Job) -> None:
    """Train as one of `ranks`; rank 0 writes the ledger and the weights in `job.folder`."""
    shape, compute = RUNS[job.name]
    causal_loss.CHUNK_BYTES = 0 if "fused" in job.name else 2**25
    output = job.folder / f"rank{ranks.rank}" if ranks.rank else job.folder
    output.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(corpus_folder)
    deferred = parallel.is_sharded(compute, ranks.tasks)
    model = build_model(shape, corpus.tokenizer, 1e4, seed=3, deferred=deferred)
    steps: list[int] = []

    def interrupted() -> bool:
        steps.append(1)
        return ranks.rank == ranks.tasks - 1 and len(steps) == job.stop_after

    with Ledger(output) as ledger, contextlib.suppress(Interrupted):
        context = SavedWeights(
            job.folder, corpus, ledger, seed=7, compute=compute, ranks=ranks, interrupted=interrupted
        )
        train(model, OBJECTIVE, BUDGET, context=context)


def train_all(ranks: Ranks, corpus: Path, jobs: list[Job]) -> None:
    for job in jobs:
        train_as(ranks, corpus, job)


def run_processes(count: int, corpus: Path, jobs: list[Job]) -> None:
    """Do `jobs` in `count` new processes."""
    assert run_ranks(count, train_all, corpus, jobs) == [0] * count


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run in one process and in two, and some that change the number of processes halfway."""
    folder = tmp_path_factory.mktemp("distributed")
    corpus = prepare(DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8), folder / "cache").folder
    one, two = ([Job(folder / count / name, name) for name in RUNS] for count in ("1", "2"))
    # Name, and the number of processes of the first three steps and of the last three.
    moves = [("fsdp", 1, 2), ("fsdp, experts", 2, 1), ("ddp, accumulation", 2, 2)]
    moved = folder / "moved"
    starts = {n: [Job(moved / name, name, 3) for name, first, _ in moves if first == n] for n in (1, 2)}
    ends = {n: [Job(moved / name, name) for name, _, last in moves if last == n] for n in (1, 2)}
    run_processes(2, corpus, [*two, *starts[2]])
    run_processes(1, corpus, [*one, *starts[1], *ends[1]])
    run_processes(2, corpus, ends[2])
    return folder


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    return [row["loss"] for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_like_one(trained: Path, name: str) -> None:
    one, two = trained / "1" / name, trained / "2" / name
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    weights, expected = (torch.load(folder / "6.pt") for folder in (two, one))
    assert set(expected) == set(weights)
    for key, value in weights.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("name", "other"), [("fsdp", "1"), ("fsdp, experts", "1"), ("ddp, accumulation", "2")])
def test_another_number_of_processes_resumes_a_trainer_state(trained: Path, name: str, other: str) -> None:
    """Three steps in one number of processes, three in another (or the same): the losses of an uninterrupted run."""
    moved, whole = losses(trained / "moved" / name), losses(trained / other / name)
    if other == "2":
        assert moved == whole
    assert moved == pytest.approx(whole, rel=2e-5)
