"""Lightning's trainer as every stage that trains uses it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

from pipelines.stage_context import StageContext
from pipelines.training import parallel


def trainer(context: StageContext, **options: Any) -> L.Trainer:
    """A trainer on the context's ranks and strategy that keeps no files of its own; `options` are Lightning's."""
    ranks = context.ranks
    built = L.Trainer(
        accelerator="auto",
        devices=ranks.tasks // ranks.nodes,
        num_nodes=ranks.nodes,
        strategy=parallel.strategy(context.compute, ranks.tasks, ranks.nodes),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    # At SIGTERM Lightning would end training after the micro-batch, before a state is saved, and its handler would wait
    # for the other ranks. A stage asks `context.interrupted` instead.
    built._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return built


@contextmanager
def without_noise() -> Iterator[None]:
    """Silence Lightning's hints, which do not apply to training that this package starts."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
        yield
