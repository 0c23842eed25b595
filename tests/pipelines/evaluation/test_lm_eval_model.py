"""`RolloutLM` against lm-eval's `hf` backend on the same checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from pipelines.configuration.model import ModelConfig  # noqa: E402
from pipelines.data.corpus import Corpus  # noqa: E402
from pipelines.evaluation.benchmark_cache import BenchmarkCache  # noqa: E402
from pipelines.evaluation.lm_eval_model import RolloutLM  # noqa: E402
from pipelines.models.causal_lm import build_model, save_checkpoint  # noqa: E402

ITEMS = 12
SHOTS = "".join(f"Question: What is {i} plus {i}?\nAnswer: {2 * i}\n\n" for i in range(1, 6))

GENERATE = """
output_type: generate_until
generation_kwargs: {{until: ["\\n", "Q"], do_sample: false, max_gen_toks: 40}}
"""
REGEX = """
filter_list:
  - name: number
    filter:
      - {{function: regex, regex_pattern: "([a-z]+)"}}
      - {{function: take_first}}
"""
METRIC = """
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
fewshot_split: test
num_fewshot: 3
metric_list:
  - {{metric: acc}}
  - {{metric: acc_norm}}
""",
    "letters": """
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nA. {{{{choices[0]}}}} B. {{{{choices[1]}}}} C. {{{{choices[2]}}}}\\nAnswer:"
doc_to_target: "{{{{label}}}}"
doc_to_choice: ["A", "B", "C"]
num_fewshot: 0
metric_list:
  - {{metric: acc}}
""",
    "cloze": """
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{choices[0]}}}}"
num_fewshot: 0
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc}}
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{choices | join(' ')}}}}"
num_fewshot: 0
metric_list:
  - {{metric: bits_per_byte}}
""",
    "regex": 'doc_to_text: "Q: {{{{question}}}}\\nA:"\ndoc_to_target: "{{{{answer}}}}"\nnum_fewshot: 0'
    + GENERATE
    + METRIC
    + REGEX,
    "cot": f'description: {json.dumps(SHOTS)}\ndoc_to_text: "Question: {{{{{{{{question}}}}}}}}\\nAnswer:"\n'
    'doc_to_target: "{{{{answer}}}}"\nnum_fewshot: 0' + GENERATE + METRIC,
    "maths": 'doc_to_text: "Problem: {{{{question}}}}\\nSolution:"\ndoc_to_target: "{{{{answer}}}}"\nnum_fewshot: 2\n'
    "fewshot_split: test" + GENERATE + METRIC,
    "code": 'doc_to_text: "def f(x):\\n    # {{{{question}}}}\\n"\ndoc_to_target: "{{{{answer}}}}"\nnum_fewshot: 0'
    + GENERATE
    + METRIC,
}
"""Name -> task file: multiple choice with worked examples and by letter, cloze, whole texts, generation with a regular
expression, after worked examples, mathematics, and code."""


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> Any:
    """An untrained model with large weights, so that no two tokens tie."""
    model = build_model(ModelConfig("t", 2, 32, 64, 4, 2, 8), corpus.tokenizer, 1e4, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(15)
    return model


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["graph", "node", "edge", "path", "tree", "cycle"]
    rows = [
        {
            "question": f"Which word of number {i} comes after {words[i % 6]} and {words[(i + 2) % 6]}?",
            "choices": [words[(i + j) % 6] * (1 + j % 2) for j in range(3)],
            "label": i % 3,
            "answer": words[i % 3],
        }
        for i in range(ITEMS)
    ]
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tasks(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("tasks")
    for name, content in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {questions}}}}}\n"
        tail = "\ntest_split: test\nmetadata: {version: 1.0}\n"
        (folder / f"{name}.yaml").write_text(head + content.format() + tail)
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def backends(model: Any, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ours on the model in memory, and lm-eval's on its exported checkpoint."""
    folder = tmp_path_factory.mktemp("export") / "step-000001"
    save_checkpoint(model, corpus.tokenizer, folder)
    return {
        "ours": RolloutLM(model, corpus.tokenizer),
        "hf": HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4),
        "hf without start": HFLM(
            pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, add_bos_token=False
        ),
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_task_scores_as_in_the_hf_backend(name: str, tasks: TaskManager, backends: dict[str, Any]) -> None:
    outcomes = {}
    # The windows of whole texts begin with the start of a document; hf would put a second one before it.
    theirs_name = "hf without start" if name == "rolling" else "hf"
    for backend in ("ours", theirs_name):
        lm = backends[backend]
        loaded = tasks.load(name)
        loaded["tasks"][name].set_fewshot_seed(seed=1)
        results = lm_eval.evaluate(lm, loaded, bootstrap_iters=0)
        samples = sorted(results["samples"][name], key=lambda row: row["doc_id"])
        outcomes[backend] = (results["results"][name], [row["resps"] for row in samples])
    numbers = [{k: v for k, v in result.items() if isinstance(v, float)} for result, _ in outcomes.values()]
    ours, theirs = ([flat(response) for response in responses] for _, responses in outcomes.values())
    assert len(ours) == ITEMS
    if isinstance(ours[0][0], str):
        assert ours == theirs  # greedy texts
        assert numbers[0] == numbers[1]
        assert len({text for response in ours for text in response}) > 1
    else:
        assert flat(ours) == pytest.approx(flat(theirs), abs=1e-4)
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)


