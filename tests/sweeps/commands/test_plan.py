"""`shaping-sweeps plan --sbatch | sizes | calibrate`."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.models.sizes import parameters
from sweeps.commands.plan_report import PlanReport
from sweeps.compose.cells import compose_cell, compose_cells
from sweeps.plan.cost import Assumptions, Capacity, Rate, work
from sweeps.plan.planner import plan
from tests.published import publish
from tests.sweeps.commands.untrained import FEW, run, sweeps


def timed_store(folder: Path, rate: Rate, ranks: int) -> None:
    """Make a store of two cells whose stage runs took the time that `rate` predicts, on `ranks` devices.

    Prompts have 12 tokens, responses a quarter of their limit, and three quarters of the groups are mixed.
    """
    assert run("objective=ce,precision", *FEW, cwd=folder).returncode == 0
    graph = plan(compose_cells(["objective=ce,precision", *FEW]))
    for signature, planned in graph.runs.items():
        path = folder / "store" / planned.stage / signature
        seconds = rate.seconds(work(graph, planned, Assumptions(12, 0.25, 0.75)))
        if planned.stage == "grpo":
            limit = planned.config["grpo"]["max_new_tokens"]
            steps = [
                {"step": step, "prompt_length": 10 + 2 * step, "response_length": share * limit, "groups_mixed": mixed}
                for step, share, mixed in ((0, 0.2, 1.0), (1, 0.25, 0.5), (2, 0.3, 0.75))
            ]
            lines = [{"step": 0, "held_out_reward": 0.5}, *steps]
            (path / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        publish(path, seconds=seconds / ranks, ranks=ranks)


def test_calibrate(tmp_path: Path) -> None:
    timed_store(tmp_path, Rate("core", 0.25, 0.05), ranks=2)
    result: dict[str, Any] = json.loads(sweeps("calibrate", "--json", cwd=tmp_path).stdout)
    assert result["mfu"] == pytest.approx(0.25)
    assert result["sampling_mfu"] == pytest.approx(0.05)
    assert {group["stage"]: group["runs"] for group in result["groups"]} == {
        "pretrain": 2, "midtrain": 2, "grpo": 2, "evaluate": 6
    }  # fmt: skip
    assert all(group["worst"] == pytest.approx(0, abs=1e-9) for group in result["groups"])
    assert result["assumed"] == {"prompt_tokens": 12, "response_share": 0.25, "mixed_share": 0.75}
    shown = sweeps("calibrate", cwd=tmp_path)
    words = "--device core --mfu 0.25 --sampling-mfu 0.05 --prompt-tokens 12 --response-share 0.25 --mixed-share 0.75"
    assert shown.stdout.splitlines()[-1] == f"shaping-sweeps plan ... {words}"
    planned = json.loads(sweeps("plan", "seed=9", *FEW, "--json", *words.split(), cwd=tmp_path).stdout)
    assert planned["cost"]["assumed"] == result["assumed"]
    refused = sweeps("plan", "--response-share=2", cwd=tmp_path)
    assert "--response-share=2.0: it is a share, above 0 and at most 1" in refused.stderr
    nothing = sweeps("calibrate", "stage=pretrain", cwd=tmp_path)
    assert nothing.returncode == 2
    assert nothing.stderr.strip().endswith("is a finished evaluation, so the cost cannot be calibrated")
    wrong = sweeps("calibrate", "--device=h10", cwd=tmp_path)
    assert "did you mean 'h100'" in wrong.stderr


def test_the_tree_has_the_status_of_every_stage_run(tmp_path: Path) -> None:
    """Long lines are not cropped where the output is not a terminal."""
    tree = sweeps("plan", "objective=ce,precision", cwd=tmp_path).stdout.split("\nstage runs\n")[1].splitlines()
    assert len(tree) == len(plan(compose_cells(["objective=ce,precision"])).runs)
    assert all(line.endswith("  missing") for line in tree)


def test_sizes_are_those_of_table_1(tmp_path: Path) -> None:
    result = json.loads(sweeps("sizes", "--json", cwd=tmp_path).stdout)
    rows = {row["model"]: row for row in result["models"]}
    assert result["vocabulary"] == 151_936
    assert rows["1B"]["parameters"] == 1_048_211_968
    assert rows["10B-A0.5B"]["active_without_embeddings"] == 519_169_536
    assert len(rows) == 14
    shown = sweeps("sizes", "nano", "--vocabulary", "640", cwd=tmp_path).stdout.splitlines()
    model = vars(compose_cell(["model=nano"]).model)
    assert shown[1].split()[:2] == ["nano", f"{parameters(model, 640):,}"]
    wrong = sweeps("sizes", "4b", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "did you mean '4B'" in wrong.stderr


def test_a_4b_cell_prints_its_batch_scripts(tmp_path: Path) -> None:
    paper = [f"{group}=paper" for group in ("data", "pretrain", "midtrain", "grpo", "evaluation")]
    slurm = ["hydra/launcher=slurm", "hydra.launcher.gpus=8", "hydra.launcher.pretrain.nodes=8"]
    words = ["model=4B", *paper, "compute=sharded", *slurm]
    shown = sweeps("plan", *words, "--sbatch", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    first = shown.stdout.split("#!/bin/bash")[1]
    lines = first.splitlines()
    assert {"#SBATCH --nodes=8", "#SBATCH --ntasks-per-node=8", "#SBATCH --gpus-per-node=8"} <= set(lines)
    assert not (tmp_path / "store").exists()
    refused = sweeps("plan", "model=4B", "--sbatch", cwd=tmp_path)
    assert "--sbatch: only hydra/launcher=slurm has scripts" in refused.stderr


def test_what_is_queued_or_running_elsewhere_costs_nothing_here() -> None:
    graph = plan(compose_cells(["seed=1,2,3,4", "until=pretrain", "pretrain.milestones=1"]))
    trained = [signature for signature, run in graph.runs.items() if run.stage == "pretrain"]
    statuses = dict.fromkeys(graph.runs, "done")
    statuses |= dict(zip(trained, ("queued", "running", "done", "failed"), strict=True))
    report = PlanReport(graph, statuses, Rate("core", 1.0, 1.0), Capacity(), Assumptions())
    (line,) = [line for line in report.lines() if line.startswith("pretrain")]
    assert line.split()[:6] == ["pretrain", "4", "4", "1", "2", "1"]  # asked for, in all, done, elsewhere, to do
    assert report.to_json()["cost"]["stages"]["pretrain"]["stage_runs"] == 1


@pytest.mark.parametrize(("share", "jobs"), [(0.4, 3), (1.5, 1)])
def test_jobs_that_are_requeued_at_the_time_limit_are_counted(share: float, jobs: int) -> None:
    graph = plan(compose_cells(["until=pretrain"]))
    graph = graph.part(signature for signature, run in graph.runs.items() if run.stage == "pretrain")
    (run,) = graph.runs.values()
    hours = Rate("core", 1.0, 1.0).seconds(work(graph, run)) / 3600
    capacity = Capacity(time_limits={"pretrain": share * hours})
    statuses = dict.fromkeys(graph.runs, "missing")
    lines = list(PlanReport(graph, statuses, Rate("core", 1.0, 1.0), capacity, Assumptions()).lines())
    counted = [line for line in lines if line.startswith("The launcher's time limits")]
    assert counted == (
        [f"The launcher's time limits make that {jobs} jobs for 1 stage runs: the others are requeued"]
        if jobs > 1
        else []
    )
