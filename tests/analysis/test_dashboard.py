"""`shaping-dashboard` with the real W&B client and a loopback server: what is saved, and that a second call updates."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from analysis import dashboard as command
from analysis.dashboard import PANELS, VIEW_STAGES, table_rows
from analysis.study import ledger, read_study
from analysis.table_builder import build_tables
from sweeps.store.stage_runs import Store
from tests.wandb_server import wandb_server


def dashboard(folder: Path, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "WANDB_BASE_URL": address,
        "WANDB_API_KEY": "a" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "HOME": str(folder),
    }
    line = [sys.executable, "-m", "analysis.dashboard", f"store={folder / 'store'}", *arguments]
    return subprocess.run(
        line, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.ci_only
def test_views_report_and_tables_are_saved_and_then_updated(make_store: Callable, tmp_path: Path) -> None:
    make_store(["objective=ce,precision"])
    with wandb_server() as (address, arrived):
        first = dashboard(tmp_path, address)
        assert first.returncode == 0, first.stderr
        assert len(arrived.views) == 5
        views = {view["displayName"]: view for view in arrived.views.values()}
        text = views["Shaping nano: RL"]["spec"]
        for panels in PANELS["RL"].values():
            for _, column, title in panels:
                assert f'"grpo/{column}"' in text
                assert json.dumps(title) in text
        assert '"grpo"' in text
        for stage in ("pretrain", "midtrain"):
            assert f"{stage}/entropy" in views["Shaping nano: pre-training"]["spec"]
        assert '"headline"' in views["Shaping nano: result"]["spec"]
        report = views["Shaping: the nano study"]["spec"]
        assert report.index("With one seed, entropy") < report.index("headline_figure") < report.index("What it shows")
        assert "Table 14: RL from ce, nano" in report
        assert "It leaves undecided" in report
        sent = {a["variables"]["artifactCollectionName"] for a in arrived.artifacts.values()}
        assert sum("tablestable-" in name for name in sent) == 7
        assert any("claims" in name for name in sent)
        assert any("headline" in name for name in sent)
        second = dashboard(tmp_path, address)
        assert second.returncode == 0, second.stderr
        assert {view["saves"] for view in arrived.views.values()} == {2}
        assert len(arrived.views) == 5
        assert set(arrived.runs) == {"tables-nano"}
        assert arrived.unknown == []


def test_table_rows_for_wandb(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"], leave_out=lambda run: run.checkpoint == "step-000020")
    table = next(t for t in build_tables(read_study(graph, store)) if t.number == 14)
    columns, rows = table_rows(table)
    assert columns[:2] == ["objective", "RL step"]
    assert rows[-1][:2] == ["ce", 20]
    assert rows[-1][2] is None
    json.dumps(rows, allow_nan=False)


@pytest.mark.slow
def test_every_panels_column_is_in_the_ledgers(study: Path) -> None:
    for view, stages in VIEW_STAGES.items():
        sections = PANELS[view].items()
        # the small test model has no group with mixed rewards, so it makes no updates
        panels = [panel for section, rows in sections if section != "Updates" for panel in rows]
        plotted = {name for axis, column, _ in panels for name in (axis, column)}
        for stage in stages:
            assert plotted <= set(ledger(study / "store", stage)), stage


def test_ctrl_c_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["shaping-dashboard"])
    monkeypatch.setattr(command, "build", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == ""


def test_a_mistake_is_named(tmp_path: Path) -> None:
    finished = dashboard(tmp_path, "http://127.0.0.1:9", "projct=x")
    assert finished.returncode == 2
    assert "did you mean 'project'" in finished.stderr


def test_tables_come_from_the_evaluations_that_were_sent_to_their_project(tmp_path: Path) -> None:
    """With the entity named or not, and not from other stage runs, projects or entities."""
    store = Store.create(tmp_path / "store")
    options = command.Options(project="p", entity="me")
    assert command._sent_evaluations(store, options) == []
    (store.root / "wandb").mkdir()
    sent = {
        "/p": {"evaluate-b": "evaluate-b:latest", "grpo-a": "grpo-a:latest"},
        "me/p": {"evaluate-a": "evaluate-a:latest"},
        "other/p": {"evaluate-c": "evaluate-c:latest"},
        "me/q": {"evaluate-d": "evaluate-d:latest"},
    }
    (store.root / "wandb" / "artifacts.json").write_text(json.dumps(sent))
    assert command._sent_evaluations(store, options) == ["evaluate-a:latest", "evaluate-b:latest"]
