"""Hydra's plugins of this project: a multirun becomes one graph of stage runs, and one's own folder is searched first.

`graph` expands overrides and named sweeps into jobs; `local` and `slurm` receive all jobs at once and plan them as one
graph: `local` runs the missing stage runs on this machine, `slurm` submits them and returns.

Hydra finds plugins in the namespace package `hydra_plugins` (so this folder has no `__init__.py`) and imports all of
them whenever it starts, so the modules that do the work are imported only when a launcher is used.
"""

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class OwnFolder(SearchPathPlugin):
    """Puts the folder of `--config-dir` or `SHAPING_CONFIG_DIR` in front of `conf/`, for every command."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder, if there is one; a file in it replaces ours of the same name."""
        if folder := os.environ.get("SHAPING_CONFIG_DIR"):
            search_path.prepend("own folder", f"file://{os.path.abspath(os.path.expanduser(folder))}")


class GraphSweeper(Sweeper):
    """Expands the command line into jobs and hands them to the launcher all at once."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher that the configuration names."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every job that `arguments` name."""
        from sweeps.compose.expansion import expand

        assert self.launcher is not None  # set in `setup`
        jobs = expand([a for a in arguments if not a.lstrip("+~").startswith("hydra")])
        return self.launcher.launch(jobs, initial_job_idx=0)


class LocalLauncher(Launcher):
    """Runs jobs as one graph of stage runs on this machine."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set the log level of the workers."""
        _set_log_level(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose, plan and run; raises `UserError` before anything is written, `StageFailure` at the end."""
        from sweeps.compose.cells import compose_jobs
        from sweeps.execute.launch import launch_locally

        launch_locally(compose_jobs(job_overrides), job_overrides, workers=self.workers)
        return []


class SlurmLauncher(Launcher):
    """Submits jobs as one graph of stage runs to Slurm."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Set the log level of the workers."""
        _set_log_level(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose, plan and submit; raises `UserError` before anything is written, and for what Slurm refuses."""
        from sweeps.compose.cells import compose_jobs
        from sweeps.compose.launcher_options import SlurmLauncherConfig
        from sweeps.execute.launch import launch_on_slurm

        # Hydra passes the options as plain or OmegaConf values; merging them checks their types.
        content = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in self.options.items()}
        options = OmegaConf.to_object(OmegaConf.merge(SlurmLauncherConfig, content))
        assert isinstance(options, SlurmLauncherConfig)
        launch_on_slurm(compose_jobs(job_overrides), job_overrides, options=options)
        return []


def _set_log_level(config: DictConfig) -> None:
    """With `hydra.verbose` (true or names of loggers) or `--debug`, have this process and its workers log at DEBUG."""
    from pipelines.logs import LEVEL_VARIABLE, is_debugging, set_up_logging

    if config.hydra.verbose:
        os.environ[LEVEL_VARIABLE] = "DEBUG"
    elif is_debugging():
        os.environ.setdefault(LEVEL_VARIABLE, "DEBUG")
    set_up_logging()
