"""Training of token stages against a plain loop, schedules against their formulas, resuming, skipped steps, logs."""

import contextlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig
from pipelines.configuration.compute import ComputeConfig, micro_batch
from pipelines.configuration.data import DataConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.errors import Interrupted, StageFailure, UserError
from pipelines.files import write_sealed
from pipelines.ledger import Ledger
from pipelines.models.causal_lm import build_model, load_model, parameter_count, save_checkpoint
from pipelines.models.sizes import forward_operations
from pipelines.stage_context import StageContext
from pipelines.training import next_token
from pipelines.training.causal_loss import CausalLoss
from pipelines.training.expert_balance import BIAS
from pipelines.training.optimizer import learning_rate
from pipelines.training.train import train
from pipelines.training.trainer_state import saved_steps
from pipelines.training.training_rows import TrainingRows
from shaping import Objective, shaped_cross_entropy
from tests.forked import forked
from tests.pipelines.contexts import captured_log, stage_context

MODEL = ModelConfig("tiny", layers=1, d_model=16, ffn=32, heads=2, kv_heads=1, head_dim=8)
BUDGET: dict[str, Any] = {
    "tokens": 64 * 6,
    "batch_tokens": 64,
    "sequence_length": 16,
    "learning_rate": 1e-2,
    "rope_base": 1e4,
    "mixture": {"chain3": 2.0, "boolean": 1.0},
    "milestones": 2,
}


def small_corpus(cache: Path) -> Corpus:
    return prepare(DataConfig("t", [], ["chain3", "boolean"], 300, 0.5, 0.5, 300, 8), cache)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("cache"))


def run_training(
    corpus: Corpus, folder: Path, budget: PretrainConfig, *, model: PreTrainedModel | None = None, **fields: Any
) -> dict[str, float]:
    """Train with cross-entropy in `folder`; `fields` are those of the stage context."""
    model = model or build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    with stage_context(corpus, folder, seed=7, **fields) as context:
        return train(model, Objective(), budget, context=context)


def output_layers(milestones: dict[int, torch.Tensor]) -> Callable[[Any, int], None]:
    """Returns a function that adds the output layer of each milestone to `milestones`."""

    def on_milestone(model: Any, step: int) -> None:
        milestones[step] = model.lm_head.weight.detach().clone()

    return on_milestone


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def test_warm_up_then_constant() -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=4)
    assert [learning_rate(budget, s) for s in range(6)] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-2, 1e-2])


@pytest.mark.parametrize(
    ("decay", "middle"), [("cosine", 5.5e-3), ("linear", 5.5e-3), ("1-sqrt", 1e-3 + 9e-3 * (1 - math.sqrt(0.5)))]
)
def test_decay_runs_from_first_to_final_rate(decay: str, middle: float) -> None:
    budget = MidtrainConfig(**BUDGET | {"tokens": 64 * 5}, final_learning_rate=1e-3, decay=decay)
    assert learning_rate(budget, 0) == pytest.approx(1e-2)
    assert learning_rate(budget, 2) == pytest.approx(middle)
    assert learning_rate(budget, 4) == pytest.approx(1e-3)


