"""Samples that differ: right against wrong at the last RL step, and the same question over settings and RL steps.

Samples of the first seed are shown. Of each benchmark those questions come first to which some settings answer right
and others wrong, and every setting with a wrong answer has one of its own. RL's own samples of the same held-out
questions show how an answer changes over its steps; where they hold `tokens` and `log_probs`, the tokens of which the
policy was unsure are marked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from analysis.figures.charts import setting_order
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


Questions = dict[str, dict[str, _Answers]]
"""Question -> setting -> its answers."""


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


def _benchmarks(study: Study, model: str, settings: Sequence[str]) -> list[dict[str, Any]]:
    """The questions of each benchmark at the last RL step of the first seed."""
    assert study.store is not None
    rows = study.measurements
    rows = rows[(rows["stage"] == "grpo") & (rows["variant"] == "") & (rows["group"] == "math")]
    rows = rows[(rows["model"] == model) & rows["objective"].isin(settings)]
    if rows.empty:
        return []
    rows = rows[rows["seed"] == rows["seed"].min()]
    last = rows[rows["step"] == rows["step"].max()].drop_duplicates(["objective", "benchmark"])
    # benchmark -> question -> setting -> answers
    found: dict[str, Questions] = {}
    for setting, run in last.drop_duplicates("objective")[["objective", "stage_run"]].itertuples(index=False):
        wanted = set(last.loc[last["objective"] == setting, "benchmark"])
        for row in read_samples(study.store, str(run), None):
            if row["benchmark"] in wanted:
                questions = found.setdefault(row["benchmark"], {})
                questions.setdefault(str(row["question"]), {}).setdefault(str(setting), _Answers([])).rows.append(row)
    place = f"{model}, RL step {last['step'].iloc[0]}, seed {last['seed'].iloc[0]}"
    return [_benchmark(f"{benchmark}, {place}", questions, settings) for benchmark, questions in found.items()]


def _benchmark(title: str, questions: Questions, settings: Sequence[str]) -> dict[str, Any]:
    """A benchmark's counts of wrong answers, and the questions that show how settings differ."""
    present = [setting for setting in settings if any(setting in answers for answers in questions.values())]
    counts = []
    for setting in present:
        answers = [by_setting[setting] for by_setting in questions.values() if setting in by_setting]
        total = sum(len(answer.rows) for answer in answers)
        counts.append({"setting": setting, "wrong": total - sum(answer.right for answer in answers), "total": total})
    chosen = _chosen(questions, present)
    return {
        "title": title,
        "settings": present,
        "counts": counts,
        "questions": [
            {
                "question": shortened(question, SHOWN_CHARACTERS),
                "answers": {name: _answer(a) for name, a in questions[question].items()},
            }
            for question in chosen
        ],
    }


def _chosen(questions: Questions, settings: Sequence[str]) -> list[str]:
    """The questions on which settings differ most, and one with a wrong answer of each setting that has any."""

    def spread(question: str) -> float:
        shares = [answers.right / len(answers.rows) for answers in questions[question].values()]
        return max(shares) - min(shares)

    ordered = sorted(questions, key=spread, reverse=True)  # stable: the benchmark's order among equals
    chosen = ordered[:SHOWN_QUESTIONS]
    for setting in settings:
        wrong = [q for q in ordered if setting in questions[q] and questions[q][setting].has_wrong]
        if wrong and not any(question in chosen for question in wrong):
            chosen.append(wrong[0])
    return chosen


def _answer(answers: _Answers) -> dict[str, Any]:
    """The first wrong answer of a setting if it has one, else its first, and how many of them are right."""
    row = next((row for row in answers.rows if not row["right"]), answers.rows[0])
    return {"parts": marked(row), "right": row["right"], "count": f"{answers.right} of {len(answers.rows)} right"}


def _courses(study: Study, model: str, settings: Sequence[str]) -> list[dict[str, Any]]:
    """RL's samples of the same held-out questions over its steps: question -> setting -> step -> answer."""
    assert study.store is not None
    runs = study.runs[(study.runs["stage"] == "grpo") & (study.runs["status"] == "done")]
    runs = runs[(runs["model"] == model) & runs["objective"].isin(settings)]
    if runs.empty:
        return []
    runs = runs[runs["seed"] == runs["seed"].min()]
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for setting, run in runs[["objective", "stage_run"]].itertuples(index=False):
        path = published(study.store.run("grpo", run), "samples.jsonl")
        lines = path.read_bytes().split(b"\n")[:-1] if path else []
        for row in map(parsed, lines):
            row["right"] = row["reward"] >= RIGHT
            found.setdefault(str(row["question"]), {}).setdefault(str(setting), {})[int(row["step"])] = row

    def changes(question: str) -> tuple[int, int]:
        """How often RL changes the verdict of a setting's answer, and how many different answers there are."""
        courses = [[steps[step] for step in sorted(steps)] for steps in found[question].values()]
        flips = sum(a["right"] != b["right"] for course in courses for a, b in pairwise(course))
        return flips, len({row["response"] for course in courses for row in course})

    if not found:
        return []
    steps = sorted({step for by_setting in found.values() for rows in by_setting.values() for step in rows})
    shown = [steps[0], *steps[len(steps) // 2 : len(steps) // 2 + 1], steps[-1]] if len(steps) > 2 else steps
    chosen = sorted(found, key=changes, reverse=True)[:SHOWN_QUESTIONS]
    return [
        {
            "title": f"{model}, seed {runs['seed'].iloc[0]}",
            "settings": [setting for setting in settings if any(setting in found[q] for q in chosen)],
            "questions": [
                {
                    "question": shortened(question, SHOWN_CHARACTERS),
                    "answers": {
                        setting: [
                            {"step": step, "parts": marked(rows[step]), "right": rows[step]["right"]}
                            for step in dict.fromkeys(shown)
                            if step in rows
                        ]
                        for setting, rows in found[question].items()
                    },
                }
                for question in chosen
            ],
            "is_marked": any("log_probs" in row for q in chosen for rows in found[q].values() for row in rows.values()),
        }
    ]


def marked(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Returns a response in parts, each with whether the policy was unsure of it; one part if that is not recorded."""
    tokens, log_probs = row.get("tokens"), row.get("log_probs")
    response = str(row["response"])
    if not tokens or not log_probs or len(tokens) != len(log_probs) or len(response) > SHOWN_CHARACTERS:
        return [(shortened(response, SHOWN_CHARACTERS), False)]
    parts: list[tuple[str, bool]] = []
    for token, log_prob in zip(tokens, log_probs, strict=True):
        is_unsure = log_prob < UNSURE
        if parts and parts[-1][1] == is_unsure and not is_unsure:
            parts[-1] = (parts[-1][0] + token, False)
        else:
            parts.append((token, is_unsure))
    return parts
