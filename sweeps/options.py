"""What Hydra can choose that is not a file in `conf/`: the typed cell, the sweeper and the launchers."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from pipelines.cell import Cell

PLUGIN_MODULE = "hydra_plugins.shaping"
"""Hydra takes plugins only from modules under this name; `sweeps.hydra_plugins` stands in for it."""


@dataclass
class GraphSweeperConfig:
    """`hydra/sweeper=graph`."""

    _target_: str = f"{PLUGIN_MODULE}.GraphSweeper"


@dataclass
class LocalLauncherConfig:
    """`hydra/launcher=local`: stage runs run on this machine, one thread each."""

    _target_: str = f"{PLUGIN_MODULE}.LocalLauncher"
    workers: int = 0
    """Stage runs at a time; 0 means one a core."""


LAUNCHERS = (LocalLauncherConfig,)

store = ConfigStore.instance()
store.store(name="cell", node=Cell, provider="shaping")
store.store(group="hydra/sweeper", name="graph", node=GraphSweeperConfig, provider="shaping")
store.store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="shaping")
