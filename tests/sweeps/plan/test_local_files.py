"""Local files in signatures: their content counts, and their paths do not."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import StageFailure
from pipelines.stages import run_stage
from pipelines.verifiers.registry import VERIFIERS, Verifier
from sweeps.compose.cells import compose_cell
from sweeps.plan.graph import StageRun
from sweeps.plan.planner import plan
from tests.conftest import SMALL
from tests.pipelines.test_stages import OFF

QUESTIONS = "".join(json.dumps({"question": f"What is {i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(60))


def runs(stage: str, overrides: Sequence[str] = ()) -> list[StageRun]:
    return [run for run in plan([compose_cell([*SMALL, *overrides])]).runs.values() if run.stage == stage]


def signatures(stage: str, overrides: Sequence[str] = ()) -> list[str]:
    return [run.signature for run in runs(stage, overrides)]


BENCHMARK = "evaluation.benchmarks.Chain-3"


def sampled(path: object) -> list[str]:
    return [f"{BENCHMARK}.dataset='{path}'", f"{BENCHMARK}.task=boxed"]


def harness(path: object) -> list[str]:
    return [f"{BENCHMARK}.dataset='{path}'", f"{BENCHMARK}.task=amc23", f"{BENCHMARK}.kind=harness"]


def rl(path: object) -> list[str]:
    return [f"grpo.tasks=['{path}']"]


USES = [("evaluate", sampled), ("evaluate", harness), ("grpo", rl)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(QUESTIONS)
    return path


@pytest.mark.parametrize(("stage", "use"), USES)
def test_the_content_of_a_file_is_signed_and_its_path_is_not(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, use: Callable[[object], list[str]]
) -> None:
    before = signatures(stage, use(file))
    copy = tmp_path / "folder" / "another name.jsonl"
    copy.parent.mkdir()
    shutil.copy(file, copy)
    (tmp_path / "link.jsonl").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    for path in ("questions.jsonl", "./questions.jsonl", "folder/../questions.jsonl", copy, "link.jsonl"):
        assert signatures(stage, use(path)) == before
    # An edit of the same size, with the time of the old content.
    times = file.stat()
    file.write_text(QUESTIONS.replace('"answer": "2"', '"answer": "3"'))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not set(signatures(stage, use(file))) & set(before)
    assert signatures(stage, use(copy)) == before


def test_the_worked_examples_of_a_file_are_signed(file: Path) -> None:
    examples = file.with_name("questions.train.jsonl")
    seen = [signatures("evaluate", harness(file))]
    for content in (QUESTIONS, QUESTIONS.replace("What", "Say what")):
        examples.write_text(content)
        seen.append(signatures("evaluate", harness(file)))
    assert len({tuple(found) for found in seen}) == 3
    # Only lm-eval's tasks have worked examples.
    examples.unlink()
    without = signatures("evaluate", sampled(file))
    examples.write_text(QUESTIONS)
    assert signatures("evaluate", sampled(file)) == without


def test_how_answers_are_judged_is_signed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {use: signatures(stage, use(file)) for stage, use in USES}
    plain = signatures("evaluate"), signatures("grpo")
    other = {**vars(VERIFIERS["math"]), "version": VERIFIERS["math"].version + 1}
    monkeypatch.setitem(VERIFIERS, "math", Verifier(**other))
    assert signatures("evaluate", sampled(file)) != before[sampled]
    assert signatures("grpo", rl(file)) != before[rl]
    assert signatures("evaluate", harness(file)) == before[harness]  # lm-eval scores it
    assert (signatures("evaluate"), signatures("grpo")) == plain
    monkeypatch.setattr("pipelines.configuration.evaluation.installed_version", lambda package: "another")
    assert signatures("evaluate", harness(file)) != before[harness]
    assert signatures("evaluate") == plain[0]


@pytest.mark.parametrize(("stage", "use"), USES)
def test_a_stage_run_finds_its_files_and_refuses_changed_ones(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, use: Callable[[object], list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = json.loads(json.dumps(runs(stage, use("questions.jsonl"))[0].spec))
    assert str(tmp_path) not in json.dumps(spec["config"])
    seen: list[Any] = []
    for name in ("load_model", "_measurable", "_log_model"):
        monkeypatch.setattr(f"pipelines.stages.{name}", lambda *_, **__: None)
    monkeypatch.setattr("pipelines.stages.train_grpo", lambda _, config, __: seen.append(config.tasks[0]) or {})
    monkeypatch.setattr("pipelines.stages.evaluate", lambda context: seen.append(context.config.benchmarks) or DONE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # a worker need not start in the folder of the command
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = {"folder": folder, "root": tmp_path / "store", "tracking": OFF, "parent": tmp_path}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.ledger.Ledger.summarize", lambda *_: None)
        run_stage(spec, **arguments)
    assert [task if stage == "grpo" else task["Chain-3"].dataset for task in seen] == [str(file)]
    file.write_text(QUESTIONS + QUESTIONS.replace("What", "Say what"))
    with pytest.raises(StageFailure, match=r"questions\.jsonl: it has gone or its content has changed"):
        run_stage(spec, **arguments)


DONE = {"metrics": {}, "measurements": []}
