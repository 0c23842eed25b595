"""The whole GRPO stage: it improves a model, and resumes bit for bit after any interruption."""

import contextlib
import hashlib
import json
import logging
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save, save_file
from transformers import Qwen3ForCausalLM

from pipelines.configuration.budgets import PretrainConfig
from pipelines.configuration.data import DataConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.configuration.lora import LoRAConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.errors import Interrupted, UserError
from pipelines.grpo import module, train_grpo
from pipelines.grpo.asked import Asked
from pipelines.grpo.training import _held_out_result, _result
from pipelines.models.adapters import add_adapters
from pipelines.models.causal_lm import build_model
from pipelines.training.train import train
from pipelines.training.trainer_state import saved_steps
from pipelines.verifiers import Judge
from shaping import Objective
from tests.forked import forked
from tests.pipelines.contexts import stage_context

MODEL = ModelConfig("tiny", layers=1, d_model=32, ffn=64, heads=2, kv_heads=1, head_dim=16)


def small_corpus(folder: Path) -> Corpus:
    return prepare(DataConfig("t", [], ["boolean"], 2000, 0.0, 0.0, 270, 8), folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("cache"))


def settings(**changes: object) -> GRPOConfig:
    values = {"steps": 6, "prompts": 4, "samples": 4, "max_new_tokens": 6, "tasks": ["boolean"], "milestones": 1}
    values |= {"learning_rate": 3e-3, "held_out_every": 3, "held_out_problems": 8}
    return GRPOConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights trained on a few answers, so that some groups are mixed."""
    folder = tmp_path_factory.mktemp("weights")
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
    budget = PretrainConfig(
        tokens=24 * 512, batch_tokens=512, sequence_length=32, learning_rate=1e-2, rope_base=1e4,
        mixture={"boolean": 1.0}, milestones=1, warmup_steps=5,
    )  # fmt: skip
    with stage_context(corpus, folder) as context:
        train(model, Objective(), budget, context=context)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "weights")
    return folder / "weights"


def start_model(corpus: Corpus, weights: Path) -> Qwen3ForCausalLM:
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=5)
    model.load_state_dict(load_file(weights))
    return model


def run(model: Qwen3ForCausalLM, config: GRPOConfig, *, corpus: Corpus, folder: Path, **fields: Any) -> dict:
    """Run the stage in `folder` and return its metrics; `fields` are further ones of the context."""
    with stage_context(corpus, folder, **fields) as context:
        return train_grpo(model, config, context)


def rows(folder: Path, name: str = "ledger.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def fingerprint(model: Qwen3ForCausalLM) -> str:
    weights = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(save(weights)).hexdigest()


def test_measuring_the_divergence_from_the_start_changes_nothing_else(
    corpus: Corpus, weights: Path, tmp_path: Path
) -> None:
    """Without it and without a KL term no second model is kept."""
    models, ledgers = [], []
    for measured in (True, False):
        model, folder = start_model(corpus, weights), tmp_path / str(measured)
        run(model, settings(steps=2, start_divergence=measured), corpus=corpus, folder=folder)
        models.append(fingerprint(model))
        ledgers.append([row for row in rows(folder) if row["step"]])
    assert models[0] == models[1]
    found = [row.get("kl_start") is not None for row in (*ledgers[0], *ledgers[1])]
    assert found == [True, True, False, False]


@pytest.mark.slow
def test_rl_improves_a_model(corpus: Corpus, weights: Path, tmp_path: Path) -> None:
    """A model that often breaks the format learns to answer, and to be right, on held-out questions too."""
    model = start_model(corpus, weights)
    milestones: list[int] = []
    config = settings(steps=12, prompts=32, samples=8, milestones=2, held_out_every=6, held_out_problems=32)
    folder = tmp_path / "rl"
    result = run(model, config, corpus=corpus, folder=folder, on_milestone=lambda model, step: milestones.append(step))
    ledger = rows(folder)
    steps = [row for row in ledger if row["step"]]
    rewards = [row["reward"] for row in steps]
    assert milestones == [6, 12]
    assert [row["step"] for row in ledger] == list(range(13))
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert result["held_out_after"] > result["held_out_before"] + 0.1
    assert result["contamination"] == result["held_out_contamination"] == 0
    assert steps[0]["kl_start"] < 1e-6 < steps[-1]["kl_start"]
    for row in steps:
        assert row["groups_right"] + row["groups_wrong"] + row["groups_mixed"] == pytest.approx(1)
        assert 1 <= row["rounds"] <= 3
        assert row["groups_kept"] == 32 or row["rounds"] == 3
        assert row["clip_low"] == row["clip_high"] == 0
        assert row["ratio_p01"] == row["ratio_p99"] == 1
        assert row["mismatch"] < 1e-4
        assert row["length_p10"] <= row["length_p50"] <= row["length_p90"] <= 6
        assert 0 <= row["pass@2"] <= row["pass@4"] <= row["pass@8"] <= 1
    samples = rows(folder, "samples.jsonl")
    assert [row["step"] for row in samples] == [0] * 8 + [6] * 8 + [12] * 8
    assert [row["question"] for row in samples[:8]] == [row["question"] for row in samples[8:16]]
    for row in samples:
        assert "".join(row["tokens"]) == row["response"]
        assert len(row["log_probs"]) == len(row["tokens"])
        assert max(row["log_probs"]) <= 0
    assert {row["step"] for row in rows(folder, "forking.jsonl")} == {1, 6, 12}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"epochs": 2, "minibatches": 2, "leftovers": "keep", "pass_rate_low": 0.05}])
def test_an_interrupted_run_resumes_bit_for_bit(corpus: Corpus, weights: Path, tmp_path: Path, changes: dict) -> None:
    whole = start_model(corpus, weights)
    run(whole, settings(**changes), corpus=corpus, folder=tmp_path / "whole")
    ledger = tmp_path / "parts" / "ledger.jsonl"

    def after_two_steps() -> bool:
        return ledger.read_text().count("\n") == 3  # step 0 and two steps

    with pytest.raises(Interrupted, match="after step 2 of 6"):
        run(
            start_model(corpus, weights),
            settings(**changes),
            corpus=corpus,
            folder=tmp_path / "parts",
            interrupted=after_two_steps,
        )
    resumed = start_model(corpus, weights)
    run(resumed, settings(**changes), corpus=corpus, folder=tmp_path / "parts")
    assert fingerprint(resumed) == fingerprint(whole)
    columns = {"reward", "entropy", "kl_start", "gradient_norm", "groups", "held_out_reward"}
    last = [{column: row.get(column) for column in columns} for row in rows(tmp_path / "whole")[-4:]]
    assert last == [{column: row.get(column) for column in columns} for row in rows(tmp_path / "parts")[-4:]]
    for name in ("samples.jsonl", "forking.jsonl"):
        assert rows(tmp_path / "whole", name) == rows(tmp_path / "parts", name)


@pytest.mark.slow
def test_an_interruption_wherever_a_stage_looks_for_one_changes_nothing(
    corpus: Corpus, weights: Path, tmp_path: Path
) -> None:
    """Before a step, in its rollouts, and in the rollouts for held-out questions, after the weights have changed."""
    config = settings(steps=2, held_out_every=1, milestones=2)
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        return looks == stop_at

    def attempt(folder: str, **fields: Any) -> tuple[str, list[int]]:
        model, milestones = start_model(corpus, weights), []
        with contextlib.suppress(Interrupted):
            run(
                model,
                config,
                corpus=corpus,
                folder=tmp_path / folder,
                on_milestone=lambda model, step: milestones.append(step),
                **fields,
            )
        return fingerprint(model), milestones

    def logged(folder: str) -> list[list[list]]:
        def measured(row: dict) -> list:
            """In its order, which log lines and model cards have too."""
            return [item for item in row.items() if not item[0].endswith(("seconds", "per_second", "time"))]

        names = ("ledger.jsonl", "samples.jsonl", "forking.jsonl")
        return [[measured(row) for row in rows(tmp_path / folder, name)] for name in names]

    stop_at = 0
    whole, milestones = attempt("whole", interrupted=look)
    assert milestones == [1, 2]
    count = looks
    assert (
        count >= 7
    )  # the start's held-out questions, then for each step its begin, its rollouts and held-out questions
    for stop_at in range(1, count + 1):
        looks, folder = 0, f"stopped-{stop_at}"
        _, before = attempt(folder, interrupted=look)
        resumed, after = attempt(folder)
        assert resumed == whole, stop_at
        assert logged(folder) == logged("whole"), stop_at
        assert sorted({*before, *after}) == milestones, stop_at


def test_the_log_shows_the_start_saves_the_resume_point_and_the_end(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def log_of(config: GRPOConfig, **fields: Any) -> str:
        caplog.clear()
        model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
        with contextlib.suppress(Interrupted):
            run(model, config, corpus=corpus, folder=tmp_path, **fields)
        return caplog.text

    logger = logging.getLogger("pipelines")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger.name)
    try:
        ledger = tmp_path / "ledger.jsonl"
        first = log_of(settings(steps=2), interrupted=lambda: ledger.read_text().count("\n") == 2)
        second = log_of(settings(steps=2))
    finally:
        logger.removeHandler(caplog.handler)
    assert "questions of boolean and 8 held out, 4 prompts x 4 samples per step, engine transformers" in first
    assert "parameters in float32 on 1 x cpu" in first
    assert "trainer state saved after step 1" in first
    assert "resuming after step 1 of 2" in second
    assert "ended after step 2 with reward" in second


def run_to_the_end(cache: Path, weights: Path, folder: Path, rank: int) -> None:
    """A process that saves its state after every step and at the end writes the fingerprint of its model.

    It trains adapters of `rank`, or with 0 the whole model.
    """
    module.SAVE_SECONDS = 0.0
    corpus = small_corpus(cache)
    model = start_model(corpus, weights)
    lora = LoRAConfig(rank)
    if rank:
        add_adapters(model, lora, key="grpo.lora", seed=3)
    run(model, settings(leftovers="keep", steps=8, lora=lora), corpus=corpus, folder=folder)
    (folder / "fingerprint").write_text(fingerprint(model))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.ci_only)], ids=["whole", "adapters"])
def test_a_run_killed_in_the_middle_of_a_step_resumes_bit_for_bit(
    corpus: Corpus, weights: Path, tmp_path: Path, rank: int
) -> None:
    """SIGKILL at any instruction of a step; the same command again ends with the model of an unbroken run."""

    def start(folder: str) -> BaseProcess:
        process = forked.Process(target=run_to_the_end, args=(corpus.folder.parent, weights, tmp_path / folder, rank))
        process.start()
        return process

    whole = start("whole")
    killed = start("killed")
    ledger = tmp_path / "killed" / "ledger.jsonl"
    deadline = time.monotonic() + 200
    while not (saved_steps(tmp_path / "killed" / "resume") and ledger.read_text().count("\n") >= 4):
        assert killed.is_alive() or killed.exitcode == 0
        assert time.monotonic() < deadline
        time.sleep(0.001)
    killed.kill()
    killed.join()
    resumed = start("killed")
    for process in (whole, resumed):
        process.join(200)
        assert process.exitcode == 0
    fingerprints = [(tmp_path / name / "fingerprint").read_text() for name in ("whole", "killed")]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0] != fingerprint(start_model(corpus, weights))


@pytest.mark.slow
def test_a_collapse_marks_the_run_and_can_stop_it(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "collapsed", lambda history, config: "entropy" if len(history) >= 2 else None)
    for choice, steps in (("mark", 4), ("stop", 2), ("off", 4)):
        milestones: list[int] = []
        result = run(
            build_model(MODEL, corpus.tokenizer, 1e4, seed=0),
            settings(steps=4, milestones=2, collapse=choice, held_out_every=0),
            corpus=corpus,
            folder=tmp_path / choice,
            on_milestone=lambda model, step, milestones=milestones: milestones.append(step),
        )
        assert (result["steps"], milestones) == (steps, [2, 4])
        assert result.get("collapsed_at") == (None if choice == "off" else 2)
        assert [row["collapsed"] for row in rows(tmp_path / choice)][:2] == ([0, 0] if choice == "off" else [0, 1])


def test_a_model_that_solves_nothing_runs_to_its_end(corpus: Corpus, tmp_path: Path) -> None:
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
    before = fingerprint(model)
    result = run(model, settings(steps=2, max_new_tokens=2), corpus=corpus, folder=tmp_path)
    assert result["skipped"] == 2
    assert fingerprint(model) == before
    assert "NaN" not in (tmp_path / "ledger.jsonl").read_text()


def test_pass_rate_bounds_that_leave_no_question_are_an_error(corpus: Corpus, tmp_path: Path) -> None:
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
    with pytest.raises(UserError, match=r"grpo\.pass_rate_low=0\.9: no question of boolean"):
        run(model, settings(pass_rate_low=0.9, max_new_tokens=2), corpus=corpus, folder=tmp_path)


def test_what_was_gained_on_held_out_problems_and_the_entropy_that_it_cost() -> None:
    """0.4 of reward for 0.5 nats between the first and the last five steps; the area is that of trapezoids."""
    history = [{"entropy": entropy} for entropy in [2.0] * 5 + [9.0] + [1.5] * 5]
    result = _held_out_result([[0, 0.2], [4, 0.4], [12, 0.6]], history)
    expected = {"held_out_before": 0.2, "held_out_after": 0.6, "held_out_area": (4 * 0.3 + 8 * 0.5) / 12}
    assert result == pytest.approx(expected | {"entropy_spent": 0.5, "entropy_spent_per_reward": 1.25})


def test_the_contamination_of_held_out_questions_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the result's numbers are means over the last five steps."""
    monkeypatch.setattr("pipelines.grpo.training.contamination", lambda questions, *_: len(questions) / 10)
    corpus = SimpleNamespace(manifest={"content": {"tasks": []}})
    columns = ("reward", "entropy", "response_length")
    stage: Any = SimpleNamespace(
        totals={"skipped": 1, "verifier_failures": 2, "collapsed_at": None, "held_out": []},
        history=[dict.fromkeys(columns, float(step)) for step in range(8)],
        asked=SimpleNamespace(training=[["a", "b"], ["c"]], held_out=["d"], too_long=4),
        step=8,
    )
    context: Any = SimpleNamespace(corpus=corpus, log=lambda *_: None)
    assert _result(stage, context) == dict.fromkeys(columns, 5.0) | {
        **{"steps": 8, "skipped": 1, "verifier_failures": 2, "questions": 3, "questions_too_long": 4},
        **{"contamination": 0.3, "held_out_contamination": 0.1},
    }


