"""What `shaping-sweeps sync` sends, in which order, and what it does not send again; the client is replaced."""

import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.tracking import TrackingConfig
from pipelines.files import write_sealed
from pipelines.tracking.wandb_run import TRACKING
from sweeps.monitor import wandb_sync
from sweeps.monitor.wandb_sync import send_artifacts, send_runs
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import planned, write_run
from tests.pipelines.tracking.specs import EVALUATE
from tests.published import publish


def quiet(line: str) -> None:
    """Report nothing."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(wandb_sync, "check_server", lambda: None)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    return Store.create(tmp_path / "store")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], bool]]:
    """Name, inputs that were sent before, and whether with checkpoints, of each artifact."""
    calls: list[tuple[str, list[str], bool]] = []

    def send(store: Store, run: Any, listed: dict[str, str], *, checkpoints: bool, **_: object) -> None:
        calls.append((f"{run.stage}-{run.signature}", wandb_sync._inputs(run, listed), checkpoints))

    monkeypatch.setattr(wandb_sync, "_send_artifact", send)
    return calls


def test_artifacts_are_sent_parents_first_and_once_to_each_place(
    store: Store, sent: list[tuple[str, list[str], bool]]
) -> None:
    graph = planned(("objective=ce",))
    for run in graph.runs.values():
        if run.stage != "evaluate" or run.checkpoint == "step-000020":
            write_run(store, run)
    places: list[dict[str, Any]] = [
        {"project": "p", "entity": None, "checkpoints": False},
        {"project": "p", "entity": None, "checkpoints": True},
        {"project": "other", "entity": None, "checkpoints": False},
        {"project": "p", "entity": "me", "checkpoints": False},
    ]
    for place in places:
        sent.clear()
        names = send_artifacts(store, report=quiet, **place)
        assert [name.split("-")[0] for name in names] == ["pretrain", "midtrain", "grpo", "evaluate"]
        assert [name for name, _, _ in sent] == names
        assert [inputs for _, inputs, _ in sent] == [[], *([f"{name}:latest"] for name in names[:-1])]
        assert {checkpoints for _, _, checkpoints in sent} == {place["checkpoints"]}
    sent.clear()
    assert [send_artifacts(store, report=quiet, **place) for place in places] == [[]] * 4
    assert sent == []


def test_an_artifact_that_was_not_accepted_is_sent_by_the_next_call(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in planned(("objective=ce",)).runs.values():
        if run.stage in ("pretrain", "midtrain"):
            write_run(store, run)
    tried: list[str] = []

    def send(store: Store, run: Any, *_: object, **__: object) -> None:
        tried.append(run.stage)
        if tried == ["pretrain", "midtrain"]:
            raise OSError("gone")

    monkeypatch.setattr(wandb_sync, "_send_artifact", send)
    with pytest.raises(OSError, match="gone"):
        send_artifacts(store, project="p", entity=None, checkpoints=False, report=quiet)
    send_artifacts(store, project="p", entity=None, checkpoints=False, report=quiet)
    assert tried == ["pretrain", "midtrain", "midtrain"]


def client(monkeypatch: pytest.MonkeyPatch, accepts: Callable[[str], bool]) -> list[list[str]]:
    """Replaces `wandb sync`; returns the runs of each call."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folders = [Path(word) for word in command if "offline-run" in word]
        calls.append([folder.name for folder in folders])
        for folder in folders:
            if accepts(folder.name):
                (folder / "run.wandb.synced").touch()
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="wandb: first\nwandb: ERROR no room\n")

    monkeypatch.setattr(wandb_sync.subprocess, "run", run)
    return calls


def offline(store: Store, count: int) -> list[str]:
    names = [f"offline-run-2026010{number // 10}_00000{number % 10}-abc" for number in range(count)]
    for name in reversed(names):
        (store.root / "wandb" / name).mkdir(parents=True)
    return names


def test_runs_are_sent_oldest_first_in_batches_and_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = offline(store, 30)
    calls = client(monkeypatch, lambda name: name != names[3])
    lines: list[str] = []
    first = send_runs(store, project=None, entity=None, report=lines.append)
    assert calls == [names[:25], names[25:]]
    assert (first.already, first.runs, first.failed) == (0, names[:3] + names[4:], [names[3]])
    assert first.error == "ERROR no room"
    assert lines == ["24 of 30 runs sent", "29 of 30 runs sent"]
    calls.clear()
    second = send_runs(store, project=None, entity=None, report=lines.append)
    assert (second.already, second.failed, calls) == (29, [names[3]], [[names[3]]])


def test_a_batch_of_which_nothing_arrives_is_the_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = offline(store, 60)
    calls = client(monkeypatch, lambda name: name in names[:25])
    found = send_runs(store, project=None, entity=None, report=quiet)
    assert calls == [names[:25], names[25:50]]
    assert (found.runs, found.failed) == (names[:25], names[25:])


@pytest.mark.parametrize(
    ("project", "entity", "place"),
    [(None, None, ("first", "ours")), ("second", None, ("second", "ours")), (None, "others", ("first", "others"))],
)
def test_evaluations_go_where_their_run_is_or_to_the_project_that_is_named(
    project: str | None, entity: str | None, place: tuple[str, str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, evaluation = store.root / "wandb" / "run-20261128_010203-abc123", store.root / "evaluate" / "eee999"
    for folder in (run, evaluation):
        folder.mkdir(parents=True)
    write_sealed(run / TRACKING, asdict(TrackingConfig("offline", project="first", entity="ours")))
    write_sealed(evaluation / "spec.json", {"format": 2, "version": 1, **EVALUATE})
    publish(evaluation)
    sent: list[tuple[str | None, str | None, str]] = []

    def send(evaluations: object, root: Path, tracking: TrackingConfig) -> None:
        sent.append((tracking.project, tracking.entity, tracking.mode))

    monkeypatch.setattr(wandb_sync, "send_evaluations", send)
    for _ in range(2):  # the second time it has been sent
        wandb_sync.add_evaluations(store, project=project, entity=entity, report=quiet)
    assert sent == [(*place, "online")]