@pytest.mark.parametrize("objective", [Objective(), Objective(0.5), Objective(lam_tail=-0.1, top_k=8)], ids=str)
def test_training_equals_a_plain_loop(corpus: Corpus, tmp_path: Path, objective: Objective) -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=2)
    milestones: dict[int, torch.Tensor] = {}
    ours = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    with stage_context(corpus, tmp_path, seed=7, on_milestone=output_layers(milestones)) as context:
        metrics = train(ours, objective, budget, context=context)

    theirs = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    rows = TrainingRows(corpus, budget, 7)
    scales = [p for name, p in theirs.named_parameters() if "norm" in name]
    matrices = [p for name, p in theirs.named_parameters() if "norm" not in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    losses = []
    for step in range(6):
        batch = torch.stack([rows[i] for i in range(4 * step, 4 * step + 4)])
        loss = shaped_cross_entropy(theirs(batch[:, :-1]).logits, batch[:, 1:], objective)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 2)
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in milestones:
            torch.testing.assert_close(milestones[step + 1], theirs.lm_head.weight.detach())
    assert sorted(milestones) == [3, 6]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    ledger_rows = read_ledger(tmp_path)
    assert [row["step"] for row in ledger_rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in ledger_rows] == pytest.approx(losses, rel=1e-5)
    assert [row["tokens"] for row in ledger_rows] == [64, 128, 192, 256, 320, 384]
    if objective.is_cross_entropy:
        assert [row["cross_entropy"] for row in ledger_rows] == pytest.approx(losses, rel=1e-5)
    assert metrics["loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_objectives_see_the_same_rows(corpus: Corpus) -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=2)
    a, b = TrainingRows(corpus, budget, 1), TrainingRows(corpus, budget, 1)
    assert all(torch.equal(a[i], b[i]) for i in range(len(a)))
    assert len(a) == 24
    assert any(not torch.equal(a[i], TrainingRows(corpus, budget, 2)[i]) for i in range(4))


def test_a_loss_that_is_not_finite_is_reported(corpus: Corpus, tmp_path: Path) -> None:
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="at step 1"):
        run_training(corpus, tmp_path, PretrainConfig(**BUDGET, warmup_steps=2), model=model)


def test_checkpoints_are_hugging_face_folders(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    save_checkpoint(model, corpus.tokenizer, tmp_path / "step-000001")
    ids = torch.tensor([corpus.encode("Q: 1+2")])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "step-000001")
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "step-000001").encode("Q: 1+2") == corpus.encode("Q: 1+2")
    raised = load_model(tmp_path / "step-000001", rope_base=1e6)
    assert raised.config.rope_parameters["rope_theta"] == 1e6
    assert not torch.allclose(raised(ids).logits[:, -1], model(ids).logits[:, -1])
    torch.testing.assert_close(raised(ids).logits[:, 0], model(ids).logits[:, 0])  # position 0 is not rotated