class Seen(Exception):
    """Ends a run where it has shown something."""


@pytest.mark.parametrize(("precision", "exact"), [("float32", True), ("bfloat16-mixed", False)])
def test_the_model_samples_exactly_as_it_learns_only_in_float32(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, exact: bool
) -> None:
    def updater(*_: Any, exact_sampler: bool, **__: Any) -> None:
        raise Seen(exact_sampler)

    monkeypatch.setattr(module, "Updater", updater)
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
    with pytest.raises(Seen) as seen:
        run(model, settings(precision=precision), corpus=corpus, folder=tmp_path)
    assert seen.value.args == (exact,)


def test_seed_and_optimizer_are_those_of_the_configuration(corpus: Corpus, tmp_path: Path) -> None:
    """The run has the cell's seed only if RL has none of its own."""
    options = {"learning_rate": 0.002, "weight_decay": 0.3, "adam_beta1": 0.7, "adam_beta2": 0.8}
    with stage_context(corpus, tmp_path, seed=7) as context, Judge(1) as judge:
        for own, seed in ((None, 7), (0, 0), (5, 5)):
            model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0)
            stage = module.GRPO(model, settings(seed=own, **options), context, judge=judge)
            assert stage.seed == seed
        matrices = stage.configure_optimizers().param_groups[0]
    assert (matrices["lr"], matrices["weight_decay"], matrices["betas"]) == (0.002, 0.3, (0.7, 0.8))


