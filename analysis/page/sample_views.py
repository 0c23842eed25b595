"""Samples that differ: right against wrong at the last RL step, and the same question over settings and RL steps.

Samples of each setting's worst and best seed are shown. Of each benchmark those questions are chosen to which some
answer right and others wrong, and every setting with a wrong answer has one of its own; those with most wrong answers
come first. RL's own samples of the same held-out questions show how an answer changes over its steps; where they hold
`tokens` and `log_probs`, the tokens of which the policy was unsure are marked.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from analysis.figures.charts import setting_order
from analysis.page.task_words import expected_answer, task_in_words
from analysis.published_files import published, read_samples
from analysis.study import Study
from pipelines.evaluation.metrics import RIGHT
from pipelines.foreign_text import parsed, shortened

SHOWN_QUESTIONS = 3
"""Questions of a benchmark, besides those that a setting's wrong answer needs."""
SHOWN_SETTINGS = 6
SHOWN_CHARACTERS = 5_000
"""Of a question or an answer; the page says how many more it has."""
UNSURE = math.log(0.7)
"""Log-probability below which the policy was unsure of a token that it drew."""


@dataclass(frozen=True)
class _Answers:
    """A setting's answers to one question."""

    rows: list[dict[str, Any]]

    @property
    def right(self) -> int:
        """How many of them are right."""
        return sum(row["right"] for row in self.rows)

    @property
    def has_wrong(self) -> bool:
        """Whether any is wrong."""
        return self.right < len(self.rows)


Place = tuple[str, int]
"""A setting and a seed."""
Questions = dict[str, dict[Place, _Answers]]
"""Question -> its answers by setting and seed."""


