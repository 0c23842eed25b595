import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis import reproduce
from sweeps.commands import status
from sweeps.store.leases import Owner
from sweeps.store.stage_runs import Store


@pytest.mark.parametrize("code", [0, 3, 4])
def test_the_command_ends_with_the_code_of_its_claims(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(reproduce, "show_claims", lambda options, console: code)
    monkeypatch.setattr(reproduce, "set_up", lambda arguments: None)
    monkeypatch.setattr(sys, "argv", ["reproduce-paper-tables", "--claims"])
    with pytest.raises(SystemExit) as ended:
        reproduce.main()
    assert ended.value.code == code


@pytest.mark.parametrize(("host", "code"), [("elsewhere", 1), (None, 0)])
def test_a_stage_run_on_another_machine_is_named_and_makes_the_command_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None, code: int
) -> None:
    Store.create(tmp_path / "store")
    row: Any = SimpleNamespace(
        stage="pretrain", signature="a", job="", status="running", title="nano/ce/seed1:pretrain"
    )
    owner = host and replace(Owner.myself(), host=host)
    monkeypatch.setattr(status, "rows", lambda store, filters: [row])
    monkeypatch.setattr(status, "_running_owner", lambda stored: owner)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        assert status.cancel(["*"], str(tmp_path / "store")) == code
    assert out.getvalue().startswith("0 stage runs stopped")
    assert errors.getvalue() == ("nano/ce/seed1:pretrain: it runs on elsewhere; stop it there\n" if host else "")