@pytest.mark.parametrize(("extended", "longest"), [(12, 5 + 12), (3, 5 + 6)])
def test_the_longest_sequence_is_that_of_any_step(extended: int, longest: int) -> None:
    asked: Any = object.__new__(Asked)
    asked._config = settings(extended_from_step=3, extended_max_new_tokens=extended)
    asked._corpus = SimpleNamespace(prompts=lambda texts: [list(text) for text in texts])
    asked.training = [[SimpleNamespace(prompt="ab")], [SimpleNamespace(prompt="abc")]]
    asked.held_out = [SimpleNamespace(prompt="abcde")]
    assert asked.longest_sequence() == longest


def test_the_response_limit_is_extended_once() -> None:
    config = settings(max_new_tokens=8192, extended_from_step=700, extended_max_new_tokens=16384)
    assert [config.response_limit(step) for step in (1, 699, 700, 1000)] == [8192, 8192, 16384, 16384]
    assert settings(extended_from_step=None).response_limit(10_000) == 6


def test_questions_that_do_not_fit_into_the_model_are_not_asked_and_counted(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    lines = [{"question": f"{i}+1" + " and so on" * (100 if i % 10 == 0 else 0), "answer": str(i)} for i in range(200)]
    path.write_text("".join(json.dumps(line | {"format": "marked"}) + "\n" for line in lines))
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0, length=64)
    config = settings(steps=1, tasks=[str(path)], max_new_tokens=500, extended_from_step=None)
    result = run(model, config, corpus=corpus, folder=tmp_path / "run")
    assert result["questions_too_long"] == 20
    assert rows(tmp_path / "run")[-1]["length_p90"] <= 64
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0, length=8)
    with pytest.raises(UserError, match=r"no question of the split 'rl' fits into the model's 8 tokens with an answer"):
        run(model, config, corpus=corpus, folder=tmp_path / "short")