def samples(study: Study, colours: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns what the page shows of a study's samples; None if no samples were kept."""
    if study.store is None:
        return None
    benchmarks, courses = [], []
    for model in study.runs["model"].unique().tolist():
        settings = setting_order(study.runs.loc[study.runs["model"] == model, "objective"])[:SHOWN_SETTINGS]
        benchmarks += _benchmarks(study, model, settings)
        courses += _courses(study, model, settings)
    if not benchmarks and not courses:
        return None
    return {"benchmarks": benchmarks, "courses": courses, "colours": dict(colours)}


def worst_and_best(shares: Mapping[int, float]) -> list[int]:
    """Returns the seeds with the lowest and the highest share of right answers, in this order; one if there is one."""
    ordered = sorted(shares, key=lambda seed: (shares[seed], seed))
    return list(dict.fromkeys((ordered[0], ordered[-1]))) if ordered else []


def _benchmarks(study: Study, model: str, settings: Sequence[str]) -> list[dict[str, Any]]:
    """The questions of each benchmark at the last RL step, from the worst and the best seed of every setting."""
    assert study.store is not None
    rows = study.measurements
    rows = rows[(rows["stage"] == "grpo") & (rows["variant"] == "") & (rows["group"] == "math")]
    rows = rows[(rows["model"] == model) & rows["objective"].isin(settings)]
    if rows.empty:
        return []
    last = rows[rows["step"] == rows["step"].max()].astype({"objective": object})
    # benchmark -> question -> (setting, seed) -> answers
    found: dict[str, Questions] = {}
    tasks: dict[str, str] = {}
    for setting, of_setting in last.groupby("objective", sort=False):
        averages = of_setting[of_setting["metric"].astype(str).str.startswith("avg@")]
        shares = of_setting.assign(value=0.0) if averages.empty else averages
        for seed in worst_and_best(shares.groupby("seed")["value"].mean().to_dict()):
            of_seed = of_setting[of_setting["seed"] == seed]
            run, wanted = str(of_seed["stage_run"].iloc[0]), set(of_seed["benchmark"])
            tasks |= _tasks(study, run)
            for row in read_samples(study.store, run, None):
                if row["benchmark"] in wanted:
                    answers = found.setdefault(row["benchmark"], {}).setdefault(str(row["question"]), {})
                    answers.setdefault((str(setting), int(seed)), _Answers([])).rows.append(row)
    place = f"{model}, RL step {last['step'].iloc[0]}"
    return [
        _benchmark(f"{benchmark}, {place}", questions, settings, task=tasks.get(benchmark, ""))
        for benchmark, questions in found.items()
    ]


def _tasks(study: Study, run: str) -> dict[str, str]:
    """Benchmark -> its task, of an evaluation."""
    evaluation = study.specs[run]["config"].get("evaluation") or {}
    return {name: str(benchmark.get("task", "")) for name, benchmark in evaluation.get("benchmarks", {}).items()}


def _benchmark(title: str, questions: Questions, settings: Sequence[str], *, task: str) -> dict[str, Any]:
    """A benchmark's counts of wrong answers, and the questions that show how settings differ."""
    places = list(dict.fromkeys(place for answers in questions.values() for place in answers))
    places.sort(key=lambda place: settings.index(place[0]))  # stable: the worst seed stays first
    counts = []
    for place in places:
        answers = [by_place[place] for by_place in questions.values() if place in by_place]
        total, right = sum(len(answer.rows) for answer in answers), sum(answer.right for answer in answers)
        counts.append({"setting": place[0], "seed": place[1], "wrong": total - right, "total": total})
    present = list(dict.fromkeys(setting for setting, _ in places))
    return {
        "title": title,
        "task": task_in_words(task),
        "settings": present,
        "counts": counts,
        "questions": [
            {
                "question": shortened(question, SHOWN_CHARACTERS),
                "expected": shortened(
                    expected_answer(question, (r for a in questions[question].values() for r in a.rows), [task]),
                    SHOWN_CHARACTERS,
                ),
                "answers": {
                    name: sorted(
                        (_answer(a) | {"seed": seed} for (own, seed), a in questions[question].items() if own == name),
                        key=lambda answer: bool(answer["right"]),
                    )
                    for name in present
                },
            }
            for question in _chosen(questions, present)
        ],
    }


def _chosen(questions: Questions, settings: Sequence[str]) -> list[str]:
    """The questions on which answers differ most, and one with a wrong answer of each setting that has any."""

    def spread(question: str) -> float:
        shares = [answers.right / len(answers.rows) for answers in questions[question].values()]
        return max(shares) - min(shares)

    def is_wrong(question: str, setting: str) -> bool:
        return any(answers.has_wrong for (own, _), answers in questions[question].items() if own == setting)

    def wrong(question: str) -> int:
        return sum(len(answers.rows) - answers.right for answers in questions[question].values())

    ordered = sorted(questions, key=spread, reverse=True)  # stable: the benchmark's order among equals
    chosen = ordered[:SHOWN_QUESTIONS]
    for setting in settings:
        found = [question for question in ordered if is_wrong(question, setting)]
        if found and not any(question in chosen for question in found):
            chosen.append(found[0])
    return sorted(chosen, key=wrong, reverse=True)


def _answer(answers: _Answers) -> dict[str, Any]:
    """The first wrong answer of a setting if it has one, else its first, and how many of them are right."""
    row = next((row for row in answers.rows if not row["right"]), answers.rows[0])
    return {
        "parts": marked(row),
        "right": row["right"],
        "count": f"of {len(answers.rows)} samples {answers.right} right",
    }


def _courses(study: Study, model: str, settings: Sequence[str]) -> list[dict[str, Any]]:
    """RL's samples of the same held-out questions over its steps: question -> setting -> step -> answer."""
    assert study.store is not None
    runs = study.runs[(study.runs["stage"] == "grpo") & (study.runs["status"] == "done")]
    runs = runs[(runs["model"] == model) & runs["objective"].isin(settings)]
    if runs.empty:
        return []
    runs = runs.drop_duplicates(["objective", "seed"])  # of several RL seeds the first
    tasks: set[str] = set()
    # question -> (setting, seed) -> step -> sample
    found: dict[str, dict[Place, dict[int, dict[str, Any]]]] = {}
    for setting, of_setting in runs.groupby("objective", sort=False):
        by_seed = {int(seed): _own_samples(study, run) for seed, run in of_setting[["seed", "stage_run"]].to_numpy()}
        shares = {seed: _last_share(rows) for seed, rows in by_seed.items() if rows}
        for run in of_setting["stage_run"]:
            tasks |= set(map(str, study.specs[run]["config"]["grpo"].get("tasks") or [""]))
        for seed in worst_and_best(shares):
            for row in by_seed[seed]:
                steps = found.setdefault(str(row["question"]), {}).setdefault((str(setting), seed), {})
                steps[int(row["step"])] = row
    if not found:
        return []

    def changes(question: str) -> tuple[int, int]:
        """How often RL changes the verdict of an answer, and how many different answers there are."""
        courses = [[steps[step] for step in sorted(steps)] for steps in found[question].values()]
        flips = sum(a["right"] != b["right"] for course in courses for a, b in pairwise(course))
        return flips, len({row["response"] for course in courses for row in course})

    chosen = sorted(found, key=changes, reverse=True)[:SHOWN_QUESTIONS]
    rows = [row for question in chosen for steps in found[question].values() for row in steps.values()]
    return [
        {
            "title": model,
            "settings": [name for name in settings if any(own == name for q in chosen for own, _ in found[q])],
            "questions": [_course(question, found[question], tasks) for question in chosen],
            "is_marked": any("log_probs" in row for row in rows),
        }
    ]


def _own_samples(study: Study, run: str) -> list[dict[str, Any]]:
    """The held-out samples that an RL run kept, each with whether it is right."""
    assert study.store is not None
    path = published(study.store.run("grpo", run), "samples.jsonl")
    rows = [parsed(line) for line in path.read_bytes().split(b"\n")[:-1]] if path else []
    for row in rows:
        row["right"] = row["reward"] >= RIGHT
    return rows


def _last_share(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of right answers at the last step."""
    step = max(row["step"] for row in rows)
    right = [bool(row["right"]) for row in rows if row["step"] == step]
    return sum(right) / len(right)


def _course(
    question: str, found: Mapping[Place, Mapping[int, Mapping[str, Any]]], tasks: Iterable[str]
) -> dict[str, Any]:
    """A question's answers over the first, the middle and the last step, the worst seed of each setting first."""
    steps = sorted({step for rows in found.values() for step in rows})
    shown = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]) if len(steps) > 2 else steps)
    answers: dict[str, list[dict[str, Any]]] = {}
    for (setting, seed), rows in found.items():
        answers.setdefault(setting, []).extend(
            {"step": step, "seed": seed, "parts": marked(rows[step]), "right": rows[step]["right"]}
            for step in shown
            if step in rows
        )
    samples_of_all = [row for rows in found.values() for row in rows.values()]
    return {
        "question": shortened(question, SHOWN_CHARACTERS),
        "expected": shortened(expected_answer(question, samples_of_all, tasks), SHOWN_CHARACTERS),
        "answers": answers,
    }


def marked(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Returns a response in parts, each with whether the policy was unsure of it; one part if that is not recorded.

    So too where a character is half in one token and half in the next, whose texts are not those of the response.
    """
    tokens, log_probs = row.get("tokens") or [], row.get("log_probs") or []
    response = str(row["response"])
    is_recorded = len(tokens) == len(log_probs) and "".join(tokens) == response
    if not is_recorded or len(response) > SHOWN_CHARACTERS:
        return [(shortened(response, SHOWN_CHARACTERS), False)]
    parts: list[tuple[str, bool]] = []
    for token, log_prob in zip(tokens, log_probs, strict=True):
        is_unsure = log_prob < UNSURE
        if parts and parts[-1][1] == is_unsure and not is_unsure:
            parts[-1] = (parts[-1][0] + token, False)
        else:
            parts.append((token, is_unsure))
    return parts
