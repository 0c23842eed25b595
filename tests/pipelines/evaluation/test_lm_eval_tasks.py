"""Benchmarks that are tasks of lm-eval, on local files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from lm_eval.tasks import TaskManager

from pipelines.configuration.evaluation import BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.errors import MissingData, UserError
from pipelines.evaluation.context import BenchmarkResult
from pipelines.evaluation.lm_eval_model import RolloutLM
from pipelines.evaluation.lm_eval_tasks import LM_EVAL_TASKS, OUR_TASKS, _folder_of, _task_manager, load_tasks, run_task
from pipelines.models.causal_lm import build_model
from tests.pipelines.evaluation.contexts import evaluation_context

CONFIG = EvaluationConfig("t", 0.7, 0.95, 24, {}, 24, [2], {})


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Any:
    return build_model(ModelConfig("t", 1, 16, 32, 2, 1, 8), corpus.tokenizer, 1e4, seed=0).eval()


@pytest.fixture
def run(corpus: Corpus, model: Any, tmp_path: Path) -> Any:
    """Measures a benchmark."""

    def run(name: str, benchmark: BenchmarkConfig) -> BenchmarkResult:
        with evaluation_context(corpus, tmp_path / "run", CONFIG, model=model) as context:
            return run_task(context, name, benchmark)

    return run


def mathematics_file(folder: Path) -> str:
    path = folder / "amc.jsonl"
    rows = [{"question": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_benchmark_runs_on_a_local_file(run: Any, tmp_path: Path) -> None:
    dataset = mathematics_file(tmp_path)
    result = run(
        "AMC23",
        BenchmarkConfig("harness", "math", "amc23", items=4, samples=3, dataset=dataset, verifier="math", shots=0),
    )
    assert set(result.metrics) == {"avg@3", "cons@3", "pass@2", "response_length", "sampling_error"}
    assert len(result.samples) == 4 * 3
    assert result.samples[0]["question"].startswith("Question: What is 0+0?\nPlease reason step by step")
    assert result.metrics["avg@3"].value == sum(sample["reward"] for sample in result.samples) / 12


def test_without_a_verifier_lm_eval_scores_each_sample(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RolloutLM, "decode", lambda *_: ["0", "1", "0", "2", "4", "4"])
    dataset = mathematics_file(tmp_path)
    result = run("AMC23", BenchmarkConfig("harness", "math", "amc23", items=3, samples=2, dataset=dataset, shots=0))
    assert [sample["reward"] for sample in result.samples] == [1, 0, 0, 1, 1, 1]
    assert result.metrics["avg@2"].value == 4 / 6


def test_an_unknown_metric_is_refused(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "hellaswag.jsonl"
    item = {"activity_label": "a", "ctx_a": "He", "ctx_b": "", "endings": ["runs", "sits", "is", "x"], "label": "1"}
    path.write_text(json.dumps(item) + "\n")
    benchmark = BenchmarkConfig(
        "harness_choice", "commonsense", "hellaswag", items=1, dataset=str(path), shots=0, metric="exact_match"
    )
    with pytest.raises(
        UserError, match=r"benchmarks\.X\.metric=exact_match: unknown metric .*: acc,none, acc_norm,none"
    ):
        run("X", benchmark)


def test_code_is_run_with_its_tests(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HumanEval+ with given answers."""
    doc = {
        "prompt": "def add(a, b):\n",
        "test": "import numpy as np\ndef check(f):\n    assert np.allclose(f(1, 2), 3)",
        "entry_point": "add",
    }
    (tmp_path / "h.jsonl").write_text(json.dumps(doc) + "\n")
    monkeypatch.setattr(RolloutLM, "decode", lambda *_: ["    return a + b", "    return a - b"])
    dataset = str(tmp_path / "h.jsonl")
    result = run(
        "HumanEval+",
        BenchmarkConfig("harness", "code", "humaneval_plus", items=1, samples=2, dataset=dataset, verifier="code"),
    )
    assert [sample["reward"] for sample in result.samples] == [1, 0]
    assert result.metrics["avg@2"].value == 0.5
    assert "cons@2" not in result.metrics  # programs do not vote


