"""Pre-training against Hugging Face's Trainer with the same model, rows, optimizer and machine; the overhead of a step;
token shards.

Token ids are random, which costs as much as text.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.comparison import Row, in_turns, peak_memory, report, timed
from pipelines.configuration.budgets import PretrainConfig
from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.model import ModelConfig
from pipelines.configuration.tracking import TrackingConfig
from pipelines.data.token_shards import TokenShards
from pipelines.ledger import Ledger
from pipelines.models.causal_lm import empty_model, model_config
from pipelines.tracking.start import start_trackers
from pipelines.training import next_token
from pipelines.training.next_token import NextToken
from pipelines.training.train import train
from shaping import Objective
from tests.pipelines.contexts import stage_context
from tests.wandb_server import wandb_server

NANO = ModelConfig("nano", layers=3, d_model=96, ffn=256, heads=4, kv_heads=2, head_dim=24)
FIVE = ModelConfig("5M", layers=4, d_model=128, ffn=384, heads=4, kv_heads=2, head_dim=32)
EVERY = 7
"""Steps between two rows of the ledger, as in the nano pre-training, and between two of Trainer's logs."""
WARM = 3
"""Steps before the measured ones: they compile and allocate."""
SPEC: dict[str, Any] = {"stage": "pretrain", "labels": {}, "config": {}}


class Corpus:
    """Rows of random tokens that replace a corpus."""

    sharded = False
    top_k = 100
    tokenizer = SimpleNamespace(eos_token_id=0)

    def __init__(self, vocabulary: int, rows: int, length: int) -> None:
        self.table = np.random.default_rng(0).integers(0, vocabulary, (rows, length + 1), dtype=np.uint16)

    def rows(self, source: str, split: str, length: int) -> np.ndarray[Any, Any]:
        """The same rows for every source, split and length."""
        return self.table


class Records(Dataset[dict[str, torch.Tensor]]):
    """The same rows for Hugging Face's Trainer, which shifts the labels itself."""

    def __init__(self, corpus: Corpus) -> None:
        self._table = corpus.table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self._table[index, :-1].astype(np.int64))
        return {"input_ids": row, "labels": row}


class Clock(TrainerCallback):
    """Records when each optimizer step ends, for both sides."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.ends = now, list[float]()

    def note(self) -> bool:
        """Passed as `interrupted`, which is called once a step."""
        self.ends.append(self.now())
        return False

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's own call."""
        self.ends.append(self.now())

    def seconds_per_step(self) -> float:
        """Mean seconds of a step after the warm-up."""
        return (self.ends[-1] - self.ends[WARM]) / (len(self.ends) - 1 - WARM)


@dataclass(frozen=True)
class Case:
    """What both sides train."""

    shape: ModelConfig
    vocabulary: int
    corpus: Corpus
    budget: PretrainConfig

    def model(self) -> PreTrainedModel:
        """A new model; the same weights each time."""
        torch.manual_seed(0)
        return empty_model(model_config(self.shape, self.vocabulary, 1e4, end=0))


def our_step_seconds(case: Case, objective: Objective, clock: Clock, *, compiled: bool = False) -> float:
    """Seconds of one of our steps."""
    next_token.LEDGER_ROWS = max(1, case.budget.steps // EVERY)
    compute = ComputeConfig(compile=compiled)
    torch.compiler.reset()  # a new process would find kernels on the disk and nothing in memory
    fields: dict[str, Any] = {"seed": 1, "compute": compute, "interrupted": clock.note}
    corpus: Any = case.corpus
    with tempfile.TemporaryDirectory() as folder, stage_context(corpus, Path(folder), **fields) as context:
        train(case.model(), objective, case.budget, context=context)
    return clock.seconds_per_step()


def trainer_step_seconds(case: Case) -> float:
    """Seconds of one of Trainer's steps."""
    budget = case.budget
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=budget.batch_tokens // budget.sequence_length,
            max_steps=budget.steps,
            learning_rate=budget.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=budget.warmup_steps,
            weight_decay=budget.weight_decay,
            adam_beta2=budget.adam_beta2,
            max_grad_norm=budget.gradient_clip,
            optim="adamw_torch_fused",
            logging_steps=EVERY,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            log_level="error",
        )
        peer = Trainer(case.model(), arguments, train_dataset=Records(case.corpus), callbacks=[clock])
        peer.remove_callback(PrinterCallback)
        peer.train()
    return clock.seconds_per_step()


