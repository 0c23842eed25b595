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
from sweeps.execute.slurm import scripts
from sweeps.plan.planner import plan


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
