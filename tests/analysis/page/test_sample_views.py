"""Which samples are shown: those that differ, one wrong answer of each setting that has any, and marks of doubt."""

import json
import math
from collections.abc import Callable

import pytest

from analysis.page.sample_views import SHOWN_QUESTIONS, marked, samples
from analysis.page.task_words import expected_answer, task_in_words
from analysis.study import read_study
from pipelines.evaluation.samples import SAMPLES, write_rows
from tests.analysis.conftest import Measured, known
from tests.published import publish

COLOURS = {"ce": "#000", "precision": "#111"}


def write_samples(graph: object, store: object, rewards: dict[str, list[list[int]]]) -> None:
    """Write samples of Chain-5 after RL: setting -> for each question the rewards of its samples."""
    for run in graph.runs.values():  # type: ignore[attr-defined]
        if run.stage == "evaluate" and run.checkpoint == "step-000020" and not run.control:
            rows = [
                {"benchmark": "Chain-5", "question": f"q{q}", "response": f"{q}.{n}", "reward": float(reward)}
                for q, of_question in enumerate(rewards[run.labels["objective"]])
                for n, reward in enumerate(of_question)
            ]
            folder = store.root / "evaluate" / run.signature  # type: ignore[attr-defined]
            write_rows(folder / SAMPLES, rows)
            publish(folder)