def against_trainer(
    name: str, shape: ModelConfig, *, vocabulary: int, length: int, batch: int, steps: int, bar: float
) -> list[Row]:
    """Compiled layers need a C++ compiler; without one there are no rows for them."""
    budget = PretrainConfig(
        tokens=steps * batch, batch_tokens=batch, sequence_length=length, learning_rate=1e-3, rope_base=1e4,
        mixture={"text": 1.0}, milestones=1, warmup_steps=2,
    )  # fmt: skip
    case = Case(shape, vocabulary, Corpus(vocabulary, 512, length), budget)

    plain, shaped = Objective(), Objective(beta=-0.25)

    def training(objective: Objective, *, compiled: bool = False) -> Callable[[], float]:
        return lambda: our_step_seconds(case, objective, Clock(), compiled=compiled)

    sides = {"plain": training(plain), "shaped": training(shaped), "trainer": lambda: trainer_step_seconds(case)}
    can_compile = bool(shutil.which("g++") or torch.cuda.is_available())
    if can_compile:
        sides["compiled"] = training(plain, compiled=True)
        sides["compiled, shaped"] = training(shaped, compiled=True)
    medians = {side: statistics.median(seconds) for side, seconds in in_turns(sides, rounds=3).items()}
    peer = medians.pop("trainer")
    rows = []
    for side, seconds in medians.items():
        # The bar is for the faster way that this machine has.
        has_bar = side.startswith("compiled") == can_compile
        rows.append(Row(f"{name}, {side}: a step / Trainer", seconds, peer, "s", bar if has_bar else None))
    if vocabulary < 2**14:  # the memory of a small model is hidden by that of the libraries
        return rows
    # In new processes, because an allocator reuses memory that the side before has freed.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        our_memory = pool.submit(_our_memory, case).result()
        trainer_memory = pool.submit(_trainer_memory, case).result()
    return [*rows, Row(f"{name}: memory / Trainer", our_memory, trainer_memory, "MiB", 1.0)]


def _our_memory(case: Case) -> float:
    return peak_memory(lambda: our_step_seconds(case, Objective(), Clock()))


def _trainer_memory(case: Case) -> float:
    return peak_memory(lambda: trainer_step_seconds(case))


def step_overhead() -> list[Row]:
    """Seconds of a nano step outside forward, backward and optimizer, against the whole step: processor seconds, which
    other programs do not change, on one thread, as in a nano stage."""
    torch.set_num_threads(1)
    work = 0.0  # seconds in forward, backward and optimizer so far
    work_at_step_end: list[float] = []

    @contextmanager
    def clocked(owner: Any, name: str) -> Iterator[None]:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal work
            start = time.process_time()
            try:
                return original(*args, **kwargs)
            finally:
                work += time.process_time() - start

        setattr(owner, name, call)
        try:
            yield
        finally:
            setattr(owner, name, original)

    def now() -> float:
        work_at_step_end.append(work)
        return time.process_time()

    budget = PretrainConfig(200 * 1024, 1024, 64, 1e-3, 1e4, {"text": 1.0}, 1, warmup_steps=2)

    clock = Clock(now)
    with (
        clocked(NextToken, "training_step"),
        clocked(torch.Tensor, "backward"),
        clocked(torch.nn.utils, "clip_grad_norm_"),
        # AdamW.step also runs Lightning's closure, so only its parts are clocked.
        clocked(torch.optim.AdamW, "_init_group"),
        clocked(sys.modules[torch.optim.Adam.__module__], "adam"),
        clocked(torch.optim.AdamW, "zero_grad"),
    ):
        total = our_step_seconds(Case(NANO, 640, Corpus(640, 512, 64), budget), Objective(), clock)
    inside = (work_at_step_end[-1] - work_at_step_end[WARM]) / (len(work_at_step_end) - 1 - WARM)
    return [Row("nano: outside forward, backward, optimizer / a step", max(0.0, total - inside), total, "s", 0.03)]