def test_a_seed_gives_one_initialisation(corpus: Corpus) -> None:
    first, same, other = (build_model(MODEL, corpus.tokenizer, 1e4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    counted = sum(np.prod(p.shape) for name, p in first.named_parameters() if name != "lm_head.weight")
    assert parameter_count(first) == counted


@pytest.mark.parametrize("stop_after", [1, 3, 5])  # in the warm-up; just after a milestone; before the last step
@pytest.mark.parametrize("objective", [Objective(), Objective(-0.25, lam_tail=-0.1, top_k=8)], ids=str)
def test_an_interrupted_training_ends_with_the_same_bits(
    corpus: Corpus, tmp_path: Path, objective: Objective, stop_after: int
) -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=2)

    def run(folder: Path, stop: bool) -> tuple[dict[str, torch.Tensor], dict[str, float], dict[int, torch.Tensor]]:
        model, steps = build_model(MODEL, corpus.tokenizer, 1e4, seed=3), []
        milestones: dict[int, torch.Tensor] = {}

        def interrupted() -> bool:
            steps.append(1)
            return stop and len(steps) == stop_after

        options: dict[str, Any] = {"interrupted": interrupted, "on_milestone": output_layers(milestones)}
        with stage_context(corpus, folder, seed=7, **options) as context:
            metrics = train(model, objective, budget, context=context)
        return model.state_dict(), metrics, milestones

    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    expected, metrics, _ = run(whole, False)
    with pytest.raises(Interrupted, match=f"after step {stop_after} of 6"):
        run(interrupted, True)
    # A row after the saved state, from an attempt that continued.
    with (interrupted / "ledger.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 99}\n')
    weights, resumed, milestones = run(interrupted, False)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert resumed["loss"] == metrics["loss"]
    assert sorted(milestones) == [step for step in (3, 6) if step > stop_after]
    rows = [read_ledger(folder) for folder in (whole, interrupted)]
    assert [(r["step"], r["loss"], r["learning_rate"]) for r in rows[0]] == [
        (r["step"], r["loss"], r["learning_rate"]) for r in rows[1]
    ]


def train_to_the_end(cache: Path, *folders: Path) -> None:
    """Train in each of `folders`, saving the state after every step."""
    next_token.SAVE_SECONDS = 0.0
    corpus = small_corpus(cache)
    for folder in folders:
        model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
        run_training(corpus, folder, PretrainConfig(**BUDGET | {"tokens": 64 * 120}, warmup_steps=2), model=model)
        model.save_pretrained(folder / "weights")


@pytest.mark.ci_only
def test_a_training_killed_at_any_instruction_ends_with_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    """SIGKILL while states are saved after every step; a second attempt ends like an uninterrupted one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(*folders: Path) -> BaseProcess:
        process = forked.Process(target=train_to_the_end, args=(corpus.folder.parent, *folders))
        process.start()
        return process

    first = start(killed)
    while not saved_steps(killed / "resume") or not (killed / "ledger.jsonl").exists():
        assert first.is_alive()
        time.sleep(0.001)
    time.sleep(random.random() / 4)
    first.kill()
    first.join()
    assert saved_steps(killed / "resume")
    assert not (killed / "weights").exists()
    second = start(killed, whole)
    second.join(200)
    assert second.exitcode == 0
    weights = [(folder / "weights" / "model.safetensors").read_bytes() for folder in (killed, whole)]
    assert weights[0] == weights[1]
    steps = [[row["step"] for row in read_ledger(folder)] for folder in (killed, whole)]
    assert steps[0] == steps[1]
    # Temporary folders of the killed attempt are removed.
    assert all(not path.name.startswith(".") for path in (killed / "resume").iterdir())


def test_a_state_saved_after_the_last_step_needs_no_more_training(corpus: Corpus, tmp_path: Path) -> None:
    budget, steps = PretrainConfig(**BUDGET, warmup_steps=2), []

    def interrupted() -> bool:
        steps.append(1)
        return len(steps) == budget.steps

    metrics = {}
    for _ in range(2):
        with contextlib.suppress(Interrupted):
            metrics = run_training(corpus, tmp_path, budget, interrupted=interrupted)
    assert len(steps) == budget.steps
    assert metrics["loss"] > 0
    assert "tokens_per_second" not in metrics  # not 0: nothing was timed


def test_a_checkpoint_may_be_saved_twice(corpus: Corpus, tmp_path: Path) -> None:
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    (tmp_path / ".step-000001.0123abcd").mkdir()  # of a killed attempt
    for _ in range(2):
        save_checkpoint(model, corpus.tokenizer, tmp_path / "step-000001")
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_steps_that_are_not_finite_are_skipped_and_counted(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of NaN: the weights do not change in those steps, and the limit ends the training."""
    steps: list[int] = []

    def forward(self: CausalLoss, batch: torch.Tensor, statistics: bool = False) -> Any:
        loss, stats = CLEAN(self, batch, statistics)
        steps.append(1)
        return (loss * float("nan") if len(steps) in (2, 3) else loss), stats

    CLEAN = CausalLoss.forward
    monkeypatch.setattr(CausalLoss, "forward", forward)
    budget = PretrainConfig(**BUDGET, warmup_steps=0, max_skipped=2)
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    metrics = run_training(corpus, tmp_path / "a", budget, model=model)
    assert metrics["skipped"] == 2
    assert all(p.isfinite().all() for p in model.parameters())
    assert [row["skipped"] for row in read_ledger(tmp_path / "a")] == [0, 1, 2, 2, 2, 2]
    steps.clear()
    with pytest.raises(FloatingPointError, match=r"at step 3, after 1 skipped steps of at most pretrain.max_skipped=1"):
        run_training(corpus, tmp_path / "b", PretrainConfig(**BUDGET, warmup_steps=0, max_skipped=1))


@pytest.mark.parametrize("stop_after", [None, 3, 5])
def test_a_spike_is_skipped_also_after_a_resume(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int | None
) -> None:
    """The sixth step is a spike over the four before it, some of which an earlier attempt may have taken."""
    monkeypatch.setattr("pipelines.training.step_filter.HISTORY", 4)
    steps: list[int] = []

    def forward(self: CausalLoss, batch: torch.Tensor, statistics: bool = False) -> Any:
        loss, stats = CLEAN(self, batch, statistics)
        steps.append(1)
        return (loss * 50 if len(steps) == 6 else loss), stats

    CLEAN = CausalLoss.forward
    monkeypatch.setattr(CausalLoss, "forward", forward)
    budget = PretrainConfig(**BUDGET | {"learning_rate": 1e-5}, warmup_steps=0, max_skipped=1, spike_sigmas=20.0)
    if stop_after is not None:
        with pytest.raises(Interrupted, match=f"after step {stop_after} of 6"):
            run_training(corpus, tmp_path, budget, interrupted=lambda: len(steps) == stop_after)
    assert run_training(corpus, tmp_path, budget)["skipped"] == 1
    assert len(steps) == 6


def test_accumulation_is_one_large_batch(corpus: Corpus, tmp_path: Path) -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=2)
    models = [build_model(MODEL, corpus.tokenizer, 1e4, seed=3) for _ in range(2)]
    whole = run_training(corpus, tmp_path / "a", budget, model=models[0])
    parts = run_training(corpus, tmp_path / "b", budget, model=models[1], compute=ComputeConfig(micro_batch_tokens=16))
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.ci_only
def test_compiled_layers_train_alike(corpus: Corpus, tmp_path: Path) -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=2)
    models = [build_model(MODEL, corpus.tokenizer, 1e4, seed=3) for _ in range(2)]
    plain = run_training(corpus, tmp_path / "a", budget, model=models[0])
    torch._dynamo.utils.counters.clear()
    compiled = run_training(corpus, tmp_path / "b", budget, model=models[1], compute=ComputeConfig(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("precision", ["bfloat16-mixed", "bfloat16"])
def test_bfloat16_trains_about_alike(corpus: Corpus, tmp_path: Path, precision: str) -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=2)
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    full = run_training(corpus, tmp_path / "a", budget)
    half = run_training(
        corpus, tmp_path / "b", PretrainConfig(**BUDGET, warmup_steps=2, precision=precision), model=model
    )
    assert half["loss"] == pytest.approx(full["loss"], rel=0.03)
    assert half["loss"] != full["loss"]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if precision == "bfloat16" else torch.float32}


