"""`shaping-sweeps compare` on a store whose numbers are known."""

import json
from pathlib import Path

import pytest

from pipelines.errors import UserError
from sweeps.commands.compare import compare
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, known, planned, write_run


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