def flat(response: Any) -> list[Any]:
    if isinstance(response, list | tuple):
        return [leaf for part in response for leaf in flat(part)]
    return [response]


def test_log_likelihoods_equal_a_forward_pass_for_shared_empty_and_long_contexts(model: Any, corpus: Corpus) -> None:
    """With a model that sees 40 tokens, so that the longest context loses its beginning, not the document's start."""
    lm = RolloutLM(model, corpus.tokenizer)
    shared = "The same examples come first. " * 4
    pairs = [(f"{shared}{i} nodes and", f" {i} edges") for i in range(5)] + [("", "a graph"), ("x" * 200, " end")]
    lm.max_length = 40
    answers = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    for (context, continuation), (log_prob, greedy) in zip(pairs, answers, strict=True):
        if context:
            before, after = lm._encode_pair(context, continuation)
        else:
            before, after = [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)
        assert before[0] == corpus.tokenizer.eos_token_id
        ids = torch.tensor([before[:1] + (before[1:] + after)[-40:]])
        with torch.no_grad():
            logits = model(ids[:, :-1]).logits[0, -len(after) :].double().log_softmax(-1)
        assert log_prob == pytest.approx(float(logits[range(len(after)), after].sum()), abs=1e-4)
        assert greedy == (logits.argmax(-1).tolist() == after)
    assert lm.cut_prompts == 6  # the shared examples have 100 tokens, the other long context 200


def test_equal_requests_get_different_samples_and_equal_greedy_texts(model: Any, corpus: Corpus) -> None:
    lm = RolloutLM(model, corpus.tokenizer)
    sampling = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "max_gen_toks": 30, "until": ["e"]}
    requests = [Instance("generate_until", {}, (context, sampling), 0) for context in ("a graph", "a tree") * 6]
    texts = lm.generate_until(requests)
    assert len(set(texts[::2])) > 2
    assert not any("e" in text for text in texts)
    assert RolloutLM(model, corpus.tokenizer).generate_until(requests) == texts
    greedy = [Instance("generate_until", {}, ("a graph", {"max_gen_toks": 5, "until": []}), 0)] * 3
    assert len(set(lm.generate_until(greedy))) == 1


def test_stored_answers_are_reused(model: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Instance("loglikelihood", {}, (f"context {i}", " end"), i) for i in range(6)]
    first = RolloutLM(model, corpus.tokenizer, BenchmarkCache(tmp_path, {})).loglikelihood(requests)
    monkeypatch.setattr("pipelines.evaluation.lm_eval_model.likelihoods", None)
    assert RolloutLM(model, corpus.tokenizer, BenchmarkCache(tmp_path, {})).loglikelihood(requests) == first


def test_texts_do_not_depend_on_the_pieces(
    model: Any, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, and in pieces of two contexts (2 texts of 10 tokens each)."""
    settings = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 10, "until": []}
    requests = [Instance("generate_until", {}, (f"a graph of {'many ' * i}", settings), 0) for i in range(5)] * 2
    texts = []
    for tokens, files in ((1 << 18, 1), (2 * 2 * 10, 3)):
        monkeypatch.setattr("pipelines.evaluation.sampler.RANGE_TOKENS", tokens)
        cache = BenchmarkCache(tmp_path / str(tokens), {})
        texts.append(RolloutLM(model, corpus.tokenizer, cache).generate_until(requests))
        assert len(list((tmp_path / str(tokens)).rglob("*.jsonl.gz"))) == files
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5


def test_texts_of_other_contexts_and_settings_have_other_random_numbers(
    model: Any, corpus: Corpus, drawn_with: list[tuple[int, ...]]
) -> None:
    for context, temperature in (("a graph", 1.0), ("a tree", 1.0), ("a graph", 0.5), ("a graph", 1.0)):
        settings = {"do_sample": True, "temperature": temperature, "max_gen_toks": 5, "until": []}
        RolloutLM(model, corpus.tokenizer).generate_until([Instance("generate_until", {}, (context, settings), 0)])
    assert len(set(drawn_with)) == 3
    assert drawn_with[0] == drawn_with[3]
