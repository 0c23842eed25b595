"""From overrides to typed cells and launcher options, through Hydra; `shaping-run` and the tables start from here.

Every cell is composed and checked before anything is written, and the mistakes of all cells are reported together.
"""

from collections.abc import Sequence
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.configuration.cell import Cell, typed
from pipelines.configuration.data import DataConfig
from pipelines.configuration.evaluation import EvaluationConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.errors import UserError
from sweeps.compose.composer import Composer, NeedsHydra
from sweeps.compose.config_files import initialized_hydra
from sweeps.compose.error_messages import one_line, sentence
from sweeps.compose.expansion import expand, parsed
from sweeps.compose.launcher_options import (  # registers all typed options with Hydra
    LocalLauncherConfig,
    SlurmLauncherConfig,
)
from sweeps.compose.start_keys import check_start_keys


def compose_cell(overrides: Sequence[str]) -> Cell:
    """Returns the cell of one list of overrides, composed by Hydra itself; raises `UserError` for a mistake."""
    try:
        with initialized_hydra():
            cell = Cell.from_config(compose(config_name="config", overrides=list(overrides)))
        check_start_keys(overrides, cell)
        return cell
    except Exception as error:
        # One line, whatever a value contains.
        raise UserError(one_line(sentence(error))) from error


def composed(arguments: Sequence[str]) -> list[tuple[list[str], DictConfig]]:
    """Returns the overrides and the configuration of each cell that `arguments` name, before it is checked."""
    try:
        with initialized_hydra():
            return [(job, compose(config_name="config", overrides=job)) for job in expand(arguments)]
    except Exception as error:
        raise UserError(sentence(error)) from error


def compose_data(overrides: Sequence[str]) -> DataConfig:
    """Returns only the data of a cell, which alone is checked; raises `UserError` for a mistake."""
    (data,) = _compose_parts(overrides, "data")
    assert isinstance(data, DataConfig)
    return data


def compose_questions(overrides: Sequence[str]) -> tuple[GRPOConfig, EvaluationConfig]:
    """Returns only RL and the evaluation of a cell, which alone are checked; raises `UserError` for a mistake."""
    grpo, evaluation = _compose_parts(overrides, "grpo", "evaluation")
    assert isinstance(grpo, GRPOConfig)
    assert isinstance(evaluation, EvaluationConfig)
    return grpo, evaluation


def _compose_parts(overrides: Sequence[str], *names: str) -> list[Any]:
    try:
        with initialized_hydra():
            config = compose(config_name="config", overrides=list(overrides))
            return [typed(config[name], f"{name}.") for name in names]
    except Exception as error:
        raise UserError(sentence(error)) from error


def compose_cells(arguments: Sequence[str], composer: Composer | None = None) -> list[Cell]:
    """Returns all cells that `arguments` name, without repetition; one `UserError` has the mistakes of all cells."""
    try:
        with initialized_hydra():
            return compose_jobs(expand(arguments), composer)
    except UserError:
        raise
    except Exception as error:
        raise UserError(sentence(error)) from error


def compose_jobs(jobs: Sequence[Sequence[str]], composer: Composer | None = None) -> list[Cell]:
    """Returns the cells of several lists of overrides, equal ones once; `composer` reuses what it composed before.

    Raises one `UserError` with the mistakes of all cells.
    """
    if len(jobs) == 1:
        return [compose_cell(jobs[0])]
    cells: dict[str, Cell] = {}
    mistakes: dict[str, str] = {}
    reported: set[str] = set()
    with initialized_hydra():
        composer = composer or Composer()
        for job in jobs:
            try:
                cell = composer.cell(job)
                check_start_keys(job, cell)
            except (UserError, HydraException, OmegaConfBaseException, NeedsHydra) as error:
                # Thousands of cells may have the same mistake; Hydra takes 0.2 s to word it.
                if (words := f"{type(error).__name__} {error}") in reported:
                    continue
                try:
                    cell = compose_cell(job)
                except UserError as mistake:
                    mistakes.setdefault(str(mistake), " ".join(job))
                    if not isinstance(error, NeedsHydra):
                        reported.add(words)
                    continue
            cells.setdefault(repr(cell), cell)
    if mistakes:
        raise UserError("\n".join(f"{message}   [cell: {job}]" for message, job in mistakes.items()))
    return list(cells.values())


def compose_launcher(overrides: Sequence[str]) -> LocalLauncherConfig | SlurmLauncherConfig:
    """Returns the launcher's options that `hydra/launcher=...` and `hydra.launcher.*` among `overrides` name."""
    try:
        parsed(overrides)
        with initialized_hydra():
            config = compose(config_name="config", overrides=list(overrides), return_hydra_config=True)
            launcher = OmegaConf.to_object(config.hydra.launcher)
    except Exception as error:
        raise UserError(sentence(error)) from error
    if not isinstance(launcher, LocalLauncherConfig | SlurmLauncherConfig):
        name = config.hydra.runtime.choices["hydra/launcher"]
        raise UserError(f"hydra/launcher={name}: it runs no graph of stage runs; start from local or slurm")
    return launcher
