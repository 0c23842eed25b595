"""What Hydra can choose that is not a file in `conf/`: the typed cell, the sweeper and the launchers."""

from dataclasses import dataclass, field
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
    """`hydra/launcher=local`: stage runs run on this machine, one thread each, one GPU each where there are any."""

    _target_: str = f"{PLUGIN_MODULE}.LocalLauncher"
    workers: int = 0
    """Stage runs at a time; 0: one a GPU, or one a core where there is none, as far as memory allows."""


@dataclass
class StageResources:
    """What the jobs of one stage ask for; null: the same as all stages."""

    nodes: int | None = None
    gpus: int | None = None
    tasks: int | None = None
    cpus: int | None = None
    mem_gb: float | None = None
    time: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class SlurmLauncherConfig:
    """`hydra/launcher=slurm`: the whole graph becomes Slurm jobs, and the command returns."""

    _target_: str = f"{PLUGIN_MODULE}.SlurmLauncher"
    nodes: int = 1
    gpus: int = 0
    """GPUs of a node."""
    tasks: int | None = None
    """Tasks of a node; null: one for each GPU, or one."""
    cpus: int = 1
    """Cores of a task."""
    mem_gb: float | None = None
    """Memory of a node; null: what the partition gives."""
    time: int = 240
    """Minutes after which a job is put back into the queue, where it goes on."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other parameter of sbatch: `+hydra.launcher.extra.reservation=maintenance`."""
    pretrain: StageResources = field(default_factory=StageResources)
    midtrain: StageResources = field(default_factory=StageResources)
    grpo: StageResources = field(default_factory=StageResources)
    evaluate: StageResources = field(default_factory=StageResources)
    at_once: int = 0
    """Tasks of one array at a time; 0: no limit of ours."""
    requeues: int = 50
    """Times that a job may be put back into the queue."""
    signal_seconds: int = 120
    """How long before its time is up a job is told to save its state."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job's python, such as `module load cuda`."""


def resources(options: SlurmLauncherConfig, stage: str) -> dict[str, Any]:
    """What the jobs of `stage` ask for: the launcher's values, and over them the stage's own."""
    names = ("nodes", "gpus", "tasks", "cpus", "mem_gb", "time", "partition", "account", "qos", "constraint")
    own = getattr(options, stage)
    found = {name: getattr(options, name) if getattr(own, name) is None else getattr(own, name) for name in names}
    found["tasks"] = found["tasks"] or max(1, found["gpus"])
    return found | {"extra": {**options.extra, **own.extra}}


LAUNCHERS = {"local": LocalLauncherConfig, "slurm": SlurmLauncherConfig}

store = ConfigStore.instance()
store.store(name="cell", node=Cell, provider="shaping")
store.store(group="hydra/sweeper", name="graph", node=GraphSweeperConfig, provider="shaping")
for name, node in LAUNCHERS.items():
    store.store(group="hydra/launcher", name=name, node=node, provider="shaping")
