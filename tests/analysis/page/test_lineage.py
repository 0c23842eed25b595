"""The page's data about stage runs: their parents, neighbours, configurations and curves."""

import json
from collections.abc import Callable

import pytest

from analysis.page.lineage import lineage
from analysis.study import read_stored, read_study
from tests.published import publish


def test_neighbours_are_the_baseline_and_the_next_seed(make_store: Callable) -> None:
    study = read_study(*make_store(["objective=ce,precision", "seed=1,2,3"]))
    indices = {signature: number for number, signature in enumerate(study.specs)}
    data = lineage(study, indices, colours={}, folder=None)
    words, names = data["words"], {number: signature for signature, number in indices.items()}

    def place(index: int) -> tuple[str, int, str, str | None]:
        spec = study.specs[names[index]]
        return spec["labels"]["objective"], spec["config"]["seed"], spec["stage"], spec["checkpoint"]

    seen = set()
    for index, run in enumerate(data["runs"]):
        objective, seed, stage, checkpoint = place(index)
        if stage == "evaluate":
            continue
        found = {words[title]: place(other) for title, other in run[7]}
        following = {1: 2, 2: 3, 3: 1}[seed]
        expected = {f"seed {following}": (objective, following, stage, checkpoint)}
        if objective != "ce":
            expected["ce, the baseline"] = ("ce", seed, stage, checkpoint)
        assert found == expected
        seen.add((objective, seed, stage))
    assert len(seen) == 18


def test_a_stage_run_has_its_parent_parts_and_state(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"], leave_out=lambda run: run.stage == "grpo")
    study = read_study(graph, store)
    indices = {signature: number for number, signature in enumerate(study.specs)}
    data = lineage(study, indices, colours={"ce": "#000"}, folder=store.root / "pages" / "one")
    assert (data["store"], data["colours"]) == ("../..", {"ce": "#000"})
    for (signature, spec), run in zip(study.specs.items(), data["runs"], strict=True):
        assert data["words"][run[0]] == spec["stage"]
        assert run[1] == signature
        assert run[2] == (indices[spec["parent"]["signature"]] if spec["parent"] else -1)
        assert data["words"][run[3]] == "nano/ce/seed1"
        assert data["words"][run[4]] == (spec["checkpoint"] or "")
        assert data["words"][run[5]] == study.status[signature]
        parts = {name: json.loads(data["parts"][number]) for name, number in data["sets"][run[6]].items()}
        environment = parts.pop("environment", None)
        assert parts == spec["config"]
        assert (environment is not None) == (study.status[signature] == "done")
        if spec["stage"] == "midtrain":
            assert run[8] == []  # its ledger has no loss


@pytest.mark.parametrize("seeds", ["1", "1,2"])
def test_a_single_seed_has_no_neighbour_in_its_setting(seeds: str, make_store: Callable) -> None:
    study = read_study(*make_store(["objective=ce", f"seed={seeds}"]))
    indices = {signature: number for number, signature in enumerate(study.specs)}
    runs = lineage(study, indices, colours={}, folder=None)["runs"]
    assert {len(run[7]) for run in runs} == ({0} if seeds == "1" else {1})


def test_controls_are_neighbours_of_nothing(make_store: Callable) -> None:
    """The neighbour of an evaluation is the plain one of its checkpoint, in whatever order a store has its folders."""
    study = read_stored(make_store(["objective=ce,precision", "seed=1,2"])[1])
    signatures = list(study.specs)
    indices = {signature: number for number, signature in enumerate(signatures)}
    others = {
        signatures[other] for run in lineage(study, indices, colours={}, folder=None)["runs"] for _, other in run[7]
    }
    assert others
    assert not any(study.plan.runs[signature].control for signature in others)


def test_a_curve_is_the_reward_of_rl_and_keeps_its_ends(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    (run,) = [run for run in graph.runs.values() if run.stage == "grpo"]
    folder = store.run("grpo", run.signature).folder
    rows = [{"step": step, "reward": step / 99, "entropy": 5.0, "loss": 7.0} for step in range(1, 101)]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish(folder)
    study = read_study(graph, store)
    indices = {signature: number for number, signature in enumerate(study.specs)}
    curve = lineage(study, indices, colours={}, folder=None)["runs"][indices[run.signature]][8]
    assert (len(curve), curve[0], curve[-1]) == (24, 0.0101, 1.01)
    assert curve == sorted(curve)
