"""The frame of measurements: typed, complete, and the same with and without the cache of an earlier read."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis.published_files import read_ledger
from analysis.study import COLUMNS, read_stored, read_study
from pipelines.errors import UserError
from pipelines.evaluation.samples import SAMPLES, write_rows
from sweeps.monitor.launched_sweeps import record
from sweeps.store.stage_runs import Store
from tests.analysis.conftest import Measured, known, planned, write_run
from tests.published import publish


def test_the_frame_has_the_documented_columns(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,tail_penalty"])
    frame = analysis.load(store.root)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        name: dtype for name, (dtype, _) in COLUMNS.items()
    }
    row = frame.query(
        "objective == 'tail_penalty' and benchmark == 'Modules' and stage == 'midtrain' and step == 781"
    ).iloc[0]
    assert (row["lam_tail"], row["top_k"], row["step"], row["tokens"]) == (-0.1, 16, 781, 781 * 1024)
    assert row["value"] == known(Measured("tail_penalty", 1, "midtrain", 781, "Modules", "accuracy"))
    assert row["stage_run"] in graph.runs
    assert frame.loc[frame["objective"] == "ce", "top_k"].isna().all()


def test_a_store_gives_the_same_frame_with_and_without_its_plan(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision", "seed=1,2"])
    order = ["stage_run", "stage", "step", "benchmark", "metric"]
    by_plan, by_store = (
        study.measurements.astype(str).sort_values(order, ignore_index=True)
        for study in (read_study(graph, store), read_stored(store))
    )
    pd.testing.assert_frame_equal(by_plan, by_store)


def test_a_sweep_that_reuses_stage_runs_of_another_is_read_whole(make_store: Callable) -> None:
    _, store = make_store(["objective=ce,precision"])
    arguments = ("objective=ce,diversity", "scale=mine", "model.name=small")
    graph = planned(arguments)
    for run in graph.runs.values():
        if not store.run(run.stage, run.signature).is_done:
            write_run(store, run)
    jobs = [["objective=ce", *arguments[1:]], ["objective=diversity", *arguments[1:]]]
    record(store, graph, jobs, name="", launcher="local", options={})
    by_plan, by_store = read_study(graph, store), read_stored(store, "mine")
    assert set(by_store.runs["stage_run"]) == set(graph.runs)
    assert set(by_store.measurements["objective"]) == {"ce", "diversity"}
    assert set(by_store.measurements["model"]) == {"small"}
    assert {spec["labels"]["scale"] for spec in by_store.specs.values()} == {"mine"}
    order = ["stage_run", "stage", "step", "benchmark", "metric"]
    frames = (s.measurements.astype(str).sort_values(order, ignore_index=True) for s in (by_plan, by_store))
    pd.testing.assert_frame_equal(*frames)
    # The sweep that ran them first has its own.
    assert set(read_stored(store, "nano").measurements["objective"]) == {"ce", "precision"}


def test_the_mid_trained_model_is_also_rls_step_0(make_store: Callable) -> None:
    frame = analysis.load(make_store(["objective=ce"])[1].root)
    start = frame.query("stage == 'grpo' and step == 0")
    last = frame.query("stage == 'midtrain' and step == 781")
    assert len(start)
    assert start["value"].tolist() == last["value"].tolist()


def test_a_second_read_opens_only_new_stage_runs(make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, store = make_store(["objective=ce"], leave_out=lambda run: run.stage == "grpo")
    first = analysis.load(store.root)
    late = next(run for run in graph.runs.values() if run.stage == "grpo")
    write_run(store, late)
    opened: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read_bytes(path))  # type: ignore[func-returns-value]
    second = analysis.load(store.root)
    assert {path.parent.name for path in opened if path.name != "STORE.json"} == {late.signature}
    assert len(second) > len(first)  # now that RL exists, the mid-trained model is also its step 0


def test_a_changed_or_removed_result_is_read_again(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    analysis.load(store.root)
    run = next(run for run in graph.runs.values() if run.stage == "evaluate")
    folder = write_run(store, run, lambda measured: 0.125)
    frame = analysis.load(store.root)
    assert set(frame.loc[frame["stage_run"] == run.signature, "value"]) == {0.125}
    os.remove(folder / "result.json")
    assert run.signature not in set(analysis.load(store.root)["stage_run"])


def test_a_damaged_cache_is_ignored(make_store: Callable) -> None:
    _, store = make_store(["objective=ce"])
    first = analysis.load(store.root)
    (store.root / "cache" / "readings.arrow").write_bytes(b"not arrow")
    pd.testing.assert_frame_equal(analysis.load(store.root), first)


def test_a_read_only_store_is_read(make_store: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = make_store(["objective=ce"])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(analysis.load(store.root))
    assert not (store.root / "cache").exists()


def test_variants_have_rows_apart_from_plain_measurements(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    run = next(run for run in graph.runs.values() if run.stage == "evaluate")
    row = {"benchmark": "Chain-3", "group": "math", "metric": "avg@8", "value": 0.5, "stderr": 0.1, "n": 64}
    write_run(store, run, measurements=[row, {**row, "variant": "matched:precision", "value": 0.75}])
    frame = analysis.load(store.root)
    rows = frame[frame["stage_run"] == run.signature].drop_duplicates("variant")
    assert dict(zip(rows["variant"], rows["value"], strict=True)) == {"": 0.5, "matched:precision": 0.75}


def test_nan_is_a_missing_value_and_not_corruption(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    run = next(run for run in graph.runs.values() if run.stage == "evaluate")
    row = {"benchmark": "Chain-3", "group": "math", "metric": "avg@8", "value": float("nan"), "stderr": None, "n": 1}
    write_run(store, run, measurements=[row], metrics={"entropy": float("nan")})
    for _ in range(2):  # from the file, then from the cache
        frame = analysis.load(store.root)
        assert frame.loc[frame["stage_run"] == run.signature, "value"].isna().all()


def test_another_format_is_named(make_store: Callable, warnings: list[str]) -> None:
    graph, store = make_store(["objective=ce"])
    run = next(run for run in graph.runs.values() if run.stage == "evaluate")
    write_run(store, run, format=3)
    assert run.signature not in set(analysis.load(store.root)["stage_run"])
    assert "result.json: its format is 3 and this version reads 2" in "\n".join(warnings)


def broken_spec(folder: Path) -> None:
    (folder / "spec.json").write_text("{")


def broken_result(folder: Path) -> None:
    """Another value, in a result that is readable JSON."""
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"n": 64', '"n": 46', 1))


def result_of_another(folder: Path) -> None:
    other = next(path for path in folder.parent.iterdir() if path != folder)
    shutil.copy(other / "result.json", folder / "result.json")


@pytest.mark.parametrize("damage", [broken_spec, broken_result, result_of_another])
@pytest.mark.parametrize("is_cached", [True, False])
def test_a_broken_stage_run_is_named_and_the_others_are_read(
    make_store: Callable, damage: Callable[[Path], None], is_cached: bool, warnings: list[str]
) -> None:
    _, store = make_store(["objective=ce"])
    before = analysis.load(store.root)
    folder = sorted(store.root.glob("evaluate/*"))[1]
    if not is_cached:
        (store.root / "cache" / "readings.arrow").unlink()
    damage(folder)
    after = analysis.load(store.root)
    # What was read before a spec changed is still right.
    is_lost = not (is_cached and damage is broken_spec)
    assert (f"verify --redo --store {store.root} {folder.name}" in "\n".join(warnings)) == is_lost
    kept = before[before["stage_run"] != folder.name] if is_lost else before
    pd.testing.assert_frame_equal(values(after), values(kept))


def values(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: str for name in frame if frame[name].dtype == "category"}).reset_index(drop=True)


@pytest.mark.parametrize("position", [0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9999])
def test_a_changed_cache_is_read_again(make_store: Callable, position: float) -> None:
    """A flipped bit in the cached readings, whose file is still one of Arrow, changes no number."""
    _, store = make_store(["objective=ce"])
    first = analysis.load(store.root)
    path = store.root / "cache" / "readings.arrow"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 4
    path.write_bytes(content)
    pd.testing.assert_frame_equal(analysis.load(store.root), first)


def test_a_changed_ledger_is_named_and_left_out(make_store: Callable, warnings: list[str]) -> None:
    graph, store = make_store(["objective=ce,precision"])
    changed, other = (run for run in graph.runs.values() if run.stage == "grpo")
    path = store.run("grpo", changed.signature).folder / "ledger.jsonl"
    path.write_text(path.read_text().replace("0.1", "0.9", 1))
    assert set(analysis.ledger(store.root, "grpo")["stage_run"]) == {other.signature}
    assert f"{path}: its sha256 is" in "\n".join(warnings)


def test_an_unfinished_last_ledger_line_is_left_out_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3')
    assert read_ledger(path, None) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl: line 2"):
        read_ledger(path, None)


def test_long_ledgers_are_thinned_evenly_and_keep_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(1, 1002)))
    assert [row["step"] for row in read_ledger(path, 11)] == list(range(1, 1002, 100))


def test_ledger_and_samples(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce"])
    curves = analysis.ledger(store.root, "grpo")
    assert curves["reward"].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert set(curves["objective"]) == {"ce"}
    run = next(run for run in graph.runs.values() if run.stage == "evaluate" and "Chain-3" in str(run.config))
    rows = [{"benchmark": b, "question": "7+5", "response": "12", "answer": "12", "reward": 1.0} for b in ("A", "B")]
    write_rows(store.root / "evaluate" / run.signature / SAMPLES, rows)
    publish(store.root / "evaluate" / run.signature)
    samples = analysis.samples(store.root, benchmark="A", stage_run=run.signature[:8])
    assert samples[["benchmark", "response", "objective"]].drop_duplicates().values.tolist() == [["A", "12", "ce"]]


def test_samples_of_a_control_are_told_from_those_of_its_setting(make_store: Callable) -> None:
    graph, store = make_store(["objective=ce,precision"])
    after_rl = [
        run
        for run in graph.runs.values()
        if run.stage == "evaluate" and run.labels["objective"] == "ce" and run.checkpoint == "step-000020"
    ]
    assert {run.control or "" for run in after_rl} == {"", "matched:precision"}
    for run in after_rl:
        row = {"benchmark": "A", "question": "7+5", "response": run.control or "own", "answer": "12", "reward": 1.0}
        write_rows(store.root / "evaluate" / run.signature / SAMPLES, [row])
        publish(store.root / "evaluate" / run.signature)
    samples = analysis.samples(store.root, benchmark="A")
    told = {(row["variant"], row["response"], row["rl_seed"]) for row in samples.to_dict("records")}
    assert told == {("", "own", 1), ("matched:precision", "matched:precision", 1)}


def test_waiting_stage_runs_are_listed_parents_first(make_store: Callable) -> None:
    graph, store = make_store(
        ["objective=ce"], leave_out=lambda run: run.stage == "grpo" or run.checkpoint == "step-000020"
    )
    study = read_study(graph, store)
    (rl,) = [run for run in graph.runs.values() if run.stage == "grpo"]
    (last,) = [run for run in graph.runs.values() if run.checkpoint == "step-000020"]
    assert study.waits_for([last.signature]) == [f"grpo/{rl.signature}", f"evaluate/{last.signature}"]


def test_an_empty_store_is_an_empty_frame(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    assert analysis.load(store.root).empty
    ledger = analysis.ledger(store.root)
    assert ledger.empty
    assert {"objective", "seed", "stage_run", "step"} <= set(ledger)  # so that a selection works on it
    assert analysis.samples(store.root).empty


def test_an_evaluation_without_its_parents_keeps_its_labels(make_store: Callable, tmp_path: Path) -> None:
    """A part of a store can be read without the stage runs that it descends from."""
    graph, _ = make_store(["objective=precision"], leave_out=lambda run: True)
    run = next(run for run in graph.runs.values() if run.stage == "evaluate")
    store = Store.create(tmp_path / "part")
    write_run(store, replace(run))
    frame = analysis.load(store.root)
    assert set(frame["objective"]) == {"precision"}
    assert set(frame["beta"]) == {-0.25}
