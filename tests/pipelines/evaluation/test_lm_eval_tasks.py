"""Benchmarks that are tasks of lm-eval, on local files."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from lm_eval.tasks import TaskManager

from pipelines import rollouts
from pipelines.configuration.evaluation import TASK_FILES, BenchmarkConfig, EvaluationConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus
from pipelines.data.questions import Question
from pipelines.errors import MissingData, UserError
from pipelines.evaluation.context import BenchmarkResult
from pipelines.evaluation.lm_eval_model import RolloutLM
from pipelines.evaluation.lm_eval_tasks import (
    LM_EVAL_TASKS,
    _folder_of,
    _task_manager,
    chosen_docs,
    load_tasks,
    run_task,
)
from pipelines.evaluation.sampler import Sampler
from pipelines.models.causal_lm import build_model
from pipelines.rollouts import Rollouts, Sampling
from pipelines.tasks.judging import QUESTION_FORMAT
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


def answer_with(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let the model answer with `texts`, each of which it ended itself."""
    generate = Sampler.generate

    def stopped(*args: Any, finished: object, **kwargs: Any) -> Rollouts:
        rollouts = generate(*args, **kwargs)
        return replace(rollouts, stopped=torch.ones_like(rollouts.stopped))

    monkeypatch.setattr(Sampler, "generate", stopped)
    monkeypatch.setattr(RolloutLM, "decode", lambda *_, **__: list(texts))


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
    assert result.samples[0]["question"].startswith("What is 0+0?\nPlease reason step by step")
    assert result.metrics["avg@3"].value == sum(sample["reward"] for sample in result.samples) / 12


