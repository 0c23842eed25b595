"""`shaping-sweeps compare` on a store whose numbers are known."""

import json
from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweeps.commands.compare import compare
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, known, planned, write_run
from tests.published import publish


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "store")
    for run in planned(("objective=ce,precision", "seed=1")).runs.values():
        write_run(store, run)
    return store


def test_configuration_curves_and_results_of_two_cells(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    compare("nano/ce/seed1", "nano/precision/seed1", store=str(store.root), as_json=True)
    shown = json.loads(capsys.readouterr().out)
    keys = {(entry["stage"], entry["key"]): (entry["first"], entry["second"]) for entry in shown["configuration"]}
    assert keys["pretrain", "objective.beta"] == (0.0, -0.25)
    assert all(key.startswith("objective.") for _, key in keys)
    assert shown["curves"]["grpo"] == [[0.1, 0.2, 0.3, 0.4]] * 2
    last = {(r["place"], r["benchmark"], r["metric"]): r for r in shown["results"]}
    result = last["grpo step-000020", "Chain-3", "avg@8"]
    first, second = (known(Measured(o, 1, "grpo", 20, "Chain-3", "avg@8")) for o in ("ce", "precision"))
    assert (result["first"], result["second"]) == (first, second)
    assert result["high"] - result["difference"] == pytest.approx(1.96 * 0.01 * 2**0.5, rel=1e-3)
    assert ("pretrain step-000781", "Docstrings", "entropy") in last
    compare("nano/ce/seed1", "nano/precision/seed1", store=str(store.root))
    text = capsys.readouterr().out
    assert "pretrain  objective.beta: 0.0 -> -0.25" in text
    assert "reward 0.1 ▁▃▆█ 0.4" in text


def test_a_name_of_several_cells_or_none_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="selects 2 cells"):
        compare("nano/*/seed1", "nano/ce/seed1", store=str(store.root))
    with pytest.raises(UserError, match="no stage run"):
        compare("nano/cee/seed1", "nano/ce/seed1", store=str(store.root))


@pytest.mark.parametrize(
    ("second", "interval"),
    [
        (0.53, "[+0.0104, +0.0496] *"),
        (0.47, "[-0.0496, -0.0104] *"),
        (0.51, "[-0.0096, +0.0296]"),
        (0.49, "[-0.0296, +0.0096]"),
    ],
)
def test_an_interval_that_excludes_zero_on_either_side_has_a_star(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: float, interval: str
) -> None:
    """Errors of 0.006 and 0.008: the difference has one of 0.01."""
    store = Store.create(tmp_path / "store")
    for run in planned(("objective=ce,precision", "seed=1")).runs.values():
        folder = write_run(store, run)
        if run.stage == "evaluate":
            value, error = (0.5, 0.006) if run.labels["objective"] == "ce" else (second, 0.008)
            row = {"benchmark": "B", "group": "math", "metric": "accuracy", "value": value, "stderr": error, "n": 9}
            publish(folder, measurements=[row])
    compare("nano/ce/seed1", "nano/precision/seed1", store=str(store.root))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    B accuracy")]
    assert len(lines) == 3  # after each stage
    assert all(line.endswith(f"  {interval}") for line in lines)
