"""Numbers of the study and of the documentation, as literals.

Another test that imports such a number checks that it is used; this one that it is what the paper, the documents and
earlier results have. A change here changes results, or sentences in `docs/`.
"""

import importlib
from fractions import Fraction
from typing import Any

import pytest

NUMBERS: dict[str, dict[str, Any]] = {
    "shaping.loss": {"FLOOR": 1e-6, "CHUNK_BYTES": 33_554_432, "LEAST_ROWS": 64},
    "shaping.shaped_model": {"IGNORE": -100},
    "shaping.theory": {"STEPS": 64, "INNER_STEPS": 25},
    "pipelines.configuration": {
        "STAGES": ("start", "pretrain", "midtrain", "grpo", "evaluate"),
        "TOKEN_STAGES": ("pretrain", "midtrain"),
        "TRAINING_STAGES": ("pretrain", "midtrain", "grpo"),
        "DATA_VERSION": 2,
    },
    "pipelines.configuration.bounds": {"LARGEST_OTHER": 1_000_000},
    "pipelines.configuration.engines": {"VLLM_VERSION": "0.32."},
    "pipelines.configuration.grpo": {"IMPORTANCE_CAP": 2.0},
    "pipelines.configuration.held_out": {"MANY_QUESTIONS": 1000},
    "pipelines.configuration.tracking": {"TAG_LENGTH": 64, "NAME_LENGTH": 128},
    "pipelines.data.contamination": {"N": 13, "SHORTEST": 5},
    "pipelines.data.docstrings": {"SHORTEST_DOCUMENT": 200},
    "pipelines.data.ngrams": {"_BASE": 11_400_714_819_323_198_485},
    "pipelines.data.preparation": {"TRAINED_ON": 134_217_728, "SMALL_BYTES": 16_777_216},
    "pipelines.data.questions": {"SHORTEST": 30},
    # They decide the parts of a source, and so the order of the documents in its shards.
    "pipelines.data.sources": {
        "STRETCH": 67_108_864,
        "COMPRESSED_STRETCH": 1_048_576,
        "MOST_TURNS": 8,
        "ENOUGH_PARTS": 64,
        "BLOCK": 256,
        "ROW_GROUPS": 8,
    },
    "pipelines.data.token_shards": {"FORMAT": 1},
    "pipelines.data.training_order": {"BLOCK": 65_536, "ROUNDS": 4},
    "pipelines.evaluation.distribution": {
        "BINS": 15,
        "HEADS": (1, 4, 16, 64, 256),
        "FORKING_SHARE": 0.2,
        "POSITIONS": 8,
        "MOST_FREQUENT": 20,
        "TOLERANCE": 1e-5,
    },
    "pipelines.evaluation.evaluate": {"SHOWN": 4},
    "pipelines.evaluation.held_out_text": {"THEORY_TOKENS": 64},
    "pipelines.evaluation.learning": {"LEAST_GAIN": 0.01},
    "pipelines.evaluation.metrics": {"LEVEL": 0.95, "RESAMPLES": 2000, "MOST_RESAMPLED": 2000, "RIGHT": 0.5},
    "pipelines.evaluation.multiple_choice": {"CHOICES": 4, "CHOICE_TOKENS": 32},
    "pipelines.grpo.collapse": {"WINDOW": 5, "SOLVED": 0.9, "GAIN": 0.05},
    "pipelines.grpo.collection": {"LEAST_SHARE": 0.125},
    "pipelines.grpo.diagnostics": {"KL_RESPONSES": 64},
    "pipelines.grpo.module": {"SHOWN_PROMPTS": 8},
    "pipelines.grpo.training": {"LAST_STEPS": 5},
    "pipelines.grpo.update": {"FORKING_SHARE": 0.2},
    "pipelines.models.causal_lm": {"FILE_BYTES": 5_368_709_120},
    "pipelines.models.logit_scale": {"TOLERANCE": 1e-4},
    "pipelines.models.sizes": {"PEAKS": {"h100": 989e12, "h200": 989e12, "a100": 312e12}},
    "pipelines.models.start_import": {"CHECKPOINT": "step-000000"},
    "pipelines.published": {"FORMAT": 2},
    "pipelines.rollouts.architectures": {"TOLERANCE": 1e-4},
    "pipelines.rollouts.prefill": {"PREFILL_TOKENS": 16_384, "MASK_ENTRIES": 134_217_728, "LEAST_COLUMNS": 128},
    "pipelines.rollouts.scoring": {"LEAST_PREFIX": 16},
    "pipelines.tasks.answer_extraction": {"LONGEST": 65_536},
    "pipelines.tasks.families": {"SPLITS": {"train": 0.70, "validation": 0.05, "rl": 0.10, "test": 0.15}},
    "pipelines.tasks.question_files": {"LONGEST_QUESTION": 1_000_000, "LONGEST_ANSWER": 10_000_000},
    "pipelines.tracking.wandb_run": {"SERVER_SECONDS": 15},
    "pipelines.training.next_token": {"LEDGER_ROWS": 100},
    "pipelines.training.step_filter": {"HISTORY": 128},
    "pipelines.training.trainer_state": {"SAVE_SECONDS": 900.0, "STATE_FORMAT": 2},
    "pipelines.verifiers.code": {"LOAD_SECONDS": 60.0, "IDLE_TICKS": 8, "TICK": 1.0},
    "pipelines.verifiers.confinement": {
        "SECONDS": 4,
        "MEMORY": 536_870_912,
        "FILES": 16,
        "_CAPABILITY_VERSION": 0x20080522,
        "_FILE_RIGHTS": {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF},
        "_READ_RIGHTS": 12,
        "_ARCHITECTURE": {"x86_64": 0xC000003E, "aarch64": 0xC00000B7},
    },
    "analysis.result_cache": {"CACHE_VERSION": 3},
    "pipelines.verifiers.judge": {
        "KEPT_VARIABLES": ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
        "FAILURES": ("timeout", "error", "too_long"),
        "LOAD_SECONDS": 120.0,
    },
    "pipelines.verifiers.mathematics": {"ROUNDED": Fraction(1, 500_000), "_DIGITS": 60},
    "pipelines.verifiers.namespaces": {"_USER": 65_534},
    "pipelines.verifiers.nursery": {"DYING_SECONDS": 2.0},
    "pipelines.verifiers.plain_values": {"LONGEST": 16_777_216, "DEPTH": 100},
    "pipelines.verifiers.program": {"PRINTED": 1_048_576},
    "pipelines.verifiers.unit_tests": {"_ITERATED": 100_000},
    "sweeps.commands.compare": {"NORMAL_QUANTILE": pytest.approx(1.959964)},
    "sweeps.commands.cost_model": {"PAPER_VOCABULARY": 151_936},
    "sweeps.compose.expansion": {"MOST_CELLS": 100_000},
    "sweeps.execute.local": {"GRACE_SECONDS": 60.0, "FULL_DISK_BYTES": 1_048_576},
    "sweeps.execute.slurm": {"PATIENCE_SECONDS": 120.0, "DEFAULT_ARRAY_LIMIT": 1001, "ENDING_SECONDS": 60.0},
    "sweeps.monitor.upkeep": {"LEFTOVER_SECONDS": 3600.0},
    "sweeps.plan.cost": {
        "DEVICES": {"h100": 989e12, "h200": 989e12, "a100": 312e12, "core": 1e11},
        "CHOICES": 4,
        "CHOICE_TOKENS": 100,
        "BYTES_PER_WEIGHT": 4,
        "PROCESS_BYTES": 939_524_096,
    },
    "sweeps.plan.device_memory": {
        "USABLE": 0.9,
        "KEYS_SHARE": 0.3,
        "VLLM_SHARE": {"grpo": 0.4, "evaluate": 0.85},
        "SLOWDOWN": {"none": 1.0, "selective": 1.1, "full": 1.33},
        "SHARDED_SLOWDOWN": 1.1,
    },
    "sweeps.plan.signatures": {"CONTROL_KINDS": {"matched": ("text", "sampled"), "theory": ("text",)}},
    "sweeps.store.leases": {"HEARTBEAT_SECONDS": 10.0, "EXPIRY_SECONDS": 60.0},
    "analysis.claims": {"LOOKS": (5, 8, 12, 20, 32, 50), "LOOK_ALPHA": pytest.approx(0.05 / 6)},
    "analysis.estimates": {"NORMAL_QUANTILE": pytest.approx(1.959964)},
    "analysis.figures.paper_figures": {"SMOOTHED_STEPS": 5, "CURVE_POINTS": 60},
    "analysis.headline": {"ENOUGH_SEEDS": 5},
    "analysis.headline_words": {"CEILING": 95.0, "CLOSE": 0.2, "NAMED": 3, "MANY_SEEDS": 200},
    "analysis.learning": {"CURVE_ENDS": 5},
    "analysis.learning_table": {"TARGET_GRID": 5.0},
    "analysis.page.sample_views": {"UNSURE": pytest.approx(-0.356675)},
    "analysis.reference": {"MODELS": ("1B", "4B", "5B-A0.3B", "10B-A0.5B"), "EXPERTS": {"5B-A0.3B", "10B-A0.5B"}},
    "analysis.seed_spread": {"FAR": 3.5, "FEWEST_FOR_ODD": 4},
    "analysis.seeds": {"POWER": 0.8, "MOST_SEEDS": 1000},
    "analysis.statistics": {
        "LEVEL": 0.95,
        "ALPHA": pytest.approx(0.05),
        "REPLICATES": 2000,
        "NO_SPREAD": 1e-9,
        "FEWEST_POINTS": 5,
        "EXACT_POINTS": 8,
        "PERMUTATIONS": 10_000,
    },
    "analysis.variance": {"DRAWS": 100_000},
}


@pytest.mark.parametrize("module", NUMBERS)
def test_a_number_is_what_the_study_was_run_with(module: str) -> None:
    loaded = importlib.import_module(module)
    assert {name: getattr(loaded, name) for name in NUMBERS[module]} == NUMBERS[module]
