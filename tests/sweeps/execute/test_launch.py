"""What launchers pass on: Hydra's plugins, the log level, and the command of a Slurm job."""

import os
import re
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import OmegaConf

from hydra_plugins.shaping import LocalLauncher
from pipelines.errors import UserError
from pipelines.logs import DEBUG_VARIABLE, LEVEL_VARIABLE
from sweeps.compose.cells import compose_cells
from sweeps.compose.launcher_options import PLUGIN_MODULE, SlurmLauncherConfig, StageResources
from sweeps.execute.launch import check_options
from sweeps.execute.slurm import _Batch, _existing, _job_names, scripts
from sweeps.monitor.slurm_queue import JobState
from sweeps.plan.graph import Plan, StageRun
from sweeps.plan.planner import plan
from sweeps.store.stage_runs import Store


def test_hydra_finds_our_sweeper_and_launchers() -> None:
    """Hydra imports all modules of the package `hydra_plugins`; if this fails, it looks for plugins elsewhere."""
    plugins = [*Plugins.instance().discover(Sweeper), *Plugins.instance().discover(Launcher)]
    ours = {plugin.__name__ for plugin in plugins if plugin.__module__ == PLUGIN_MODULE}
    assert ours == {"GraphSweeper", "LocalLauncher", "SlurmLauncher"}


@pytest.mark.parametrize(
    ("verbose", "environment", "level"),
    [
        (False, {}, None),
        (True, {}, "DEBUG"),
        (["sweeps"], {LEVEL_VARIABLE: "WARNING"}, "DEBUG"),
        (False, {DEBUG_VARIABLE: "1"}, "DEBUG"),
        (False, {DEBUG_VARIABLE: "1", LEVEL_VARIABLE: "WARNING"}, "WARNING"),
    ],
)
def test_verbose_and_debug_set_the_log_level_of_workers(
    monkeypatch: pytest.MonkeyPatch, verbose: bool | list[str], environment: dict[str, str], level: str | None
) -> None:
    for name in (LEVEL_VARIABLE, DEBUG_VARIABLE):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = OmegaConf.create({"hydra": {"verbose": verbose}})
    context = HydraContext(config_loader=None, callbacks=None)  # type: ignore[arg-type]
    LocalLauncher(workers=1).setup(hydra_context=context, task_function=lambda _: None, config=config)
    assert os.environ.get(LEVEL_VARIABLE) == level