def test_a_task_of_a_folder_of_ones_own(run: Any, tmp_path: Path) -> None:
    """With functions of its own next to it; the folder's content is its definition."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    definition = {"task": "sums", "dataset_path": "json", "output_type": "generate_until", "test_split": "test"}
    definition |= {"doc_to_text": "TEXT", "doc_to_target": "{{answer}}", "metric_list": [{"metric": "exact_match"}]}
    content = yaml.safe_dump(definition).replace("TEXT", "!function words.text")
    (folder / "sums.yaml").write_text(content)
    (folder / "words.py").write_text("def text(doc): return f\"Sum: {doc['question']}=\"\n")
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+1", "answer": str(i + 1)}) + "\n" for i in range(6)))
    benchmark = BenchmarkConfig("harness", "math", "sums", [], items=6, dataset=str(data), task_folder=str(folder))
    benchmark.check("evaluation.benchmarks.Sums")
    tasks = load_tasks("Sums", benchmark)
    assert [tasks["sums"].doc_to_text(doc) for doc in tasks["sums"].test_docs()][:2] == ["Sum: 0+1=", "Sum: 1+1="]
    assert run("Sums", benchmark).metrics["accuracy"].n == 6
    before = benchmark.definition
    (folder / "words.py").write_text("def text(doc): return doc['question']\n")
    assert benchmark.definition != before
    with pytest.raises(UserError, match=r"B\.task=sum: did you mean 'sums'"):
        replace(benchmark, task="sum").check("B")
    with pytest.raises(UserError, match=r"B\.task_folder=.*no such folder"):
        replace(benchmark, task_folder=str(tmp_path / "none")).check("B")
    with pytest.raises(UserError, match=r"B\.task_folder=.*only tasks of lm-eval have one"):
        replace(benchmark, kind="sampled").check("B")


def test_without_a_verifier_lm_eval_scores_each_sample(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, "0", "1", "0", "4", "8", "8")  # of items 0, 2 and 4
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
    answer_with(monkeypatch, "    return a + b", "    return a - b")
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
    small = TaskManager(include_path=str(TASK_FILES), include_defaults=False)
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
    names = sorted(path.stem for path in TASK_FILES.glob("*.yaml"))
    mathematics = ["aime24", "aime25", "amc23", "hendrycks_math500", "minerva_math_272", "olympiad_bench"]
    assert names == sorted([*mathematics, "humaneval_plus", "mbpp_plus"])
    item = dict.fromkeys(("question", "problem", "Problem"), "1+1?") | dict.fromkeys(("answer", "Answer"), "2")
    item |= {
        "final_answer": ["2", "II"],
        "prompt": "p",
        "test_list": ["a", "b"],
        "test": "assert 1",
        "entry_point": "f",
    }
    (tmp_path / "d.jsonl").write_text(json.dumps(item) + "\n")
    targets, prompts = {}, {}
    for name in names:
        benchmark = BenchmarkConfig("harness", "math", name, items=1, dataset=str(tmp_path / "d.jsonl"))
        (task,) = load_tasks(name, benchmark).values()
        targets[name] = task.doc_to_target(item)
        task.build_all_requests(rank=0, world_size=1)
        prompts[name] = task.instances[0].args[0]
    assert {targets[name] for name in mathematics} == {"2"}
    # Mathematics is asked in the words of RL.
    assert {prompts[name] for name in mathematics} == {Question("t", "1+1?", "2", QUESTION_FORMAT).prompt}
    table = yaml.safe_load((Path(__file__).parents[3] / "conf" / "evaluation" / "paper.yaml").read_text())["benchmarks"]
    assert {row["task"] for row in table.values() if "grpo" in row.get("stages", ["grpo"])} == set(mathematics)
    assert targets["humaneval_plus"] == "assert 1\ncheck(f)"


SUBJECTS = {"mathematics": 7, "history": 3, "law": 1, "physics": 12}


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A group of tasks of unequal sizes, as MMLU is; multiple choice."""
    for subject, size in SUBJECTS.items():
        rows = [{"question": f"{subject} {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(size)]
        (tmp_path / f"{subject}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / f"{subject}.yaml").write_text(
            f"task: {subject}\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {tmp_path / subject}.jsonl}}}}\n"
            'doc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\ndoc_to_choice: "{{choices}}"\n'
            "num_fewshot: 0\nmetric_list:\n  - {metric: acc}\nmetadata: {version: 1.0}\n"
        )
    (tmp_path / "subjects.yaml").write_text(f"group: subjects\ntask: [{', '.join(SUBJECTS)}]\n")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr("pipelines.evaluation.lm_eval_tasks._task_manager", lambda *_: manager)
    return "subjects"


@pytest.mark.parametrize("items", [1, 2, 5, 11, 22, 23, 1000])
def test_a_limit_draws_evenly_from_a_group_and_says_so(run: Any, group: str, items: int) -> None:
    benchmark = BenchmarkConfig("harness_choice", "knowledge", group, items=items, metric="acc")
    result = run("MMLU", benchmark)
    assert (result.coverage.items, result.coverage.available) == (min(items, 23), 23)
    assert result.metrics["accuracy"].n == min(items, 23)
    tasks = load_tasks("MMLU", benchmark)
    measured, part, _ = chosen_docs(tasks, items)
    for subject, size in SUBJECTS.items():
        count = len(part.get(subject, range(size))) if subject in measured else 0
        assert abs(count - size * min(1, items / 23)) < 1


@given(sizes=st.lists(st.integers(1, 600), min_size=1, max_size=60), share=st.floats(0.001, 2))
def test_every_task_of_a_group_has_its_share(sizes: list[int], share: float) -> None:
    tasks = {str(i): SimpleNamespace(eval_docs=range(size)) for i, size in enumerate(sizes)}
    items = max(1, int(share * sum(sizes)))
    measured, part, available = chosen_docs(tasks, items)
    chosen = {name: part.get(name, list(range(len(task.eval_docs)))) for name, task in measured.items()}
    assert available == sum(sizes)
    assert sum(map(len, chosen.values())) == min(items, sum(sizes))
    for name, task in tasks.items():
        indices = chosen.get(name, [])
        assert indices == sorted(set(indices))
        assert not indices or 0 <= indices[0] <= indices[-1] < len(task.eval_docs)
        assert abs(len(indices) - len(task.eval_docs) * min(1, items / sum(sizes))) < 2


def test_the_longest_answer_is_that_of_the_benchmark(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of lm-eval's task, which is 16,384 here, also for one greedy answer."""
    limits = []

    def generate(model: Any, prompts: Any, sampling: Sampling, **rest: Any) -> Any:
        limits.append(sampling.max_new_tokens)
        return rollouts.generate(model, prompts, sampling, **rest)

    monkeypatch.setattr("pipelines.rollouts.transformers_engine.generate", generate)
    benchmark = BenchmarkConfig("harness", "math", "amc23", items=2, dataset=mathematics_file(tmp_path))
    for samples in (1, 2):
        run("AMC23", replace(benchmark, samples=samples, max_new_tokens=7))
        run("AMC23", replace(benchmark, samples=samples))
    assert limits == [7, 24, 7, 24]


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("verifier", [None, "math"])
def test_answers_are_stored_by_the_content_of_a_file(
    corpus: Corpus, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, verifier: str | None
) -> None:
    """An edited file is measured again, whatever its time says; a copy of a file is not."""
    calls = []

    def generate(model: Any, prompts: Any, sampling: Sampling, *, n: int, **rest: Any) -> Rollouts:
        """Every answer is 0."""
        calls.append(len(prompts))
        tokens = torch.tensor([[corpus.encode("0")[1], corpus.tokenizer.eos_token_id]]).repeat(n * len(prompts), 1)
        count = torch.ones(len(tokens), dtype=torch.int64)
        return Rollouts(tokens, torch.zeros(tokens.shape), lengths=2 * count, stopped=count > 0)

    monkeypatch.setattr("pipelines.rollouts.transformers_engine.generate", generate)
    path = Path(mathematics_file(tmp_path))
    benchmark = BenchmarkConfig(
        "harness", "math", "amc23", items=9, samples=samples, dataset=str(path), verifier=verifier, shots=0
    )
    metric = "accuracy" if samples == 1 else f"avg@{samples}"
    assert run("A", benchmark).metrics[metric].value == 1 / 5
    copy = tmp_path / "folder" / "copy.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert run("A", replace(benchmark, dataset=str(copy))).metrics[metric].value == 1 / 5
    assert calls == [5]
    # A corrected reference answer, and then another question; the time of the file stays.
    times = path.stat()
    text = path.read_text().replace('"answer": "2"', '"answer": "0"')
    for old, new, right, generated in (("x", "x", 2, [5, 5] if samples > 1 else [5]), ("3+3", "8+8", 2, None)):
        path.write_text(text := text.replace(old, new))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert run("A", benchmark).metrics[metric].value == right / 5
        assert calls == generated if generated else len(calls) > 1


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("verifier", [None, "math"])
def test_a_right_answer_that_the_limit_cut_is_wrong(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, verifier: str | None
) -> None:
    """All answers are right; those to the first item have ended, and the limit has cut those to the second."""
    answer_with(monkeypatch, *[text for text in ("0", "8") for _ in range(samples)])  # of items 0 and 4
    ended = Sampler.generate

    def cut(*args: Any, finished: object = None, **options: Any) -> Rollouts:
        rollouts = ended(*args, finished=finished, **options)
        return replace(rollouts, stopped=torch.arange(2 * samples) < samples)

    monkeypatch.setattr(Sampler, "generate", cut)
    dataset = mathematics_file(tmp_path)
    benchmark = BenchmarkConfig(
        "harness", "math", "amc23", items=2, samples=samples, dataset=dataset, verifier=verifier, shots=0
    )
    result = run("A", benchmark)
    assert result.metrics["accuracy" if samples == 1 else "avg@2"].value == 0.5
    assert [sample["reward"] for sample in result.samples] == ([] if samples == 1 else [1, 1, 0, 0])


@pytest.mark.parametrize("scripted", [False, True])
def test_samples_do_not_depend_on_the_pieces(
    corpus: Corpus, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: bool
) -> None:
    """Whole, and in pieces of two items (3 samples of 24 tokens each): the model's own samples, and right answers."""
    benchmark = BenchmarkConfig(
        "harness", "math", "amc23", items=5, samples=3, dataset=mathematics_file(tmp_path), verifier="math", shots=0
    )
    if scripted:
        answer_with(monkeypatch)
    results = []
    for tokens, files in ((1 << 18, 1), (2 * 3 * 24, 3)):
        answers = iter([str(2 * item) for item in range(5) for _ in range(3)])
        if scripted:
            monkeypatch.setattr(RolloutLM, "decode", lambda _, rows, it=answers, **__: [next(it) for _ in rows])
        monkeypatch.setattr("pipelines.evaluation.sampler.RANGE_TOKENS", tokens)
        with evaluation_context(corpus, tmp_path / str(tokens), CONFIG, model=model) as context:
            results.append(run_task(context, "A", benchmark))
        assert len(list((tmp_path / str(tokens)).rglob("*.jsonl.gz"))) == files
    assert results[0] == results[1]
    assert [sample["item"] for sample in results[1].samples] == [item for item in range(5) for _ in range(3)]
    assert not scripted or results[1].metrics["avg@3"].value == 1


def test_each_benchmark_has_random_numbers_of_its_own(
    run: Any, tmp_path: Path, drawn_with: list[tuple[int, ...]]
) -> None:
    dataset = mathematics_file(tmp_path)
    benchmark = BenchmarkConfig("harness", "math", "amc23", items=2, samples=2, dataset=dataset, shots=0)
    for name, limit in (("A", 5), ("B", 5), ("A", 6)):
        run(name, replace(benchmark, max_new_tokens=limit))
    assert drawn_with[0] == drawn_with[2] != drawn_with[1]
