"""Gradients meet once an optimizer step, however many micro-batches it has: collectives counted on two processes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile

from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.data import DataConfig
from pipelines.data.corpus import prepare
from pipelines.stage_context import Ranks
from tests.pipelines.grpo import test_distributed_grpo as grpo
from tests.pipelines.training import test_distributed_training as training
from tests.ranks import run_ranks

pytestmark = pytest.mark.ci_only

REDUCTIONS = ("allreduce", "reduce_scatter")

MANY, ONE = (16, 24), (64, 4096)
"""Tokens of a micro-batch in a token stage and in RL: several of them in a step, or one."""


def add_runs() -> None:
    """Add the runs of this file by their names; in ranks only, so that the other files' tests keep theirs."""
    for strategy in ("ddp", "fsdp", "hsdp"):
        for tokens, rl_tokens in (MANY, ONE):
            compute = ComputeConfig(strategy=strategy, shard_ranks=1)
            training.RUNS[f"{strategy} {tokens}"] = (training.DENSE, replace(compute, micro_batch_tokens=tokens))
            changes = {"micro_batch_tokens": rl_tokens, "start_divergence": False}
            grpo.RUNS[f"{strategy} {rl_tokens}"] = (grpo.DENSE, compute, changes)


def counted(ranks: Ranks, work: Callable[..., None], *arguments: Any) -> None:
    """Do `work`, and write to the job's folder how often gradients were summed over ranks."""
    add_runs()
    with profile() as seen:
        work(ranks, *arguments)
    names = [event.name for event in seen.events() or () if event.name.startswith("c10d::")]
    count = sum(any(reduction in name for reduction in REDUCTIONS) for name in names)
    if ranks.rank == 0:
        (arguments[-1].folder / "reductions.json").write_text(json.dumps(count))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
def test_token_stages(strategy: str, tmp_path: Path) -> None:
    """Four micro-batches a step and one: as many sums, and the same weights."""
    corpus = prepare(DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8), tmp_path / "cache").folder
    counts, weights = [], []
    for tokens, _ in (MANY, ONE):
        job = training.Job(tmp_path / str(tokens), f"{strategy} {tokens}")
        assert run_ranks(2, counted, training.train_as, corpus, job) == [0, 0]
        counts.append(json.loads((job.folder / "reductions.json").read_text()))
        weights.append(torch.load(job.folder / "6.pt"))
    assert counts[0] == counts[1] > 0
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_rl(strategy: str, tmp_path: Path) -> None:
    corpus = prepare(DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8), tmp_path / "cache").folder
    questions = [{"question": f"q {i}", "answer": "yes", "format": "coin"} for i in range(40)]
    (corpus.parent / "coin.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    counts, weights = [], []
    for _, tokens in (MANY, ONE):
        job = grpo.Job(tmp_path / str(tokens), f"{strategy} {tokens}")
        assert run_ranks(2, registered, corpus, job) == [0, 0]
        counts.append(json.loads((job.folder / "reductions.json").read_text()))
        weights.append(torch.load(job.folder / f"{grpo.STEPS}.pt"))
    assert counts[0] == counts[1] > 0
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=2e-4)


def registered(ranks: Ranks, corpus: Path, job: grpo.Job) -> None:
    grpo.register()
    counted(ranks, grpo.run_as, corpus, job)