def test_a_slurm_job_has_the_log_level_and_imports_nothing_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = plan(compose_cells(["objective=ce"]))
    monkeypatch.setenv(LEVEL_VARIABLE, "DEBUG")
    script = next(scripts(graph, SlurmLauncherConfig(setup=["module load cuda"]), tmp_path))
    lines = script.splitlines()
    assert lines.index(f"export {LEVEL_VARIABLE}=DEBUG") < lines.index("module load cuda")
    assert " -P -u -m sweeps.execute.slurm_job " in script
    monkeypatch.delenv(LEVEL_VARIABLE)
    assert LEVEL_VARIABLE not in next(scripts(graph, SlurmLauncherConfig(), tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (SlurmLauncherConfig(time=1), ("hydra.launcher.time=1", "hydra.launcher.signal_seconds=120")),
        (SlurmLauncherConfig(time=2), ("hydra.launcher.time=2", "hydra.launcher.signal_seconds=120")),
        (SlurmLauncherConfig(grpo=StageResources(time=1)), ("hydra.launcher.time=1", "a grpo job")),
        (SlurmLauncherConfig(time=60, signal_seconds=3600), ("hydra.launcher.signal_seconds=3600", "below 3600")),
        (
            SlurmLauncherConfig(mem_gb=4, mem_per_cpu_gb=2),
            ("hydra.launcher.mem_gb=4", "hydra.launcher.mem_per_cpu_gb=2"),
        ),
        (SlurmLauncherConfig(extra={"time": 5}), ("hydra.launcher.extra.time=5", "hydra.launcher.time")),
        (SlurmLauncherConfig(extra={"open_mode": None}), ("hydra.launcher.extra.open_mode=None", "the store")),
    ],
)
def test_impossible_options_are_refused_with_their_keys(options: SlurmLauncherConfig, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        check_options(options)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_a_stage_with_its_own_way_to_state_memory_does_not_get_the_other(tmp_path: Path) -> None:
    options = SlurmLauncherConfig(mem_gb=4, evaluate=StageResources(mem_per_cpu_gb=1.5))
    check_options(options)
    memory = {
        stage: re.findall(r"#SBATCH --(mem[\w-]*=\w+)", script)
        for script in scripts(plan(compose_cells(["objective=ce"])), options, tmp_path)
        for stage in re.findall(r"--job-name=\S+:(\w+)", script)
    }
    assert memory["pretrain"] == ["mem=4096M"]
    assert memory["evaluate"] == ["mem-per-cpu=1536M"]


def test_jobs_are_named_by_their_cells_and_stage(tmp_path: Path) -> None:
    graph = plan(compose_cells(["objective=ce,precision", "seed=1", "until=pretrain"]))
    names = [re.search("--job-name='?([^'\n]+)", script) for script in scripts(graph, SlurmLauncherConfig(), tmp_path)]
    assert {name.group(1) for name in names if name} == {
        "nano/*/seed1:pretrain",
        "nano/*/seed1:evaluate",
        "nano/ce/seed1:evaluate",
    }
    script = next(scripts(graph, SlurmLauncherConfig(), tmp_path))
    assert "--comment='shaping pretrain of nano/ce/seed1, nano/precision/seed1'" in script
    assert "wckey" not in script
    assert "--cpus-per-task=1 --export=ALL" in script


def options_of(script: str) -> dict[str, str]:
    """The options of sbatch that a script sets."""
    return dict(re.findall(r"#SBATCH --([\w-]+)=?(.*)", script))


def test_jobs_wait_for_the_tasks_of_their_number_and_controls_for_both_of_their_models(tmp_path: Path) -> None:
    graph = plan(compose_cells(["objective=ce,precision", "seed=1,2"]))
    written = [options_of(script) for script in scripts(graph, SlurmLauncherConfig(at_once=3), tmp_path)]
    first, second, *_ = written
    assert (first["array"], first.get("dependency")) == ("0,1,2,3%3", None)
    assert "kill-on-invalid-dep" not in first
    assert (second["array"], second["dependency"], second["kill-on-invalid-dep"]) == ("0,1,2,3%3", "aftercorr:1", "yes")
    controls = [one["dependency"] for one in written if ":" in one.get("dependency", "").partition(":")[2]]
    # Of ce and precision, whose tasks are 0 and 2 with the first seed and 1 and 3 with the second.
    assert controls == ["afterok:2_0:2_2", "afterok:2_1:2_3", "afterok:10_0:10_2", "afterok:10_1:10_3"]
    for one in written:
        assert {"hold", "requeue"} <= set(one)
        assert not {"gpus-per-node", "mem", "mem-per-cpu"} & set(one)
    assert "%" not in next(options_of(s)["array"] for s in scripts(graph, SlurmLauncherConfig(), tmp_path))


def test_a_name_selects_cells_with_and_without_a_variant() -> None:
    labels = {"model": "nano", "objective": "ce", "seed": 1}
    graph = Plan()
    for signature, more in (("a", {}), ("b", {"variant": "grpo.seed=2"}), ("c", {"seed": 2})):
        graph.add(StageRun("grpo", signature, 1, {}, None, None, 1, labels | more))

    def names(*signatures: str) -> tuple[str, str]:
        return _job_names(graph, _Batch("grpo", dict(enumerate(signatures)), None))

    assert names("a", "b")[0] == "nano/ce/seed1*:grpo"
    assert names("a", "c")[0] == "nano/ce/*:grpo"
    assert names("a", "b", "c") == (
        "nano/ce/**:grpo", "shaping grpo of nano/ce/seed1, nano/ce/seed1/grpo.seed=2, nano/ce/seed2"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("slurm", "recorded", "is_attached"),
    [
        ("PENDING", "queued", True),
        ("RUNNING", "running", True),
        ("RUNNING", "failed", False),  # it is about to end
        ("REQUEUED", "failed", True),  # Slurm has put it back
        ("COMPLETED", "running", False),
        ("CANCELLED", "queued", False),
    ],
)
def test_a_job_that_can_still_do_a_stage_run_is_attached_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: str, recorded: str, is_attached: bool
) -> None:
    store, graph = Store.create(tmp_path / "store"), Plan()
    graph.add(StageRun("pretrain", "a", 1, {}, None, None, 1, {}))
    store.run("pretrain", "a").folder.mkdir(parents=True)
    store.run("pretrain", "a").write_state(recorded, job={"id": "7_0"})
    monkeypatch.setattr("sweeps.execute.slurm.job_states", lambda jobs: {job: JobState(slurm) for job in jobs})
    found = _existing(graph, store)
    assert found.attached == ({"a": "7_0"} if is_attached else {})
    assert (found.done, found.submitted) == ([], {})
