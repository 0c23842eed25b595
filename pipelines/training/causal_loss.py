"""The training loss: a causal language model and its objective in one module."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines.rollouts.architectures import short_cuts
from shaping.loss import CHUNK_BYTES, linear_shaped_cross_entropy, shaped_cross_entropy
from shaping.objective import Objective
from shaping.statistics import TokenStatistics


class CausalLoss(nn.Module):
    """A causal language model with its objective.

    `forward` returns the loss rather than logits, so that FSDP gathers the output layer inside it. Logits that take
    more memory than a chunk of the fused loss are never held as a whole.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        document_token: int | None = None,
        *,
        top_k: int | None = None,
    ) -> None:
        """With `document_token`, which starts every document, tokens attend to their own document only.

        `top_k` is the size of the head in the statistics, by default the objective's.
        """
        super().__init__()
        self.model, self._document_token = model, document_token
        self._plain_logits = short_cuts(model).plain_logits
        self._top_k = top_k or objective.top_k
        # An objective that rewards head and tail alike can measure any head in its own pass.
        self.objective = objective if objective.uses_head else replace(objective, top_k=self._top_k)

    def forward(self, batch: Tensor, statistics: bool = False) -> tuple[Tensor, TokenStatistics | None]:
        """Loss and, if requested, statistics of a batch [B, length + 1]."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        positions = {}
        if self._document_token is not None:
            # Position 0 marks the start of a packed document for every attention of transformers.
            positions["position_ids"] = positions_in_documents(inputs, self._document_token)
        model: Any = self.model
        # Small enough, or more than a product: logits [B, length, V] as a whole.
        if inputs.numel() * model.config.vocab_size * 4 <= CHUNK_BYTES or not self._plain_logits:
            logits = model(input_ids=inputs, **positions).logits
            loss: Callable[..., Any] = partial(shaped_cross_entropy, logits, targets)
        # Otherwise hidden states [B, length, D] go through the output layer chunk by chunk.
        else:
            hidden = model.base_model(input_ids=inputs, **positions).last_hidden_state
            weight = model.get_output_embeddings().weight
            loss = partial(linear_shaped_cross_entropy, hidden, weight, targets)
        if not statistics:
            return loss(self.objective), None
        if self.objective.top_k == self._top_k:
            return loss(self.objective, return_stats=True)
        # The statistics' head is not the objective's: another pass measures it.
        with torch.no_grad():
            _, measured = loss(Objective(top_k=self._top_k), return_stats=True)
        return loss(self.objective), measured


def positions_in_documents(tokens: Tensor, document_token: int) -> Tensor:
    """Each token's position in its document, [B, T]. `document_token` starts a document; a row may start inside one."""
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    # cummax turns the index of each start into the index of the latest start.
    start = torch.where(tokens == document_token, index, 0).cummax(1).values
    return index - start
