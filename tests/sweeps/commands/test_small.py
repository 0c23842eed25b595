"""The scale `small` from data to tables, on local files like its data sets and with models of 20 M parameters."""

import json
import math
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.torch import load_file

from pipelines.data.docstrings import docstrings
from pipelines.data.token_shards import TokenShards
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store

Command = Callable[..., subprocess.CompletedProcess[str]]

GROUPS = [f"{group}=small" for group in ("data", "pretrain", "midtrain", "grpo", "evaluation")]
LOCAL = [
    *(f"data.sources.{name}.kind=parquet" for name in ("web", "mathematics", "worked")),
    *(f"data.sources.{name}.path={name}" for name in ("web", "mathematics", "worked")),
    "data.vocab_size=4096",
    "grpo.questions.gsm8k.path=gsm8k.jsonl",
    "grpo.questions.math_easy.path=math.parquet",
    "evaluation.benchmarks.GSM8K.dataset=gsm8k-test.jsonl",
]
"""Files in place of every data set that is used here."""
SHORT = [
    *("model.layers=12", "model.d_model=384", "model.ffn=1024", "model.heads=6", "model.kv_heads=2"),
    *("compute.compile=false", "compute.micro_batch_tokens=1024", "tracking=off", "pretrain.warmup_steps=1"),
    *(f"{stage}.{key}" for stage in ("pretrain", "midtrain") for key in ("tokens=8192", "batch_tokens=1024")),
    *(f"{stage}.{key}" for stage in ("pretrain", "midtrain") for key in ("sequence_length=256", "milestones=1")),
    *(f"{stage}.precision=float32" for stage in ("pretrain", "midtrain", "grpo")),
    *("grpo.steps=2", "grpo.milestones=1", "grpo.prompts=2", "grpo.samples=2", "grpo.held_out_problems=2"),
    *("grpo.max_new_tokens=16", "grpo.resample_rounds=0"),
    *("evaluation.max_new_tokens=16", "evaluation.text_length=64", "evaluation.pass_k=[1]"),
    "evaluation.benchmarks={Web:{kind:text,group:text,task:web,items:4},"
    "GSM8K:{kind:harness,group:math,task:gsm8k_cot,items:2,dataset:gsm8k-test.jsonl,shots:0,samples:2,verifier:math,"
    "stages:[midtrain,grpo]}}",
]
"""20 M parameters, eight steps of each training and two of RL: minutes on two cores."""
SWEEP = ["-m", "+sweep=small", "seed=1"]
"""One seed of the three settings."""
SETTINGS = ("ce", "precision", "diversity")


def stand_ins(folder: Path) -> None:
    """Files with the columns of the data sets: bundled text, and problems that are solved step by step."""
    rng = random.Random(0)
    texts = [document.text for package in ("networkx", "sympy") for document in docstrings(package)]
    problems = []
    for i in range(600):
        a, b, c = rng.randint(2, 99), rng.randint(2, 99), i
        problem = f"Box {c} has {a} red balls and {b} blue ones. How many balls does box {c} have in all?"
        problems.append((problem, f"There are {a} + {b} = {a + b} balls.", a + b, c % 5 + 1))
    rows = {
        "web/a.parquet": {"text": texts[:1500], "url": ["x"] * 1500},
        "web/deep/b.parquet": {"text": texts[1500:2000], "url": ["x"] * 500},
        "mathematics/a.parquet": {"text": [f"{p} {w}" for p, w, _, _ in problems]},
        "worked/a.parquet": {
            "problem": [p for p, _, _, _ in problems],
            "generated_solution": [f"{w} \\boxed{{{n}}}" for _, w, n, _ in problems],
        },
        "math.parquet": {
            "problem": [p for p, _, _, _ in problems],
            "solution": [f"{w} $\\boxed{{{n}}}$" for _, w, n, _ in problems],
            "level": [f"Level {level}" for _, _, _, level in problems],
        },
    }
    for name, columns in rows.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), folder / name)
    marked = [json.dumps({"question": p, "answer": f"{w}\n#### {n}"}) + "\n" for p, w, n, _ in problems]
    (folder / "gsm8k.jsonl").write_text("".join(marked))
    (folder / "gsm8k-test.jsonl").write_text("".join(marked[:20]))


