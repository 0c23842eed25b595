"""Which mutants are tried, and by which tests."""

import hashlib
import json
from pathlib import Path

from benchmarks import mutant_tests
from benchmarks.mutant_tests import runs_in_a_function
from benchmarks.mutants import ROOT, _found_again
from benchmarks.mutations import candidates

PATH = "shaping/objective.py"


def test_survivors_are_found_again_although_lines_moved() -> None:
    mutations = [place.mutation() for place in candidates(ROOT, PATH)[:6]]
    outcomes = [{"path": PATH, "line": m.line + 3, "before": m.before, "after": m.after} for m in mutations]
    gone = {"path": PATH, "line": 1, "before": "no such line", "after": "at all"}
    found = _found_again([*outcomes, gone])
    assert {(m.line, m.before, m.after) for m in found} == {(m.line, m.before, m.after) for m in mutations}
    assert all(m.after in m.text for m in found)


MODULE = """SHARE = 0.2


def doubled(
    x: float, by: float = 2.0
) -> float:
    return by * x


KINDS = {"a": lambda x: x}
"""


def test_lines_that_run_at_import_are_told_from_those_of_functions() -> None:
    inside = [line for line in range(1, 11) if runs_in_a_function(MODULE, line)]
    assert inside == [7, 10]


# Only the first test imports the module, so coverage sees the constant in it and in no other.
def test_a_constant_meets_every_test_of_its_files_and_a_function_those_that_call_it(tmp_path: Path) -> None:
    copy, cache = tmp_path / "copy", tmp_path / "cache"
    for folder in (copy / "tests", copy / "shaping", cache):
        folder.mkdir(parents=True)
    (copy / "shaping" / "doubling.py").write_text(MODULE)
    (copy / "tests" / "test_doubling.py").write_text("...")
    about = {"seconds": 0.1, "shared": {}}
    records = {
        "tests/test_doubling.py::test_a": about | {"lines": {"shaping/doubling.py": [1, 4, 7]}},
        "tests/test_doubling.py::test_b": about | {"lines": {"shaping/doubling.py": [7]}},
        "tests/test_doubling.py::test_c": about | {"lines": {}},
    }
    measured = hashlib.sha256(b"...").hexdigest()[:32]
    (cache / f"{measured}.tests").write_text(json.dumps({"sources": {}, "records": records}))

    def chosen(line: int) -> list[str]:
        files = ["tests/test_doubling.py"]
        names = mutant_tests.tests_of(copy, "shaping/doubling.py", line, test_files=files, limit=10.0, cache=cache)
        return [name.rpartition("_")[2] for name in names]

    assert chosen(1) == ["a", "b", "c"]
    assert chosen(7) == ["a", "b"]