def test_questions_that_differ_come_first_and_every_setting_with_a_wrong_answer_has_one(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision"])
    same, half = [1, 1], [1, 0]
    ce = [same] * 10
    # ce is wrong on 4, 6 and 8 only, precision only on 9, and a little.
    ce[4] = ce[6] = ce[8] = [0, 0]
    precision = [same] * 9 + [half]
    write_samples(graph, store, {"ce": ce, "precision": precision})
    view = samples(read_study(graph, store), COLOURS)
    assert view is not None
    (benchmark,) = view["benchmarks"]
    assert [q["question"] for q in benchmark["questions"]] == ["q4", "q6", "q8", "q9"]
    assert len(benchmark["questions"]) == SHOWN_QUESTIONS + 1
    assert [(c["setting"], c["seed"], c["wrong"], c["total"]) for c in benchmark["counts"]] == [
        ("ce", 1, 6, 20),
        ("precision", 1, 1, 20),
    ]
    last = benchmark["questions"][-1]["answers"]
    assert last["precision"] == [
        {"parts": [("9.1", False)], "right": False, "count": "of 2 samples 1 right", "seed": 1}
    ]
    assert last["ce"][0]["right"]
    assert benchmark["task"].startswith("A chain of five terms: digits added and subtracted")


def test_the_worst_and_the_best_seed_are_shown_with_the_wrong_one_first(make_store: Callable) -> None:
    def number(measured: Measured) -> float:
        return {1: 0.9, 2: 0.1, 3: 0.5}[measured.seed] if measured.metric.startswith("avg") else known(measured)

    graph, store = make_store(["objective=ce", "seed=1,2,3"], number=number)
    for run in graph.runs.values():
        if run.stage == "evaluate" and run.checkpoint == "step-000020":
            right = {1: (1, 1), 2: (0, 0), 3: (1, 0)}[run.config["seed"]]
            rows = [
                {"benchmark": "Chain-5", "question": question, "response": f" #### {answer}", "reward": float(reward)}
                for question, answer, reward in zip(("1+1+1+1+1", "9-8+1+1-2"), (5, 1), right, strict=True)
            ]
            write_rows(store.root / "evaluate" / run.signature / SAMPLES, rows)
            publish(store.root / "evaluate" / run.signature)
    view = samples(read_study(graph, store), COLOURS)
    assert view is not None
    (benchmark,) = view["benchmarks"]
    assert [(c["seed"], c["wrong"]) for c in benchmark["counts"]] == [(2, 2), (1, 0)]
    for question, expected in zip(benchmark["questions"], ("5", "1"), strict=True):
        assert question["expected"] == expected
        assert [(a["seed"], a["right"]) for a in question["answers"]["ce"]] == [(2, False), (1, True)]


@pytest.mark.parametrize(
    ("question", "rows", "tasks", "expected"),
    [
        ("7-5+3", [], ["chain3"], "5"),
        ("7-5+3", [{"right": True, "response": "x", "answer": "5"}], [], "5"),
        ("q", [{"right": False, "response": " #### 4"}, {"right": True, "response": " 2 #### 3"}], ["boolean"], "3"),
        ("7-5+3", [{"right": False, "response": " #### 4"}], ["chain3", "boolean"], ""),
        ("__import__('os')", [], ["chain3"], ""),
    ],
)
def test_what_a_question_expects(question: str, rows: list[dict], tasks: list[str], expected: str) -> None:
    assert expected_answer(question, rows, tasks) == expected


def test_tasks_in_words() -> None:
    assert task_in_words("chain3").endswith("`7-5+3` -> `2+3` -> `5`.".replace("`", ""))
    assert task_in_words("chain5") == (
        "A chain of five terms: digits added and subtracted from left to right, with one-digit totals."
    )
    assert task_in_words("boolean").startswith("Truth values combined")
    assert task_in_words("somebody-elses") == ""


def test_the_same_question_over_steps_and_settings(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision"])
    for run in graph.runs.values():
        if run.stage == "grpo":
            rows = [
                {"step": step, "question": f"q{q}", "response": f" {step}{q}", "reward": float(q == 1 and step >= 10),
                 "tokens": [" ", f"{step}", f"{q}"], "log_probs": [-0.01, -1.2, -0.3]}
                for step in (0, 10, 20)
                for q in range(2)
            ]  # fmt: skip
            folder = store.run("grpo", run.signature).folder
            (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            publish(folder)
    view = samples(read_study(graph, store), COLOURS)
    assert view is not None
    (course,) = view["courses"]
    assert course["is_marked"]
    assert course["settings"] == ["ce", "precision"]
    first = course["questions"][0]
    assert first["question"] == "q1"  # its verdicts change
    assert [(a["step"], a["right"]) for a in first["answers"]["ce"]] == [(0, False), (10, True), (20, True)]
    assert first["answers"]["ce"][2]["parts"] == [(" ", False), ("20", True), ("1", False)]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"response": "abc"}, [("abc", False)]),
        ({"response": "abc", "tokens": ["a", "b", "c"], "log_probs": [0.0, 0.0, 0.0]}, [("abc", False)]),
        (
            {"response": "abc", "tokens": ["a", "b", "c"], "log_probs": [-2, -3, 0.0]},
            [("a", True), ("b", True), ("c", False)],
        ),
        ({"response": "abc", "tokens": ["a"], "log_probs": [0.0, -9.0]}, [("abc", False)]),
        ({"response": "é", "tokens": ["\ufffd", "\ufffd"], "log_probs": [0.0, -9.0]}, [("é", False)]),
    ],
)
def test_tokens_of_which_the_policy_was_unsure(row: dict, parts: list[tuple[str, bool]]) -> None:
    assert marked(row) == parts


def test_without_samples_nothing_is_shown(make_store: Callable) -> None:
    assert samples(read_study(*make_store(["objective=ce"])), COLOURS) is None
    assert samples(read_study(make_store(["objective=ce"])[0], None), COLOURS) is None


def test_the_policy_is_unsure_below_seven_tenths() -> None:
    row = {"response": "ab", "tokens": ["a", "b"], "log_probs": [math.log(0.69), math.log(0.71)]}
    assert marked(row) == [("a", True), ("b", False)]


def test_of_several_rl_seeds_the_samples_of_the_first_are_shown(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce", "grpo.seed=11,12"])
    for run in graph.runs.values():
        if run.stage == "grpo":
            own = run.config["grpo"]["seed"]
            folder = store.run("grpo", run.signature).folder
            rows = [{"step": step, "question": "q", "response": f" {own}", "reward": 1.0} for step in (0, 20)]
            (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            publish(folder)
    view = samples(read_study(graph, store), COLOURS)
    assert view is not None
    (course,) = view["courses"]
    shown = [answer["parts"] for answer in course["questions"][0]["answers"]["ce"]]
    assert shown == [[(" 11", False)]] * 2
