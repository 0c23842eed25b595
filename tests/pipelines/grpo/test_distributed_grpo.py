"""Two gloo processes do the RL of one: copies (DDP), shards (FSDP2) and both (HSDP), dense models and mixtures.

Rollouts of most runs are fixed, a function of the seed and the number of a sample, because the last bits of a sum could
decide a token that the model samples itself.
"""

import contextlib
import json
import os
import signal
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.data import DataConfig
from pipelines.configuration.engines import ENGINES
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.errors import Interrupted
from pipelines.grpo import train_grpo
from pipelines.ledger import Ledger
from pipelines.models.causal_lm import build_model
from pipelines.rollouts import Finished, Rollouts, Sampling, never
from pipelines.stage_context import Ranks, StageContext
from pipelines.tasks.formats import FORMATS, Format
from pipelines.training import parallel
from pipelines.training.weight_stream import weight_stream
from pipelines.verifiers import VERIFIERS, Verifier
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

DENSE = ModelConfig("dense", layers=2, d_model=16, ffn=32, heads=2, kv_heads=1, head_dim=8)
MIXTURE = ModelConfig("moe", layers=2, d_model=16, ffn=16, heads=2, kv_heads=1, head_dim=8, experts=4, active_experts=2)
STEPS = 4


def coin(answer: str, reference: str) -> float:
    """Right for about half of all texts; never where the question asks for that."""
    return float(reference != "never" and zlib.crc32(answer.encode()) & 1)


class FixedEngine:
    """Responses of 1 to 8 tokens, some of them cut, that depend on nothing but seed and number."""

    exact = True
    checkpoint_names = False

    def __init__(self, model: Any, longest: object) -> None:
        self._end, self._vocabulary = model.config.eos_token_id, model.config.vocab_size

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        share: range | None = None,
        interrupted: Callable[[], bool] = never,
        finished: Finished | None = None,
    ) -> Rollouts:
        if interrupted():
            raise Interrupted("in the rollouts")
        share = range(len(prompts) * n) if share is None else share
        width = sampling.max_new_tokens
        tokens, log_probs = torch.full((len(share), width), self._end), torch.zeros(len(share), width)
        lengths, stopped = torch.zeros(len(share), dtype=torch.int64), torch.zeros(len(share), dtype=torch.bool)
        for row, number in enumerate(share):
            rng = np.random.default_rng([*seed, number])
            size, ends = int(rng.integers(1, width + 1)), bool(rng.random() < 0.8)
            size = size if ends else width
            tokens[row, :size] = torch.from_numpy(rng.integers(1, self._vocabulary, size))
            if ends:
                tokens[row, size - 1] = self._end
            log_probs[row, :size] = torch.from_numpy(-rng.exponential(2.0, size))
            lengths[row], stopped[row] = size, ends
        return Rollouts(tokens, log_probs, lengths, stopped)

    def take(self, weights: object) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class FailingEngine(FixedEngine):
    """Fails on the second rank, in the second step."""

    calls = 0

    def generate(self, *arguments: Any, **options: Any) -> Rollouts:
        FailingEngine.calls += 1
        if FailingEngine.calls > 2 and os.environ["RANK"] == "1":
            raise ValueError("the sampler broke")
        return super().generate(*arguments, **options)


SETTINGS: dict[str, Any] = {
    "steps": STEPS, "prompts": 4, "samples": 4, "max_new_tokens": 8, "milestones": 2, "learning_rate": 1e-3,
    "held_out_every": 2, "held_out_problems": 5, "engine": "fixed", "micro_batch_tokens": 48, "collapse": "off",
}  # fmt: skip
DDP, FSDP = ComputeConfig(strategy="ddp"), ComputeConfig(strategy="fsdp")
HSDP = ComputeConfig(strategy="hsdp", shard_ranks=1)

Run = tuple[ModelConfig, ComputeConfig, dict[str, Any]]
ONE_STEP = {"steps": 1, "milestones": 1}
# Half of the responses are cut and left out, so a single row is learned from, and the other rank has none.
ONE_ROW = {"prompts": 1, "samples": 2, "overlong": "filter", "resample_rounds": 8}

