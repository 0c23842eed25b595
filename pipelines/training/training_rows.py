"""The rows that a token stage trains on, in their final order, and the part of each batch that one rank reads."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipelines.configuration.budgets import TrainConfig
from pipelines.data.corpus import Corpus
from pipelines.data.training_order import training_order
from pipelines.errors import StageFailure
from pipelines.random_streams import Stream, stream_seed

STREAMS = {"pretrain": Stream.PRETRAIN_ROWS, "midtrain": Stream.MIDTRAIN_ROWS}
"""Stage -> the stream that orders its rows."""


class TrainingRows(Dataset[Tensor]):
    """Rows [length + 1] int64 in their final order, which depends on stage and seed only: the loader must not shuffle.

    So two objectives with the same seed see the same tokens in the same order, whatever the number of ranks.
    """

    def __init__(self, corpus: Corpus, budget: TrainConfig, seed: int) -> None:
        sources = [name for name, weight in budget.mixture.items() if weight > 0]
        self._rows = {name: corpus.rows(name, "train", budget.sequence_length) for name in sources}
        sizes = {name: len(rows) for name, rows in self._rows.items()}
        if empty := [name for name, size in sizes.items() if not size]:
            raise StageFailure(
                f"{budget.key}.sequence_length={budget.sequence_length}: {empty[0]} has no row that long; shorten the "
                "rows or take more data"
            )
        # The order is computed for the whole budget, so that a resumed run only skips rows.
        count = budget.steps * (budget.batch_tokens // budget.sequence_length)
        self._order = training_order(
            stream_seed(STREAMS[budget.key], seed),
            count,
            mixture=budget.mixture,
            sizes=sizes,
            sharded=corpus.sharded,
        )

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Tensor:
        source, row = self._order[index]
        return torch.from_numpy(self._rows[source][row].astype(np.int64))


class RankRows(Dataset[Tensor]):
    """The rows of one rank from a step on: an equal, consecutive part of every batch."""

    def __init__(self, rows: TrainingRows, *, first_step: int, batch: int, rank: int, ranks: int) -> None:
        """`batch` is the number of rows of one step on all ranks."""
        self._rows, self._batch = rows, batch
        self._first_row = first_step * batch
        self._rows_per_step = batch // ranks
        self._offset = rank * self._rows_per_step

    def __len__(self) -> int:
        return (len(self._rows) - self._first_row) // self._batch * self._rows_per_step

    def __getitem__(self, index: int) -> Tensor:
        # Consecutive indices run through this rank's part of a step, then jump to its part of the next step.
        step, row = divmod(index, self._rows_per_step)
        return self._rows[self._first_row + step * self._batch + self._offset + row]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A micro-batch [rows, length + 1]; torch's loader calls this instead of `__getitem__`."""
        return torch.stack([self[index] for index in indices])
