"""A folder of a test in front of `conf/` on the search path of an initialized Hydra, as `--config-dir` adds it."""

from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra


def search_first(folder: Path) -> None:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    search_path = hydra.config_loader.get_search_path()
    search_path.prepend("test", f"file://{folder}")
    hydra.config_loader = ConfigLoaderImpl(search_path)
