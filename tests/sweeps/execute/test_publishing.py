"""The order in which a stage run's files are published, and in which stage runs start."""

import heapq
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.execute.local import _Execution
from sweeps.execute.worker import _publish
from sweeps.plan.graph import Plan, StageRun


def work(folder: Path, names: tuple[str, ...]) -> Path:
    made = folder / "work-000001"
    made.mkdir()
    for name in names:
        (made / name).write_text(name)
    return made


NAMES = ("zz.json", "result.json", "ledger.jsonl", "a", "samples.jsonl", ".zz.json-1234.tmp")


def test_the_result_is_published_last_and_temporary_files_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader takes a stage run for done as soon as `result.json` exists."""
    moved: list[str] = []
    rename = Path.rename

    def noted(path: Path, target: Path) -> Path:
        assert not (tmp_path / "result.json").exists(), f"{path.name} is published after the result"
        moved.append(path.name)
        return rename(path, target)

    made = work(tmp_path, NAMES)
    monkeypatch.setattr(Path, "rename", noted)
    _publish(made, tmp_path)
    assert moved[-1] == "result.json"
    assert sorted(moved) == ["a", "ledger.jsonl", "result.json", "samples.jsonl", "zz.json"]
    assert (tmp_path / "zz.json").read_text() == "zz.json"


@pytest.mark.parametrize("name", ["a", "ledger.jsonl", "zz.json"])
def test_a_file_that_cannot_be_published_leaves_the_stage_run_unfinished(tmp_path: Path, name: str) -> None:
    made = work(tmp_path, NAMES)
    (tmp_path / name / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=name):
        _publish(made, tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert (made / "result.json").exists()


def run(signature: str, parent: str | None, reference: str | None = None) -> StageRun:
    config: dict[str, Any] = {} if reference is None else {"variant": {"reference": {"signature": reference}}}
    return StageRun("evaluate", signature, 1, config, parent and ("pretrain", parent), None, 1, {})  # type: ignore[arg-type]


def test_the_stage_run_with_the_longest_chain_starts_first() -> None:
    """Leaves last, whatever their place in the plan; equal chains in the plan's order; references count as parents."""
    plan = Plan()
    for signature, parent, reference in (
        ("leaf", None, None),
        ("short", None, None),
        ("long", None, None),
        ("short 2", "short", None),
        ("long 2", "long", None),
        ("long 3", "long 2", None),
        ("other long", None, None),
        ("control", "other long", "long 3"),  # waits for the third of the long chain, which is four deep
    ):
        plan.add(run(signature, parent, reference))
    execution: Any = SimpleNamespace(plan=plan, positions={name: i for i, name in enumerate(plan.runs)})
    execution.chain_lengths = _Execution._chain_lengths(execution)
    assert execution.chain_lengths == {
        "leaf": 1, "short": 2, "short 2": 1, "long": 4, "long 2": 3, "long 3": 2, "other long": 2, "control": 1
    }  # fmt: skip
    heap = [_Execution._entry(execution, name) for name in plan.runs]
    heapq.heapify(heap)
    order = [heapq.heappop(heap)[2] for _ in range(len(plan.runs))]
    assert order == ["long", "long 2", "short", "long 3", "other long", "leaf", "short 2", "control"]
