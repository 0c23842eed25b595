"""Typed options that Hydra can choose and that are no files in `conf/`: the cell, the sweeper and the launchers."""

from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore

from pipelines.configuration.cell import Cell

PLUGIN_MODULE = "hydra_plugins.shaping"
"""The module with our sweeper and launchers; Hydra finds plugins only in the package `hydra_plugins`."""


@dataclass
class GraphSweeperConfig:
    """`hydra/sweeper=graph`."""

    _target_: str = f"{PLUGIN_MODULE}.GraphSweeper"


@dataclass
class LocalLauncherConfig:
    """`hydra/launcher=local`: stage runs run on this machine and share its cores; each has one GPU if there are any."""

    _target_: str = f"{PLUGIN_MODULE}.LocalLauncher"
    workers: int = 0
    """Stage runs at a time; 0: one per GPU, or without GPUs one per core, as far as memory allows."""


@dataclass
class StageResources:
    """Resources of Slurm jobs. For a single stage, null means as for all stages."""

    nodes: int | None = None
    gpus: int | None = None
    """GPUs per node."""
    tasks: int | None = None
    """Tasks per node; null for all stages: one per GPU, at least one."""
    cpus: int | None = None
    """Cores per task."""
    mem_gb: float | None = None
    """Memory per node in GB; null for all stages: the default of the partition."""
    mem_per_cpu_gb: float | None = None
    """Memory per core in GB, in place of `mem_gb`."""
    time: int | None = None
    """Time limit in minutes; a job that reaches it is requeued and resumes."""
    partition: str | None = None
    account: str | None = None
    """Null: the user's `SBATCH_ACCOUNT`, else their default account; likewise `partition`, `qos` and `constraint`."""
    qos: str | None = None
    constraint: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Other parameters of sbatch, those of the site's plugins too: `+hydra.launcher.extra.reservation=maintenance`.
    Null leaves a parameter out that is sent otherwise: `+hydra.launcher.extra.comment=null`."""


@dataclass
class SlurmLauncherConfig(StageResources):
    """`hydra/launcher=slurm`: the whole graph becomes Slurm jobs, and the command returns."""

    _target_: str = f"{PLUGIN_MODULE}.SlurmLauncher"
    nodes: int = 1
    gpus: int = 0
    cpus: int = 1
    time: int = 240
    start: StageResources = field(default_factory=StageResources)
    pretrain: StageResources = field(default_factory=StageResources)
    midtrain: StageResources = field(default_factory=StageResources)
    grpo: StageResources = field(default_factory=StageResources)
    evaluate: StageResources = field(default_factory=StageResources)
    at_once: int = 0
    """Tasks of one job array that may run at a time; 0: no limit."""
    requeues: int = 50
    """How often a job may be requeued."""
    signal_seconds: int = 120
    """Seconds before the time limit at which a job is asked to save its trainer state."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that run before Python in a job, such as `module load cuda`."""
    srun: list[str] = field(default_factory=list)
    """Options of the srun that starts a job's tasks, such as `--mpi=pmix`."""


def resources(options: SlurmLauncherConfig, stage: str) -> dict[str, Any]:
    """Returns the resources of the jobs of `stage`: its own values, else those of all stages."""
    of_stage = getattr(options, stage)
    names = [f.name for f in fields(StageResources) if f.name != "extra"]
    values = {name: getattr(of_stage, name) for name in names}
    # The two ways to state memory exclude each other, so a stage that has one does not take the other from all stages.
    has_memory = of_stage.mem_gb is not None or of_stage.mem_per_cpu_gb is not None
    general = [name for name in names if not (has_memory and name in ("mem_gb", "mem_per_cpu_gb"))]
    values |= {name: getattr(options, name) for name in general if values[name] is None}
    values["tasks"] = values["tasks"] or max(1, values["gpus"])
    return values | {"extra": {**options.extra, **of_stage.extra}}


LAUNCHERS = {"local": LocalLauncherConfig, "slurm": SlurmLauncherConfig}

store = ConfigStore.instance()
store.store(name="cell", node=Cell, provider="shaping")
store.store(group="hydra/sweeper", name="graph", node=GraphSweeperConfig, provider="shaping")
for name, node in LAUNCHERS.items():
    store.store(group="hydra/launcher", name=name, node=node, provider="shaping")
