"""What every stage function receives: the stage run it works on, its data, its ledger and its share of the ranks."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.lora import LoRAConfig
from pipelines.cores import share_of_cores
from pipelines.data.corpus import Corpus
from pipelines.files import sha256, write_sealed
from pipelines.ledger import Ledger
from pipelines.models.adapters import has_adapters, save_adapters
from pipelines.models.causal_lm import parameter_count, save_checkpoint
from pipelines.models.model_card import model_card
from pipelines.published import SAVED, saved_hashes

logger = logging.getLogger("pipelines")


@dataclass(frozen=True)
class Ranks:
    """Which of several processes that share a stage run this one is. Only rank 0 writes results that are kept."""

    rank: int = 0
    tasks: int = 1
    """Processes in total, started by Slurm or torchrun."""
    nodes: int = 1


def never_interrupted() -> bool:
    """The default of `StageContext.interrupted`."""
    return False


@dataclass(frozen=True)
class StageContext:
    """One stage run in progress. The defaults are those of a single process that is never interrupted."""

    folder: Path
    """Where the stage run's results are written; shared by all ranks."""
    corpus: Corpus
    ledger: Ledger
    seed: int = 0
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    ranks: Ranks = Ranks()
    interrupted: Callable[[], bool] = never_interrupted
    """Whether the stage was asked to stop (SIGUSR2, SIGTERM, SIGINT). A stage checks it between steps; when it is true,
    the stage saves its trainer state (`pipelines.training.trainer_state`) in `resume` and raises
    `pipelines.errors.Interrupted`."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """The plan of the stage run: `stage`, `signature`, `version`, `labels`, `config`, `compute`, `parent`,
    `checkpoint`."""
    parent: Path | None = None
    """Folder of the stage run that this one continues or measures."""
    reference: Path | None = None
    """Folder of the stage run whose entropy a control matches."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The models that are loaded -> the hash of their files, which an evaluation's cached rows depend on."""
    root: Path | None = None
    """The store; by default `folder`."""
    scratch: Path | None = None
    """Where a rank above 0 writes files that are discarded."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the stage run, as in its signature."""
        return self.spec["config"]

    @property
    def output(self) -> Path:
        """The folder that this rank writes to: `folder` for the first, a temporary one for the others."""
        return self.scratch or self.folder

    @property
    def resume(self) -> Path:
        """Folder of the trainer state; it is deleted when the stage run is finished.

        A stage that finds a state here resumes from it. The ledger replaces the rows of steps that are run again.
        """
        return self.folder / "resume"

    @property
    def cache(self) -> Path:
        """The store's cache, shared by all stage runs."""
        return (self.root or self.folder) / "cache"

    @property
    def verifier_workers(self) -> int:
        """Answers that this rank verifies at a time."""
        return self.compute.verifier_workers or share_of_cores(-(-self.ranks.tasks // self.ranks.nodes))

    @property
    def source(self) -> Path:
        """The parent's checkpoint that this stage run starts from or measures."""
        assert self.parent is not None
        return self.parent / "checkpoints" / self.spec["checkpoint"]

    def save_milestone(
        self, model: PreTrainedModel, step: int, weights: Iterable[tuple[str, Tensor]] | None = None
    ) -> None:
        """Save a milestone checkpoint with its model card; `weights`, if given, are saved in place of the model's."""
        path = self.folder / "checkpoints" / f"step-{step:06d}"
        path.parent.mkdir(exist_ok=True)
        card = model_card(self.spec, step=step, parameters=parameter_count(model), row=self.ledger.newest)
        more = None
        if has_adapters(model):
            # The weights are those of the merged model; the adapters by themselves are in a folder inside.
            more = partial(save_adapters, model, LoRAConfig(**self.config[self.spec["stage"]]["lora"]))
        save_checkpoint(model, self.corpus.saved_tokenizer, path, card=card, weights=weights, more=more)
        # An attempt that resumes publishes it, and by then it must still be what was saved.
        hashes = {str(file.relative_to(self.folder)): sha256(file) for file in path.rglob("*") if file.is_file()}
        write_sealed(self.folder / SAVED, saved_hashes(self.folder) | hashes)
        self.log("milestone saved: %s", path)

    def log(self, message: str, *values: object) -> None:
        """Log a line about this stage run, at level INFO."""
        logger.info(message, *values)