QUICK: dict[str, Run] = {
    "ddp": (DENSE, DDP, {}),
    "fsdp, minibatches, KL": (
        DENSE, FSDP, {"minibatches": 2, "epochs": 2, "kl_weight": 0.1, "leftovers": "keep", "overlong": "penalty"}
    ),
    "hsdp, sampling": (MIXTURE, HSDP, {"engine": "transformers", **ONE_STEP}),
    "fsdp, one row": (DENSE, FSDP, ONE_ROW),
}  # fmt: skip
THOROUGH: dict[str, Run] = {
    "fsdp": (DENSE, FSDP, {}),
    "hsdp": (DENSE, HSDP, {}),
    "ddp, minibatches": (DENSE, DDP, {"minibatches": 3, "epochs": 2, "leftovers": "keep", "resample_rounds": 4}),
    "fsdp, checkpointing, experts": (
        MIXTURE, replace(FSDP, activation_checkpointing="full", micro_batch_tokens=24), {"loss": "sequence"}
    ),
    "ddp, experts": (MIXTURE, DDP, {"start_divergence": False, "loss": "constant"}),
    "ddp, one row": (DENSE, DDP, ONE_ROW),
    "fsdp, nothing": (DENSE, FSDP, {"tasks": ["never.jsonl"]}),
    "ddp, sampling": (DENSE, DDP, {"engine": "transformers", **ONE_STEP}),
    "fsdp, sampling": (DENSE, FSDP, {"engine": "transformers", **ONE_STEP}),
    "fsdp, replica": (DENSE, FSDP, {"engine": "replica", "epochs": 2, **ONE_STEP}),
    "fsdp, routing replay": (MIXTURE, FSDP, {"engine": "transformers", "routing_replay": True, **ONE_STEP}),
    "fsdp, mixed": (DENSE, FSDP, {"precision": "bfloat16-mixed", "importance_cap": 0.0}),
    "ddp, mixed": (DENSE, DDP, {"precision": "bfloat16-mixed", "importance_cap": 0.0}),
}  # fmt: skip
RUNS = QUICK | THOROUGH


@dataclass(frozen=True)
class Job:
    """A run that all processes share; on the last rank it is interrupted or killed in the rollouts after a step."""

    folder: Path
    name: str
    stop_after: int = 0
    kill: bool = False


@dataclass(frozen=True)
class SavedWeights(StageContext):
    """A context whose milestones are files of whole weights, under their names in a checkpoint."""

    def save_milestone(self, model: Any, step: int, weights: Any = None) -> None:
        weights = weights or weight_stream(model, tied_output=False)
        torch.save({name: tensor.clone() for name, tensor in weights}, self.folder / f"{step}.pt")


def register() -> None:
    """Add the engines and the verifier of these tests in this process."""
    ENGINES.update(fixed=f"{__name__}:FixedEngine", failing=f"{__name__}:FailingEngine")
    VERIFIERS["coin"] = Verifier(f"{__name__}:coin", 1.0, in_process=True)
    FORMATS["coin"] = Format("{question}", str, "coin")


def run_as(ranks: Ranks, cache: Path, job: Job) -> None:
    """Run `job` as one of `ranks`; rank 0 writes the ledger and the weights in `job.folder`."""
    shape, compute, changes = RUNS[job.name]
    output = job.folder / f"rank{ranks.rank}" if ranks.rank else job.folder
    output.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(next(cache.glob("corpora/*/"))) if (cache / "corpora").exists() else Corpus(cache)
    deferred = parallel.is_sharded(compute, ranks.tasks)
    model = build_model(shape, corpus.tokenizer, 1e4, seed=3, deferred=deferred)
    settings = SETTINGS | {"tasks": ["coin.jsonl"]} | changes
    settings["tasks"] = [str(corpus.folder.parent / task) for task in settings["tasks"]]
    calls = 0

    def interrupted() -> bool:
        """True in the rollouts of the step after `stop_after`: not at its beginning, which is the first call."""
        nonlocal calls
        ledger = output / "ledger.jsonl"
        if not job.stop_after or ledger.read_text().count("\n") != job.stop_after + 1:
            return False
        calls += 1
        if calls == 2 and job.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return calls == 2 and ranks.rank == ranks.tasks - 1

    with Ledger(output) as ledger, contextlib.suppress(Interrupted):
        context = SavedWeights(
            job.folder, corpus, ledger, seed=7, compute=compute, ranks=ranks, interrupted=interrupted
        )
        result = train_grpo(model, GRPOConfig(**settings), context)
        (output / "result.json").write_text(json.dumps(result))


def run_all(ranks: Ranks, cache: Path, jobs: list[Job]) -> None:
    register()
    for job in jobs:
        run_as(ranks, cache, job)