def test_an_unreachable_data_set_and_an_unknown_task_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: (_ for _ in ()).throw(ConnectionError("down")))
    benchmark = BenchmarkConfig("harness", "math", "amc23", items=4, dataset="math-ai/amc23")
    with pytest.raises(MissingData, match=r"math-ai/amc23 is neither on .* reachable \(ConnectionError: down\)"):
        load_tasks("AMC23", benchmark)
    assert _folder_of("amc") is None
    small = TaskManager(include_path=str(OUR_TASKS), include_defaults=False)
    monkeypatch.setattr("pipelines.evaluation.lm_eval_tasks.TaskManager", lambda: small)  # all tasks take 20 s
    with pytest.raises(UserError, match=r"evaluation\.benchmarks\.X\.task=amc: unknown task of lm-eval"):
        load_tasks("X", BenchmarkConfig("harness", "math", "amc", items=4))


@pytest.mark.parametrize(
    ("task", "folder"),
    [("mmlu_flan_cot_fewshot", "mmlu/flan_cot_fewshot"), ("triviaqa", "triviaqa"), ("social_iqa", "siqa"),
     ("arc_easy", "arc"), ("bbh_cot_fewshot", "bbh/cot_fewshot"), ("gsm8k_cot", "gsm8k"), ("aime25", "aime")],
)  # fmt: skip
def test_the_folder_of_a_task_is_found_in_lm_eval(task: str, folder: str) -> None:
    assert _folder_of(task) == LM_EVAL_TASKS / folder


def test_every_task_of_the_table_is_indexed_from_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = Path(__file__).parents[3] / "conf" / "evaluation" / "paper.yaml"
    table = yaml.safe_load(paper.read_text())["benchmarks"]

    class OneFolder(TaskManager):
        def __init__(self, include_path: str, include_defaults: bool) -> None:
            assert not include_defaults
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("pipelines.evaluation.lm_eval_tasks.TaskManager", OneFolder)
    for benchmark in table.values():
        assert benchmark["task"] in _task_manager(benchmark["task"]).all_tasks


def test_a_group_with_tasks_in_other_folders_needs_all_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, content in {"a": "group: g\ntask:\n  - {group: h, task: [one]}\n  - two\n", "b": "task: two\n"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file.yaml").write_text(content)
    (tmp_path / "a" / "one.yaml").write_text("task: one\n")
    monkeypatch.setattr("pipelines.evaluation.lm_eval_tasks.LM_EVAL_TASKS", tmp_path)
    folders: list[str | None] = []

    class Recorded(TaskManager):
        def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
            folders.append(include_path)
            super().__init__(include_path=include_path or str(tmp_path), include_defaults=False)

    monkeypatch.setattr("pipelines.evaluation.lm_eval_tasks.TaskManager", Recorded)
    _folder_of.cache_clear()
    assert "two" in _task_manager("g").all_tasks
    assert folders == [str(tmp_path / "a"), None]
    _folder_of.cache_clear()


def test_our_task_files_are_read(tmp_path: Path) -> None:
    names = sorted(path.stem for path in OUR_TASKS.glob("*.yaml"))
    assert names == ["amc23", "humaneval_plus", "mbpp_plus", "minerva_math_272", "olympiad_bench"]
    item = {"question": "1+1?", "answer": "2", "final_answer": ["2", "II"], "prompt": "p", "test_list": ["a", "b"],
           "test": "assert 1", "entry_point": "f"}  # fmt: skip
    (tmp_path / "d.jsonl").write_text(json.dumps(item) + "\n")
    targets = {}
    for name in names:
        benchmark = BenchmarkConfig("harness", "math", name, items=1, dataset=str(tmp_path / "d.jsonl"))
        (task,) = load_tasks(name, benchmark).values()
        targets[name] = task.doc_to_target(item)
    assert targets["olympiad_bench"] == targets["amc23"] == "2"
    assert targets["humaneval_plus"] == "assert 1\ncheck(f)"
