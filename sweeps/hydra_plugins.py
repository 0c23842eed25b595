"""Hydra's sweeper and launcher of this project: a multirun becomes one graph of stage runs.

`graph` expands overrides and named sweeps into jobs; `local` receives all jobs at once, plans them as one graph
and runs what is missing on this machine.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pipelines.errors import StageFailure, UserError, require
from sweeps.composition import compose_jobs, expand
from sweeps.display import Display
from sweeps.executor import execute
from sweeps.options import PLUGIN_MODULE
from sweeps.plan import plan
from sweeps.store import Store


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
        require(workers >= 0, "hydra.launcher.workers", workers, "it must be 1 or more, or 0 for one a core")
        self.workers = workers or len(os.sched_getaffinity(0))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing is needed of Hydra beyond the jobs."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose, plan and run; raises `UserError` before anything is written, `StageFailure` at the end."""
        cells = compose_jobs(job_overrides)
        stores = {cell.store for cell in cells}
        if len(stores) > 1:
            raise UserError(f"store={','.join(sorted(stores))}: one command writes to one store")
        store = Store.create(stores.pop())
        outcome = execute(plan(cells), store, cells[0].tracking, self.workers, Display())
        if outcome.failed:
            raise StageFailure(
                f"{len(outcome.failed)} stage runs failed and {len(outcome.blocked)} wait for them; the logs are "
                "named above, and the same command runs again only what is missing"
            )
        return []


def register() -> None:
    """Make both known to Hydra."""
    parent, name = PLUGIN_MODULE.split(".")
    try:
        package = importlib.import_module(parent)  # there if another plugin is installed
    except ModuleNotFoundError:
        package = sys.modules[parent] = ModuleType(parent)
        package.__path__ = []  # makes it a package, in which Hydra finds nothing else
    sys.modules[PLUGIN_MODULE] = sys.modules[__name__]
    setattr(package, name, sys.modules[__name__])
    for plugin in (GraphSweeper, LocalLauncher):
        Plugins.instance().register(plugin)