def test_the_scale_is_planned_without_its_data() -> None:
    cells = compose_cells(["+sweep=small"])
    assert len(cells) == 9
    runs = plan(cells).runs.values()
    assert {run.stage for run in runs} == {"pretrain", "midtrain", "grpo", "evaluate"}
    twin, dense = (compose_cell([*GROUPS, f"model={name}"]) for name in ("430M-A150M", "150M"))
    assert (twin.model.active_experts * twin.model.ffn, twin.model.layers) == (dense.model.ffn, dense.model.layers)


@pytest.mark.parametrize("chosen", [["+sweep=small", "seed=1"], [*GROUPS[1:], "data=small,paper"]])
def test_keys_of_options_that_a_sweep_chooses(chosen: list[str], tmp_path: Path, shaping_run: Command) -> None:
    """The nano data, with which the command line is composed before its cells, have no source `web`."""
    finished = shaping_run("-m", *chosen, "data.sources.web.kind=parquet", "data.sources.web.path=a", cwd=tmp_path)
    assert finished.returncode == 2
    assert "there are no token shards yet" in finished.stderr
    assert "unknown key" not in finished.stderr
    misspelt = shaping_run("-m", *chosen, "data.sources.wob.kind=parquet", cwd=tmp_path)
    assert misspelt.returncode == 2
    assert "data.sources.wob.kind: unknown key; did you mean 'data.sources.web'?" in misspelt.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.ci_only
@pytest.mark.timeout(900)
def test_from_data_to_tables(tmp_path: Path, shaping_run: Command) -> None:
    stand_ins(tmp_path)

    def run(*words: str, module: str = "sweeps.commands.data") -> str:
        finished = shaping_run(*words, cwd=tmp_path, module=module)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    unprepared = shaping_run(*SWEEP, *LOCAL, *SHORT, cwd=tmp_path)
    assert unprepared.returncode == 2
    assert "make them with shaping-data prepare data=small" in unprepared.stderr
    keys = [key for key in LOCAL if key.startswith("data.")]
    run("prepare", "data=small", *keys, "--processes=1", "--validation=0.05", "--decontaminate=gsm8k-test.jsonl")
    shards = TokenShards(tmp_path / "shards" / "small")
    assert set(shards.sources) == {"web", "mathematics", "worked"}
    assert shards.index["contaminated"] >= 40  # twenty questions in both kinds of mathematics
    first = shards.index["sources"]["worked"]["train"][0]
    assert first["documents"] > 300
    keys = [key for key in LOCAL if not key.startswith("data.")]
    printed = run("questions", "grpo=small", "evaluation=small", *keys)
    assert "gsm8k.jsonl: 580 of 600 records" in printed
    assert "20 in GSM8K" in printed
    assert "not searched for: MATH-500" in printed
    run(*SWEEP, *LOCAL, *SHORT, module="sweeps.commands.run")
    runs = list(Store.open(tmp_path / "store").runs())
    assert {run.status for run in runs} == {"done"}
    assert {
        stage: sum(run.stage == stage for run in runs) for stage in ("pretrain", "midtrain", "grpo")
    } == dict.fromkeys(("pretrain", "midtrain", "grpo"), len(SETTINGS))
    # Models of 20 M parameters that learn: the loss begins near the logarithm of the vocabulary.
    for stored in runs:
        if stored.stage == "pretrain":
            weights = load_file(max(stored.folder.glob("checkpoints/*")) / "model.safetensors")
            assert 18e6 < sum(tensor.numel() for tensor in weights.values()) < 22e6
            losses = [json.loads(line)["loss"] for line in (stored.folder / "ledger.jsonl").read_text().splitlines()]
            assert abs(losses[0] - math.log(4096)) < 1.5
            assert losses[-1] < losses[0] - 0.5
    # Tables with a row for each setting.
    run("scale=small", "sweep=null", module="analysis.reproduce")  # budgets are not those of the named sweep
    table = pd.read_csv(tmp_path / "results" / "small" / "measurements.csv")
    at_end = table[(table["stage"] == "grpo") & (table["benchmark"] == "GSM8K") & (table["metric"] == "avg@2")]
    assert set(at_end["objective"]) == set(SETTINGS)
