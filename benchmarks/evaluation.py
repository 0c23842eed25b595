"""Evaluation: our `LM` against lm-eval's `hf`; seconds of metrics, verification and programs; its share of a sweep.

    python -m benchmarks.evaluation [--json FILE] [--store STORE]

`--store` is a store of a finished `shaping-run -m +sweep=nano`: its evaluations' share of all stage seconds is
measured. Without it that row is left out, since the sweep takes minutes.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparison import Row, report, seconds_of, timed
from pipelines.configuration.data import DataConfig
from pipelines.configuration.model import ModelConfig
from pipelines.data.corpus import Corpus, prepare
from pipelines.evaluation.metrics import mean_intervals, pass_at_k, sampling_error
from pipelines.models.causal_lm import build_model
from pipelines.verifiers import Judge
from sweeps.store.stage_runs import Store

MODEL = ModelConfig("nano", layers=3, d_model=96, ffn=288, heads=6, kv_heads=2, head_dim=16)
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, train: {file}.train}}}}
test_split: test
fewshot_split: train
num_fewshot: 5
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
fewshot_config: {{sampler: first_n}}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
SAMPLED = """
task: sampled
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
num_fewshot: 0
repeats: 16
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["Question:"], do_sample: true, temperature: 0.7, top_p: 0.95, max_gen_toks: 48}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def harness_rows(folder: Path) -> list[Row]:
    """A five-shot multiple-choice task of 64 items, and 16 samples of 16 prompts, at the best batch size for hf."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from pipelines.evaluation.lm_eval_model import RolloutLM

    # A random nano model with the tokenizer of a small corpus, and two tasks in lm-eval's format.
    corpus = prepare(DataConfig("b", ["networkx"], ["chain3"], 2000, 0.5, 0.5, 640, 16), folder / "cache")
    model = build_model(MODEL, corpus.tokenizer, 1e4, seed=0).eval()
    questions(corpus, folder / "items.jsonl")
    for name, content in (("choice", CHOICE), ("sampled", SAMPLED)):
        (folder / f"{name}.yaml").write_text(content.format(file=folder / "items.jsonl"))
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run(lm: Any, task: str, limit: int) -> None:
        torch.manual_seed(0)
        lm_eval.evaluate(lm, manager.load(task), limit=limit, bootstrap_iters=0, log_samples=False)

    rows = []
    for task, limit, description in (
        ("choice", 64, "five-shot multiple choice, 64 items"),
        ("sampled", 16, "16 samples of 16 prompts, 48 tokens"),
    ):

        def ours(task: str = task, limit: int = limit) -> None:
            run(RolloutLM(model, corpus.tokenizer), task, limit)

        def hf(batch: int, task: str = task, limit: int = limit) -> None:
            run(HFLM(pretrained=model, tokenizer=corpus.tokenizer, batch_size=batch), task, limit)

        # hf runs with its fastest batch size.
        trials = {size: seconds_of(partial(hf, size)) for size in (8, 32, 128)}
        batch = min(trials, key=lambda size: trials[size])
        seconds = timed({"ours": ours, "hf": partial(hf, batch)}, rounds=3, warm_up=0)
        rows.append(Row(f"{description} (hf at batch {batch})", seconds["ours"], seconds["hf"], "s", 1 / 1.5))
    return rows


def questions(corpus: Corpus, path: Path) -> None:
    """Write 64 questions of about 50 tokens with four options, made from documents."""
    documents = corpus.documents("test")[:64]
    rows = [
        {
            "question": " ".join(document.text.split()[:25]),
            "choices": [" ".join(documents[(i + j) % 64].text.split()[25:31]) or "nothing" for j in range(4)],
            "label": 0,
        }
        for i, document in enumerate(documents)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines))
    path.with_name(f"{path.name}.train").write_text("".join(lines[-5:]))  # worked examples, the same for every item


def metric_rows() -> list[Row]:
    """A million Pass@k with intervals: 7,813 sets of 64 problems with 128 samples, for every k."""
    rng = np.random.default_rng(0)
    correct = rng.binomial(128, rng.beta(0.5, 0.8, (7813, 64)))
    all_k = np.arange(1, 129)

    def students() -> None:
        table = pass_at_k(np.arange(129), 128, all_k)
        for counts in correct:
            mean_intervals(table[counts], resample=False)

    def resampled() -> None:
        """For 100 of the sets, with resampled intervals and the error of sampling."""
        for counts in correct[:100]:
            values = pass_at_k(counts, 128, all_k)
            mean_intervals(values), sampling_error(counts, 128, all_k)

    seconds = timed({"students": students, "resampled": resampled}, rounds=3)
    return [
        Row("1,000,064 Pass@k with intervals (Student's t)", seconds["students"], 5.0, "s", 1.0),
        Row("12,800 Pass@k with resampled intervals", seconds["resampled"], 5.0, "s", None),
    ]


HOSTILE = [
    "\\boxed{9^{9^{9^{9^9}}}}", "\\boxed{" * 500, "(" * 3000, "1" * 4000, "$" + "\\frac{" * 400,
    "\\boxed{(1+2)^{10^{10}}}",
    "\\boxed{\\sqrt{" + "x+" * 800 + "1}}", "x" * 4096, "\x00" * 100, "\\boxed{100000000!}",
]  # fmt: skip


def verification_rows() -> list[Row]:
    """10,000 mathematical answers verified by two workers, 100 of them hostile."""
    # Answers in four forms with their reference answers; every hundredth answer is hostile.
    rng = np.random.default_rng(0)
    items: list[tuple[str, str | None, str]] = []
    for i in range(10_000):
        a, b = (int(n) for n in rng.integers(1, 99, 2))
        answers = (
            f"\\boxed{{{a}}}",
            f"so it is \\boxed{{\\frac{{{a}}}{{{b}}}}}",
            f"\\boxed{{{a}x+{b}}}",
            f"\\boxed{{{a / b:.3f}}}",
        )
        golds = (str(a), f"{a}/{b}", f"{b}+{a}x", f"{a / b:.3f}")
        items.append(("math", HOSTILE[i // 100 % len(HOSTILE)] if i % 100 == 50 else answers[i % 4], golds[i % 4]))
    with Judge(2) as judge:
        judge.rewards(items[:4])  # starts the workers
        start = time.perf_counter()
        verdicts = judge.rewards(items)
        seconds = time.perf_counter() - start
    rejected = sum(v.reward != 1 for i, v in enumerate(verdicts) if i % 100 != 50)
    if rejected:
        raise SystemExit(f"{rejected} correct answers were judged to be wrong")
    return [Row("verification of 10,000 answers, 2 workers", seconds, 30.0, "s", 1.0)]


PROGRAMS = (
    # the body of f(x), and tests that it passes if `right`
    ("return x + {i}", "for x in range(-20, 21):\n    assert f(x) == x + {i}", True),
    ("return sorted(x, key=lambda v: v * {i})", "assert f([3, 1, 2]) == [1, 2, 3]", True),
    ("return np.cumsum(x) + {i}", "assert np.allclose(f([1.0, 2.0]), [1 + {i}, 3 + {i}])", True),
    ("return {{k: v + {i} for k, v in x.items()}}", "assert f({{'a': 1}}) == {{'a': 1 + {i}}}", True),
    ("return x - {i}", "for x in range(-20, 21):\n    assert f(x) == x + {i} + 1", False),
    ("return x +* {i}", "assert f(1) == 1", False),
    ("raise ValueError({i})", "assert f(1) == 1", False),
    ("open('/tmp/x', 'w').write('{i}')\n    return x", "assert f({i}) == {i}", False),
    ("import os\n    os.fork()\n    return {i}", "assert f(1) == {i}", False),
    ("import builtins\n    builtins.abs = lambda v: 0\n    return -1 - {i}", "assert abs(f(1)) < 1e-6", False),
)  # fmt: skip


def program_rows() -> list[Row]:
    """1,000 programs with their tests, judged by two workers; at 50 a second they take 20 s."""
    items: list[tuple[str, str | None, str]] = []
    for i in range(1000):
        body, tests, _ = PROGRAMS[i % len(PROGRAMS)]
        items.append(("code", f"import numpy as np\ndef f(x):\n    {body.format(i=i)}\n", tests.format(i=i)))
    with Judge(2) as judge:
        judge.rewards(items[:4])  # starts the workers
        start = time.perf_counter()
        verdicts = judge.rewards(items)
        seconds = time.perf_counter() - start
    wrong = sum(v.reward != PROGRAMS[i % len(PROGRAMS)][2] or v.failure is not None for i, v in enumerate(verdicts))
    if wrong:
        raise SystemExit(f"{wrong} programs were judged wrongly")
    return [Row("1,000 programs with their tests, 2 workers (50 a second)", seconds, 20.0, "s", 1.0)]


def share_rows(store: Path) -> list[Row]:
    """Seconds of the evaluations in a store against those of all its stage runs."""
    seconds = {"evaluate": 0.0, "all": 0.0}
    for run in Store.open(store).runs():
        if run.result:
            seconds["all"] += run.result["seconds"]
            seconds["evaluate"] += run.result["seconds"] * (run.stage == "evaluate")
    return [Row("evaluations' share of the sweep", seconds["evaluate"], seconds["all"], "s", 0.25)]


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--only", choices=("harness", "metrics", "verification", "programs"))
    options, report_arguments = parser.parse_known_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    logging.disable(logging.WARNING)
    rows = []
    if options.only in (None, "metrics"):
        rows += metric_rows()
    if options.only in (None, "verification"):
        rows += verification_rows()
    if options.only in (None, "programs"):
        rows += program_rows()
    if options.only in (None, "harness"):
        with tempfile.TemporaryDirectory() as folder:
            rows += harness_rows(Path(folder))
    if options.store:
        rows += share_rows(options.store)
    return report(rows, "Evaluation", report_arguments)


if __name__ == "__main__":
    sys.exit(main())