def test_a_trainer_state_that_does_not_fit_is_reported(corpus: Corpus, tmp_path: Path) -> None:
    budget, steps = PretrainConfig(**BUDGET, warmup_steps=2), []

    def interrupted() -> bool:
        steps.append(1)
        return len(steps) in (2, 3)

    for _ in range(2):  # after two steps, and after one more
        with contextlib.suppress(Interrupted):
            run_training(corpus, tmp_path, budget, interrupted=interrupted, compute=ComputeConfig(keep_last=2))
    assert sorted(p.name for p in (tmp_path / "resume").iterdir()) == ["step-000002", "step-000003"]
    other = build_model(ModelConfig("o", 1, 16, 48, 2, 1, 8), corpus.tokenizer, 1e4, seed=3)
    with pytest.raises(StageFailure, match="belongs to another model"):
        run_training(corpus, tmp_path, budget, model=other)
    newest = tmp_path / "resume" / "step-000003"
    (largest,) = newest.glob("*.distcp")
    largest.write_bytes(largest.read_bytes()[:2000])
    with pytest.raises(StageFailure, match=r"its sha256 is .*; delete .*step-000003 to resume from step 2"):
        run_training(corpus, tmp_path, budget)
    write_sealed(newest / "trainer.json", {"format": 7, "step": 3})
    with pytest.raises(StageFailure, match="format 7"):
        run_training(corpus, tmp_path, budget)


def test_micro_batches_that_fit() -> None:
    budget = PretrainConfig(**BUDGET | {"batch_tokens": 16 * 12, "tokens": 16 * 12 * 4}, warmup_steps=2)
    assert micro_batch(budget, ComputeConfig(), 4) == (3, 1)
    assert micro_batch(budget, ComputeConfig(micro_batch_tokens=32), 2) == (2, 3)
    with pytest.raises(UserError, match=r"12 rows of 16 cannot be shared by 5 ranks; rank counts that fit: 1, 2, 3, 4"):
        micro_batch(budget, ComputeConfig(), 5)
    for wrong in (80, 24, 8):
        with pytest.raises(UserError, match=r"micro_batch_tokens=\d+: .* values that fit: 16, 32, 48, 96"):
            micro_batch(budget, ComputeConfig(micro_batch_tokens=wrong), 2)