def do(count: int, cache: Path, *jobs: Job) -> None:
    assert run_ranks(count, run_all, cache, list(jobs)) == [0] * count


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    corpus = prepare(DataConfig("t", [], ["boolean"], 300, 0.5, 0.5, 300, 8), folder).folder
    for name in ("coin", "never"):
        lines = [{"question": f"what of {i}?" * (1 + i % 3), "answer": name, "format": "coin"} for i in range(60)]
        (corpus.parent / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return corpus


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder with a run in one process and in two; runs that are started together share their start."""
    folder = tmp_path_factory.mktemp("runs")

    def of(name: str) -> Path:
        together = QUICK if name in QUICK else THOROUGH
        if not (folder / "1" / name).exists():
            for count in (2, 1):
                do(count, cache, *(Job(folder / str(count) / other, other) for other in together))
        return folder

    return of


NOISE = ("time", "seconds", "tokens_per_second")


def ledger(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.endswith(NOISE)} for row in rows]


def assert_alike(one: Path, other: Path) -> None:
    """The ledgers, files and weights of two runs are the same up to the order of summation."""
    rows, expected = ledger(one), ledger(other)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, right in zip(rows, expected, strict=True):
        assert row.keys() == right.keys()
        for key, value in right.items():
            same = row[key] is None if value is None else row[key] == pytest.approx(value, rel=2e-4, abs=1e-5)
            assert same, (row["step"], key, row[key], value)
    for path in sorted(other.glob("*.pt")):
        weights, right = torch.load(one / path.name), torch.load(path)
        assert weights.keys() == right.keys()
        for key, value in right.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4)
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


def parameters(names: Sequence[str]) -> list[Any]:
    """The names, those of long runs only for CI."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.ci_only) for name in names]


@pytest.mark.parametrize("name", parameters([n for n in RUNS if "mixed" not in n and "replica" not in n]))
def test_two_processes_do_the_same_rl_as_one(finished: Callable[[str], Path], name: str) -> None:
    one, two = (finished(name) / count / name for count in "12")
    assert_alike(two, one)
    # Every rank has the same ledger.
    assert ledger(two / "rank1") == ledger(two)
    steps = [row for row in ledger(two) if row["step"]]
    assert all(row["skipped"] == ("nothing" in name) for row in steps)
    assert (steps[0]["kl_start"] is None) == (name == "ddp, experts")
    if "row" in name:
        assert all(row["groups_kept"] == 1 for row in steps)
    if "keep" in str(RUNS[name][2]):
        assert any(row["groups_left_over"] for row in steps)


@pytest.mark.ci_only
@pytest.mark.parametrize("name", ["ddp, mixed", "fsdp, mixed"])
def test_mixed_precision_stays_near_float32(finished: Callable[[str], Path], name: str) -> None:
    """Weights are float32 in one process and in two, and a step differs by bfloat16's rounding."""
    plain = ledger(finished("ddp") / "1" / "ddp")
    for count in (1, 2):
        folder = finished(name) / str(count) / name
        assert {tensor.dtype for tensor in torch.load(folder / "4.pt").values()} == {torch.float32}
        for row, expected in zip(ledger(folder)[1:], plain[1:], strict=True):
            assert row["reward"] == expected["reward"]
            assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.1)
            assert row["gradient_norm"] != expected["gradient_norm"]


@pytest.mark.ci_only
def test_a_sampler_in_bfloat16_is_corrected(finished: Callable[[str], Path]) -> None:
    """Its log-probabilities differ from the learner's, whose own are in the ratio, so the first one is 1."""
    (row,) = [row for row in ledger(finished("fsdp, replica") / "2" / "fsdp, replica") if row["step"]]
    assert 1e-5 < row["mismatch"] < 0.1
    assert row["ratio_p50"] == pytest.approx(1, abs=0.05)


CASES = [("fsdp, minibatches, KL", 2, 2, False), *(
    pytest.param(*case, marks=pytest.mark.ci_only)
    for case in [
        ("fsdp, minibatches, KL", 2, 2, True), ("ddp, minibatches", 2, 2, True), ("fsdp, minibatches, KL", 2, 1, False),
        ("fsdp, checkpointing, experts", 1, 2, True), ("ddp, minibatches", 1, 2, False),
    ]
)]  # fmt: skip


@pytest.mark.parametrize(("name", "first", "last", "kill"), CASES)
def test_another_number_of_processes_resumes(
    finished: Callable[[str], Path], cache: Path, tmp_path: Path, *, name: str, first: int, last: int, kill: bool
) -> None:
    """Asked to stop in the rollouts of step 3, or killed there; with as many processes every bit is the same."""
    job = Job(tmp_path, name, stop_after=2, kill=kill)
    assert run_ranks(first, run_all, cache, [job]) == [-signal.SIGKILL if kill else 0] * first
    assert [path.name for path in (tmp_path / "resume").iterdir()] == ["step-000002"]
    do(last, cache, replace(job, stop_after=0, kill=False))
    whole = finished(name) / str(first) / name
    assert_alike(tmp_path, whole)
    if first == last:
        assert ledger(tmp_path) == ledger(whole)
        weights, expected = (torch.load(folder / "4.pt") for folder in (tmp_path, whole))
        assert all(torch.equal(weights[key], value) for key, value in expected.items())


def fail_as(ranks: Ranks, cache: Path, folder: Path, *, where: str) -> None:
    """A run in which the second rank fails; every rank writes down how it ended."""
    register()
    RUNS["failing"] = (DENSE, FSDP, {"engine": "failing"} if where == "sampler" else {})
    if where == "update" and ranks.rank == 1:
        from pipelines.grpo.update import Updater

        def broken(*arguments: object) -> None:
            raise ValueError("the update broke")

        Updater._loss = broken  # type: ignore[assignment,method-assign]
    try:
        run_as(ranks, cache, Job(folder, "failing"))
    except Exception as error:
        (folder / f"error{ranks.rank}").write_text(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("where", ["sampler", "update"])
def test_a_rank_that_fails_ends_all_with_its_reason(cache: Path, tmp_path: Path, where: str) -> None:
    assert run_ranks(2, partial(fail_as, where=where), cache, tmp_path, seconds=120) == [0, 0]
    assert (tmp_path / "error1").read_text() == f"ValueError: the {where} broke"
    assert (tmp_path / "error0").read_text() == f"StageFailure: rank 1: the {where} broke"