def tracking(step: float) -> list[Row]:
    """What trackers add to a nano step of `step` seconds: processor time of all threads of the stage."""
    kinds = {
        "W&B, its server dead": TrackingConfig("online"),
        "W&B offline": TrackingConfig("offline"),
        "TensorBoard": TrackingConfig(tensorboard=True),
        "CSV": TrackingConfig(csv=True),
        "MLflow": TrackingConfig(mlflow=True),
    }
    none = tracked_row_seconds(TrackingConfig())
    return [
        Row(f"nano: {name} / a step", max(0.0, tracked_row_seconds(config) - none) / EVERY, step, "s", 0.01)
        for name, config in kinds.items()
    ]


def tracked_row_seconds(config: TrackingConfig, rows: int = 200) -> float:
    """Processor seconds of this process per logged row. W&B's server stops before the first of them."""
    spec = {
        "stage": "pretrain", "signature": "0" * 16, "parent": None, "checkpoint": None, "config": {},
        "labels": {"model": "nano", "objective": "ce", "seed": 1, "scale": "nano", "sweep": ""},
    }  # fmt: skip
    row = dict.fromkeys(("loss", "cross_entropy", "entropy", "head_mass", "learning_rate", "gradient_norm"), 0.5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with wandb_server() as (address, _):
            os.environ |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
            ledger = Ledger(root, start_trackers(spec, root, config))
            ledger.log({"step": 0, "tokens": 0, **row})
            time.sleep(15)  # imports and the start of the tracker
        with ledger:
            started = time.process_time()
            for number in range(1, rows + 1):
                ledger.log({"step": number, "tokens": number, **row})
                time.sleep(0.02)
            return (time.process_time() - started) / rows


def shards() -> list[Row]:
    """Rows of 4,097 tokens read in shuffled order from 1 GB of shards in the page cache: time and added memory.

    The limits are 50 M tokens per second and a fraction of the gigabyte.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = root / "web" / "train"
        folder.mkdir(parents=True)
        tokens = 1 << 29
        np.random.default_rng(0).integers(0, 60_000, tokens, dtype=np.uint16).tofile(folder / "00000.tokens")
        shard = {"name": "00000", "tokens": tokens, "documents": 1, "sha256": {}}  # no hash: not verified
        index = {"format": 1, "vocabulary": 60_000, "sources": {"web": {"train": [shard]}}}
        (root / "index.json").write_text(json.dumps(index))
        rows = TokenShards(name).rows("web", "train", 4096)
        order = np.random.default_rng(1).permutation(len(rows))[: 50_000_000 // 4096]

        def read() -> None:
            for row in order:
                torch.from_numpy(rows[int(row)].astype(np.int64))

        seconds = timed({"ours": read}, rounds=3)["ours"]
        before = _anonymous_mib()
        read()
        return [
            Row("shards: 50 M tokens / a second", seconds, 1.0, "s", 1.0),
            Row("shards: memory / the shard", max(0.1, _anonymous_mib() - before), 1024, "MiB", 0.05),
        ]


def _anonymous_mib() -> float:
    """MiB of this process without mapped files: mapped shards belong to the page cache."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> int:
    warnings.filterwarnings("ignore")
    nano = against_trainer("nano", NANO, vocabulary=640, length=64, batch=1024, steps=100, bar=1 / 1.1)
    rows = [
        *nano,
        *tracking(nano[0].ours),
        *against_trainer("5 M, V 32,768", FIVE, vocabulary=32_768, length=128, batch=2048, steps=8, bar=1 / 1.05),
        *shards(),
        *step_overhead(),  # last, because it sets one thread for the process
    ]
    return report(rows, f"Pre-training; torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    sys.exit(main())
