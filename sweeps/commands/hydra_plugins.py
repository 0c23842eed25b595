"""Hydra's sweeper and launchers of this project: a multirun becomes one graph of stage runs.

`graph` expands overrides and named sweeps into jobs; `local` and `slurm` receive all jobs at once and plan them as one
graph: `local` runs what is missing on this machine, `slurm` submits it and returns.
"""

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sweeps.compose.cells import compose_jobs, expand
from sweeps.compose.launchers import PLUGIN_MODULE, SlurmLauncherConfig
from sweeps.execute.launch import launch_locally, launch_on_slurm


class GraphSweeper(Sweeper):
    """Expands the command line into jobs and hands them to the launcher all at once."""

    __module__ = PLUGIN_MODULE

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the launcher that the configuration names."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every job that `arguments` name."""
        assert self.launcher is not None  # set in `setup`
        jobs = expand([a for a in arguments if not a.lstrip("+~").startswith("hydra")])
        return self.launcher.launch(jobs, initial_job_idx=0)


class LocalLauncher(Launcher):
    """Runs jobs as one graph of stage runs on this machine."""

    __module__ = PLUGIN_MODULE

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed of Hydra beyond the jobs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose, plan and run; raises `UserError` before anything is written, `StageFailure` at the end."""
        launch_locally(compose_jobs(job_overrides), job_overrides, self.workers)
        return []


class SlurmLauncher(Launcher):
    """Submits jobs as one graph of stage runs to Slurm."""

    __module__ = PLUGIN_MODULE

    def __init__(self, **options: Any) -> None:
        content = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in options.items()}
        typed = OmegaConf.to_object(OmegaConf.merge(SlurmLauncherConfig, content))
        assert isinstance(typed, SlurmLauncherConfig)
        self.options = typed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed of Hydra beyond the jobs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose, plan and submit; raises `UserError` before anything is written, and for what Slurm refuses."""
        launch_on_slurm(compose_jobs(job_overrides), job_overrides, self.options)
        return []


def register() -> None:
    """Make all three known to Hydra."""
    parent, name = PLUGIN_MODULE.split(".")
    try:
        package = importlib.import_module(parent)  # there if another plugin is installed
    except ModuleNotFoundError:
        package = sys.modules[parent] = ModuleType(parent)
        package.__path__ = []  # makes it a package, in which Hydra finds nothing else
    sys.modules[PLUGIN_MODULE] = sys.modules[__name__]
    setattr(package, name, sys.modules[__name__])
    for plugin in (GraphSweeper, LocalLauncher, SlurmLauncher):
        Plugins.instance().register(plugin)
