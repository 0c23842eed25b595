"""Samples for the page."""

from collections.abc import Sequence
from typing import Any

from analysis.figures.charts import setting_order
from analysis.study import Study, read_samples
from pipelines.foreign_text import shortened

SHOWN_QUESTIONS = 3
SHOWN_OBJECTIVES = 6
SHOWN_CHARACTERS = 5_000
"""Of a question or an answer; the page says how many more it has."""
SAMPLES_READ = 128
"""Samples read per shown question, to find that many questions."""


def samples(study: Study) -> list[dict[str, Any]]:
    """Returns a few questions of each RL benchmark with every setting's first answer, after RL, first seed."""
    if study.store is None:
        return []
    rows = study.measurements
    rows = rows[(rows["stage"] == "grpo") & (rows["variant"] == "") & (rows["group"] == "math")]
    shown = []
    for model in study.runs["model"].unique():
        of_model = rows[rows["model"] == model]
        if of_model.empty:
            continue
        seed = of_model["seed"].min()
        of_seed = of_model[of_model["seed"] == seed]
        step = of_seed["step"].max()
        last = of_seed[of_seed["step"] == step]
        settings = setting_order(of_seed["objective"].unique())[:SHOWN_OBJECTIVES]
        # benchmark -> question -> setting -> its answer
        answers: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        for setting in settings:
            of_setting = last[last["objective"] == setting].drop_duplicates("benchmark")
            for benchmark, run in zip(of_setting["benchmark"], of_setting["stage_run"], strict=True):
                questions = answers.setdefault(str(benchmark), {})
                for answer in _first_answers(study, run, str(benchmark)):
                    questions.setdefault(str(answer["question"]), {})[setting] = answer
        for benchmark, questions in answers.items():
            if questions:
                title = f"{benchmark}, {model}, RL step {step}, seed {seed}"
                chosen = [_shown(*question) for question in list(questions.items())[:SHOWN_QUESTIONS]]
                shown.append({"title": title, "settings": settings, "questions": chosen})
    return shown


def _shown(question: str, answers: dict[str, dict[str, Any]]) -> tuple[str, dict[str, dict[str, Any]]]:
    """A question with its answers, as long as a page can show them."""
    short = {
        name: answer | {"response": shortened(str(answer["response"]), SHOWN_CHARACTERS)}
        for name, answer in answers.items()
    }
    return shortened(question, SHOWN_CHARACTERS), short


def _first_answers(study: Study, stage_run: str, benchmark: str) -> Sequence[dict[str, Any]]:
    """The first answer to each of the first questions."""
    assert study.store is not None
    answers: dict[str, dict[str, Any]] = {}
    for row in read_samples(study.store, stage_run, benchmark, limit=SHOWN_QUESTIONS * SAMPLES_READ):
        if row["question"] not in answers:
            if len(answers) == SHOWN_QUESTIONS:
                break
            answers[row["question"]] = row
    return list(answers.values())
