"""Lightning: the mixin computes the loss and logs it with what the objective changes, entropy and head mass.

python examples/lightning_module.py
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shaping import Objective
from shaping.adapters import ShapedLossMixin


class ByteModel(ShapedLossMixin, L.LightningModule):
    """A recurrent model of bytes."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.embedding, self.layer = nn.Embedding(256, 64), nn.GRU(64, 64, batch_first=True)
        self.head = nn.Linear(64, 256)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The loss of rows [B, T] of bytes."""
        hidden_states, _ = self.layer(self.embedding(batch[:, :-1]))
        return self.shaped_loss(self.head(hidden_states), batch[:, 1:], self.objective)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


L.seed_everything(0)
text = torch.tensor(list(Path(argparse.__file__).read_bytes()[: 64 * 512])).reshape(-1, 64)  # the tokens are bytes
trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(ByteModel(Objective.named("diversity")), DataLoader(text, batch_size=16, shuffle=True))
for name, value in trainer.callback_metrics.items():
    print(f"{name} {value:.3f}")