def test_speed_columns(corpus: Corpus, tmp_path: Path) -> None:
    budget = PretrainConfig(**BUDGET, warmup_steps=2)
    metrics = run_training(corpus, tmp_path, budget)
    for row in read_ledger(tmp_path):
        assert 0 <= row["data_wait_share"] < 1
        assert row["step_seconds_p50"] <= row["step_seconds_p95"]
        assert row["operations_per_second"] / row["tokens_per_second"] == pytest.approx(
            3 * forward_operations(vars(MODEL), len(corpus.tokenizer), tokens=1, length=16)
        )
        assert row["memory_gib"] > 0.1
    assert metrics["tokens_per_second"] > 0


def test_a_training_run_logs_its_progress(corpus: Corpus, tmp_path: Path) -> None:
    """Device, parameters, budget and start; every ledger row; milestones; saved states; the resume point."""
    budget, steps = PretrainConfig(**BUDGET, warmup_steps=2), []

    def interrupted() -> bool:
        steps.append(1)
        return len(steps) == 4

    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=3)
    parameters = parameter_count(model)
    card_spec = {
        **{"stage": "pretrain", "signature": "abc", "version": 1, "parent": None, "checkpoint": None, "labels": {}},
        "config": {"seed": 7, "data": {}, "pretrain": {}},
    }
    with captured_log() as records:
        for _ in range(2):
            with Ledger(tmp_path) as ledger, contextlib.suppress(Interrupted):
                context = StageContext(tmp_path, corpus, ledger, seed=7, interrupted=interrupted, spec=card_spec)
                train(model, Objective(), budget, context=context)

    lines = [record.getMessage() for record in records]
    assert {record.levelname for record in records} == {"INFO"}
    device = "cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    assert lines[0].startswith(f"pretrain: {parameters:,} parameters in float32 on 1 x {device}, ")
    assert lines[1] == "pretrain: starting at step 1 of 6 steps; 384 tokens, 64 in a step"
    rows = [line.split()[1] for line in lines if line.startswith("step ")]
    assert rows == ["1", "2", "3", "4", "5", "6"]
    assert "  loss " in lines[2]
    assert "  tokens_per_second " in lines[2]
    saved = [line for line in lines if "saved" in line]
    checkpoints = tmp_path / "checkpoints"
    assert saved == [
        f"milestone saved: {checkpoints}/step-000003",
        "trainer state saved after step 4 of 6",
        f"milestone saved: {checkpoints}/step-000006",
    ]
    assert "pretrain: resuming after step 4 of 6 steps; 384 tokens, 64 in a step" in lines


def test_a_skipped_step_moves_no_router_bias(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps as they are, and six whose loss is NaN."""
    shape = ModelConfig("t", layers=1, d_model=16, ffn=16, heads=2, kv_heads=1, head_dim=8, experts=4, active_experts=1)
    CLEAN = CausalLoss.forward
    largest = []
    for factor in (1.0, math.nan):

        def forward(self: CausalLoss, batch: Any, statistics: bool = False, factor: float = factor) -> Any:
            loss, stats = CLEAN(self, batch, statistics)
            return loss * factor, stats

        monkeypatch.setattr(CausalLoss, "forward", forward)
        model = build_model(shape, corpus.tokenizer, 1e4, seed=3)
        budget = PretrainConfig(**BUDGET, warmup_steps=0, max_skipped=6)
        run_training(corpus, tmp_path / str(factor), budget, model=model)
        largest.append(getattr(model.model.layers[0].mlp, BIAS).abs().max().item())
    assert largest[0] > 0
    assert largest[1] == 0
    assert {row["router_bias_span"] for row in read_ledger(tmp_path / "nan")} == {0.0}
