"""The survivors of an earlier run are found again where their lines are now."""

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
