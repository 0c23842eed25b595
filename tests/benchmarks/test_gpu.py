"""The GPU benchmarks' driver: limits, failures as rows, both files; and, in CI, all parts with tiny shapes on a CPU."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as driver
from benchmarks.gpu.rows import Measurement, failed, markdown


def test_the_parts_take_less_than_ten_minutes_together() -> None:
    assert sum(driver.LIMITS.values()) < 600


def test_a_part_that_fails_or_hangs_is_a_row_and_the_next_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts of our own, in a package of the same name that stands first on the path."""
    package = tmp_path / "benchmarks" / "gpu"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(
        "import json, sys, time\n"
        "part, path = sys.argv[1:3]\n"
        "row = {'part': part, 'name': 'n | m', 'value': 2.0, 'unit': 's', 'peer': 4.0, 'holds': True, 'failure': ''}\n"
        "if part != 'empty': open(path, 'w').write(json.dumps([row]))\n"
        "if part == 'hangs': time.sleep(60)\n"
        "if part in ('fails', 'empty'): raise ValueError('no such card')\n"
    )
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    limits = {"fails": 20.0, "hangs": 1.0, "empty": 20.0, "works": 20.0}
    paths = ["--json", str(tmp_path / "out" / "gpu.json"), "--markdown", str(tmp_path / "out" / "gpu.md")]
    assert driver.main(["--small", *paths], limits) == 1
    content = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert content["small"] is True
    found = [(row["part"], row["value"], row["failure"]) for row in content["rows"]]
    assert found == [
        ("fails", 2.0, ""),
        ("fails", None, "ValueError: no such card"),
        ("hangs", 2.0, ""),
        ("hangs", None, "it took more than 1 s"),
        ("empty", None, "ValueError: no such card"),
        ("works", 2.0, ""),
    ]
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "| works | n \\| m | 2 s | 4 s | 0.5 | yes |" in table
    assert "| empty | this part | not measured: ValueError: no such card |  |  |  |" in table
    assert table in capsys.readouterr().out
    assert driver.main(["--only", "works", *paths], limits) == 0


def test_a_long_reason_is_one_short_line() -> None:
    row = failed("grpo", "a step", "first\nsecond " * 100)
    assert "\n" not in row.failure
    assert len(row.failure) <= 300
    assert len(markdown([row, Measurement("a", "b", 1.0)]).splitlines()) == 4


@pytest.mark.ci_only
@pytest.mark.timeout(900)
def test_every_part_runs_with_tiny_shapes(tmp_path: Path) -> None:
    """On a CPU, with Triton's interpreter; what is not installed is a row that says so."""
    pytest.importorskip("triton", reason="Triton is available only on Linux")
    limits = dict.fromkeys(driver.LIMITS, 300.0)
    driver.main(["--small", "--json", str(tmp_path / "gpu.json"), "--markdown", str(tmp_path / "gpu.md")], limits)
    rows = [Measurement(**row) for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]]
    assert {row.part for row in rows} == set(driver.LIMITS)
    allowed = ("vLLM", "pip install")
    assert [row for row in rows if row.failure and not any(word in row.failure for word in allowed)] == []
    assert all(row.holds for row in rows if row.part == "kernels")
    measured = {row.part for row in rows if row.value is not None}
    assert measured >= set(driver.LIMITS) - {"experts"}
