"""What launchers pass on: Hydra's plugins, the log level, and the command of a Slurm job."""

import os
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import OmegaConf

from hydra_plugins.shaping import LocalLauncher
from pipelines.logs import DEBUG_VARIABLE, LEVEL_VARIABLE
from sweeps.compose.cells import compose_cells
from sweeps.compose.launcher_options import PLUGIN_MODULE, SlurmLauncherConfig
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
