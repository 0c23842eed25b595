"""Which stage runs a filter of `shaping-sweeps status` selects, and what is said about one that selects none."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweeps.compose.cells import compose_cells
from sweeps.monitor import status
from sweeps.monitor.launched_sweeps import record
from sweeps.monitor.slurm_queue import JobState
from sweeps.monitor.status import Row, _updated, rows, select
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store


def row(signature: str, stage: str, status: str, checkpoint: str | None = None, objective: str = "ce") -> Row:
    labels = {"objective": objective, "seed": 1, "sweep": "nano"}
    return Row(signature, stage, f"nano/{objective}/seed1", status, labels, None, checkpoint, sweeps=["mine"])


ROWS = [
    row("abcd1111", "pretrain", "done"),
    row("abce2222", "midtrain", "running"),
    row("ffff3333", "evaluate", "failed", "step-000195"),
    row("ffff4444", "evaluate", "done", "step-000390", "precision"),
]


@pytest.mark.parametrize(
    ("filters", "selected"),
    [
        ([], [0, 1, 2, 3]),
        (["status=done"], [0, 3]),
        (["status=running,failed"], [1, 2]),
        (["+objective=prec*"], [3]),
        (["objective=ce", "stage=evaluate"], [2]),
        (["sweep=mine"], [0, 1, 2, 3]),
        (["sweep=nano"], [0, 1, 2, 3]),
        (["sweep=other"], []),
        (["signature=abc*"], [0, 1]),
        (["checkpoint=step-000390"], [3]),
        (["abcd"], [0]),
        (["abc"], []),  # too short for a signature
        (["ffff"], [2, 3]),
        (["nano/*"], [0, 1, 2, 3]),
        (["nano/ce/seed1:evaluate"], [2]),
        (["nano/*/seed1:evaluate@*390"], [3]),
        (["nano/*:pretrain"], [0]),
    ],
)
def test_filters_select(filters: list[str], selected: list[int]) -> None:
    assert select(ROWS, filters) == [ROWS[index] for index in selected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status=dome", r"^status=dome: unknown status; did you mean 'done'"),
        ("status=done,dome", r"^status=dome: unknown status"),
        ("objctive=ce", r"^objctive=ce: unknown key objctive; did you mean 'objective'"),
    ],
)
def test_an_unknown_word_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(ROWS, [text])


def test_titles_name_the_measured_checkpoint() -> None:
    assert [r.title for r in ROWS[1:3]] == ["nano/ce/seed1:midtrain", "nano/ce/seed1:evaluate@step-000195"]
    assert ROWS[2].to_json()["what"] == ROWS[2].title


def test_checkpoints_of_one_name_are_told_apart_by_their_stages(tmp_path: Path) -> None:
    """In nano both token stages end at step 781; titles differ, and a filter selects by stage, step or both."""
    graph, store = plan(compose_cells(["until=midtrain"])), Store.create(tmp_path / "store")
    record(store, graph, [["until=midtrain"]], name="", launcher="local", options={})
    found = rows(store)
    assert len({row.title for row in found}) == len(found) == len(graph.runs)
    last = {row.title for row in select(found, ["nano/ce/seed1:evaluate@step-000781"])}
    assert last == {f"nano/ce/seed1:evaluate@{stage}/step-000781" for stage in ("pretrain", "midtrain")}
    (one,) = select(found, ["*:evaluate@midtrain/*781"])
    assert one.title == "nano/ce/seed1:evaluate@midtrain/step-000781"
    assert select(found, [one.title]) == [one]


def chain(*statuses: str) -> list[Row]:
    """Stage runs of which each starts from the one before."""
    signatures = [f"run{number}" for number in range(len(statuses))]
    parents = [None, *signatures[:-1]]
    return [
        replace(row(signature, "pretrain", status), parent=parent)
        for signature, status, parent in zip(signatures, statuses, parents, strict=True)
    ]


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        (["failed", "missing", "missing"], ["failed", "blocked", "blocked"]),
        (["corrupt", "missing"], ["corrupt", "blocked"]),
        (["cancelled", "missing", "missing"], ["cancelled", "blocked", "blocked"]),
        (["dismissed", "missing", "missing"], ["dismissed", "dismissed", "dismissed"]),
        (["done", "missing"], ["done", "missing"]),
        (["interrupted", "missing"], ["interrupted", "missing"]),
        (["failed", "done", "missing"], ["failed", "done", "blocked"]),
    ],
)
def test_what_needs_something_that_will_not_be_done_is_blocked_or_dismissed(
    tmp_path: Path, recorded: list[str], shown: list[str]
) -> None:
    found = _updated(Store.create(tmp_path / "store"), chain(*recorded))
    assert [one.status for one in found] == shown


def test_a_control_is_blocked_by_the_model_that_it_is_matched_to(tmp_path: Path) -> None:
    rows = [
        row("ok", "pretrain", "done"),
        row("bad", "pretrain", "failed"),
        replace(row("control", "evaluate", "missing"), parent="ok", reference="bad"),
    ]
    assert [one.status for one in _updated(Store.create(tmp_path / "store"), rows)] == ["done", "failed", "blocked"]


@pytest.mark.parametrize(
    ("recorded", "slurm", "shown"),
    [
        ("interrupted", "CANCELLED", "cancelled"),
        ("interrupted", "PENDING", "queued"),  # Slurm has put it back by itself
        ("interrupted", "RUNNING", "running"),
        ("interrupted", "FAILED", "interrupted"),  # its worker recorded the end
        ("interrupted", "GONE", "interrupted"),
        ("queued", "PENDING", "queued"),
        ("queued", "CANCELLED", "cancelled"),
        ("running", "NODE_FAIL", "failed"),
        ("running", "COMPLETED", "failed"),
    ],
)
def test_slurm_says_what_became_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str, slurm: str, shown: str
) -> None:
    monkeypatch.setattr(status, "job_states", lambda jobs: {job: JobState(slurm) for job in jobs})
    candidate = replace(row("abcd", "pretrain", recorded), job="7_0", error="stopped")
    (found,) = _updated(Store.create(tmp_path / "store"), [candidate])
    assert found.status == shown
    if shown in ("queued", "running", "cancelled"):
        assert found.error is None


@pytest.mark.parametrize(
    ("state", "log", "error"),
    [
        ("FAILED", "slurmstepd: error: Detected 1 oom_kill event", "OUT_OF_MEMORY: it used more memory"),
        ("FAILED", "Traceback", "FAILED: its process exited with an error; job 7_0; its log ends: a | Traceback"),
        ("TIMEOUT", "slurmstepd: error: Detected 1 oom_kill event", "TIMEOUT: its time was up"),
        ("FAILED", "", "FAILED: its process exited with an error; job 7_0; its log ends: a"),
    ],
)
def test_a_job_that_failed_is_explained_by_its_state_and_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, log: str, error: str
) -> None:
    (tmp_path / "log").write_text(f"a\n\n{log}\n")
    monkeypatch.setattr(status, "job_states", lambda jobs: {job: JobState(state) for job in jobs})
    candidate = replace(row("abcd", "pretrain", "running"), job="7_0", log=str(tmp_path / "log"))
    (found,) = _updated(Store.create(tmp_path / "store"), [candidate])
    assert found.error is not None
    assert found.error.startswith(error)
