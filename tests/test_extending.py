"""The recipes of docs/extending.md, followed: each needs only the files that the page names.

Recipes whose test is elsewhere are named in the page's table; the first test checks that all of these files exist. YAML
is read from the page, so that what a reader copies is what is tested.
"""

import random
import re
from dataclasses import field, make_dataclass
from pathlib import Path

import pytest
import yaml

from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import prepare
from pipelines.data.questions import load_items
from pipelines.models.causal_lm import build_model, parameter_count
from pipelines.models.sizes import parameters
from pipelines.tasks.families import FAMILIES, Family, Problem
from pipelines.training import next_token
from shaping.statistics import TokenStatistics
from sweeps.compose import launcher_options
from sweeps.compose.cells import compose_cells, initialized_hydra
from sweeps.execute.slurm import scripts
from sweeps.plan.planner import plan
from tests.pipelines.contexts import stage_context
from tests.sweeps.compose.search_path import search_first

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()


def example(first_line: str) -> str:
    """The YAML block of the page that begins with `first_line`."""
    return next(block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith(first_line))


def test_the_files_and_tests_that_the_page_names_exist() -> None:
    names = re.findall(r"`((?:conf|pipelines|sweeps|analysis|shaping|tests)/[\w/.-]+)`", PAGE)
    assert len(names) > 20
    made_by_the_reader = [name for name in names if "NAME" in name or not (REPOSITORY / name).exists()]
    assert made_by_the_reader == ["conf/objective/NAME.yaml", "conf/model/NAME.yaml", "conf/evaluation/NAME.yaml"]


def test_a_setting_of_the_objective_is_one_file_and_its_name_is_the_label(tmp_path: Path) -> None:
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "sharper.yaml").write_text(example("# conf/objective/sharper.yaml"))
    with initialized_hydra():
        search_first(tmp_path)
        graph = plan(compose_cells(["objective=ce,sharper"]))
    assert list(graph.cells) == ["nano/ce/seed1", "nano/sharper/seed1"]
    trained = [graph.runs[signature] for signature in graph.cells["nano/sharper/seed1"]]
    assert {run.labels["objective"] for run in trained} == {"sharper"}
    assert trained[0].config["objective"] == {"beta": -0.4, "lam_head": 0.0, "lam_tail": 0.0, "top_k": None}


def test_a_model_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "wide.yaml").write_text(example("# conf/model/wide.yaml"))
    with initialized_hydra():
        search_first(tmp_path)
        (cell,) = compose_cells(["model=wide"])
    corpus = prepare(DataConfig("t", [], ["chain3"], 50, 0.5, 0.5, 300, 8), tmp_path / "cache")
    model = build_model(cell.model, corpus.tokenizer, rope_base=1e4, seed=1)
    assert model.config.hidden_size == 128
    assert parameter_count(model) == parameters(vars(cell.model), model.config.vocab_size)


def test_a_task_family_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def double(rng: random.Random) -> Problem:
        number = rng.randrange(500)
        return Problem("double", f"twice {number}", (str(2 * number),), str(2 * number), slip=str(number))

    monkeypatch.setitem(FAMILIES, "double", Family(double))
    corpus = prepare(DataConfig("t", [], ["double"], 300, 0.5, 0.5, 300, 8), tmp_path)
    questions = load_items(corpus, "double", count=5, dataset=None)
    assert len(questions) == 5
    for question in questions:
        assert int(question.reference) == 2 * int(question.question.split()[1])
        assert question.prompt == f"Q: {question.question}\nA:"


def test_a_benchmark_is_one_entry(tmp_path: Path) -> None:
    entries = yaml.safe_load(example("benchmarks:"))["benchmarks"]
    assert {BenchmarkConfig(**entry).kind for entry in entries.values()} == {"sampled", "harness_choice"}
    (tmp_path / "evaluation").mkdir()
    settings = {"name": "mine", "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 8, "text_length": 16}
    settings |= {"pass_k": [1], "benchmarks": {"Long-Chains": entries["Long-Chains"]}}
    (tmp_path / "evaluation" / "mine.yaml").write_text(yaml.safe_dump(settings))
    with initialized_hydra():
        search_first(tmp_path)
        graph = plan(compose_cells(["evaluation=mine", "until=pretrain"]))
    measured = [run for run in graph.runs.values() if run.stage == "evaluate"]
    assert measured
    assert all(list(run.config["evaluation"]["benchmarks"]) == ["Long-Chains"] for run in measured)


def test_a_metric_in_the_ledger_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.configuration.budgets import PretrainConfig
    from pipelines.training.train import train
    from shaping import Objective

    def top_1(statistics: TokenStatistics) -> next_token.Tensor:
        return (statistics.target_rank == 1).float().mean()

    monkeypatch.setitem(next_token.LEDGER_STATISTICS, "top_1", top_1)
    corpus = prepare(DataConfig("t", [], ["chain3"], 200, 0.5, 0.5, 300, 8), tmp_path / "cache")
    shape = ModelConfig("tiny", layers=1, d_model=16, ffn=32, heads=2, kv_heads=1, head_dim=8)
    model = build_model(shape, corpus.tokenizer, rope_base=1e4, seed=1)
    budget = PretrainConfig(
        tokens=128, batch_tokens=64, sequence_length=16, learning_rate=1e-2, rope_base=1e4, mixture={"chain3": 1.0},
        milestones=1, warmup_steps=1,
    )  # fmt: skip
    with stage_context(corpus, tmp_path / "run") as context:
        result = train(model, Objective(), budget, context=context)
        assert 0 <= context.ledger.newest["top_1"] <= 1
    assert result["top_1"] == pytest.approx(context.ledger.newest["top_1"])


def test_a_launcher_option_is_one_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = make_dataclass(
        "StageResources", [("reservation", str | None, field(default=None))], bases=(launcher_options.StageResources,)
    )
    slurm = make_dataclass(
        "SlurmLauncherConfig",
        [("reservation", str | None, field(default=None)), ("grpo", resources, field(default_factory=resources))],
        bases=(launcher_options.SlurmLauncherConfig,),
    )
    monkeypatch.setattr(launcher_options, "StageResources", resources)
    options = slurm(**{stage: resources() for stage in ("pretrain", "midtrain", "evaluate")}, reservation="weekend")
    options.grpo.reservation = "night"
    printed = list(scripts(plan(compose_cells([])), options, tmp_path))
    for stage, reservation in {"pretrain": "weekend", "midtrain": "weekend", "grpo": "night"}.items():
        (script,) = [script for script in printed if re.search(rf"--job-name=\S*:{stage}\b", script)]
        assert f"#SBATCH --reservation={reservation}\n" in script
