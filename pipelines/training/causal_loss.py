"""The training loss: a causal language model and its objective in one module."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines.rollouts import length_batches
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
        cuts = short_cuts(model)
        self._plain_logits, self._packed = cuts.plain_logits, cuts.packed
        self._top_k = top_k or objective.top_k
        # An objective that rewards head and tail alike can measure any head in its own pass.
        self.objective = objective if objective.uses_head else replace(objective, top_k=self._top_k)

    def forward(self, batch: Tensor, statistics: bool = False) -> tuple[Tensor, TokenStatistics | None]:
        """Loss and, if requested, statistics of a batch [B, length + 1]."""
        inputs, targets = batch[:, :-1], batch[:, 1:]
        model: Any = self.model
        # Small enough, or more than a product: logits [B, length, V] as a whole.
        if inputs.numel() * model.config.vocab_size * 4 <= CHUNK_BYTES or not self._plain_logits:
            # With a cache, which start checkpoints ask for, transformers would not look for packed documents.
            logits = self._run(lambda **given: model(**given, use_cache=False).logits, inputs)
            loss: Callable[..., Any] = partial(shaped_cross_entropy, logits, targets)
        # Otherwise hidden states [B, length, D] go through the output layer chunk by chunk.
        else:
            hidden = self._run(lambda **given: model.base_model(**given, use_cache=False).last_hidden_state, inputs)
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

    def _run(self, run: Callable[..., Tensor], inputs: Tensor) -> Tensor:
        """What `run` returns for tokens [B, length], each in its own document if so configured: [B, length, ...]."""
        if self._document_token is None:
            return run(input_ids=inputs)
        positions = positions_in_documents(inputs, self._document_token)
        if self._packed:
            # Position 0 marks the start of a packed document for every attention of transformers.
            return run(input_ids=inputs, position_ids=positions)
        return by_documents(run, inputs, positions)


def by_documents(run: Callable[..., Tensor], inputs: Tensor, positions: Tensor) -> Tensor:
    """What `run` returns for tokens [B, T], with each document in a row of its own; `positions` are those in documents.

    For models whose layers carry a state from one document to the next. Rows are padded on the right, and documents of
    similar length run together.
    """
    tokens, positions = inputs.flatten(), positions.flatten()
    document = (positions == 0).cumsum(0) - 1
    lengths: list[int] = document.bincount().tolist()
    row = torch.empty(len(lengths), dtype=torch.int64, device=tokens.device)
    indices, results = [], []
    for batch in length_batches(lengths, inputs.numel()):
        chosen = torch.tensor(batch, device=tokens.device)
        row[chosen] = torch.arange(len(batch), device=tokens.device)
        where = torch.isin(document, chosen).nonzero()[:, 0]
        cell = row[document[where]], positions[where]
        ids = tokens.new_zeros(len(batch), max(lengths[i] for i in batch))
        ids[cell] = tokens[where]
        indices.append(where)
        results.append(run(input_ids=ids)[cell])
    whole = torch.cat(results)[torch.cat(indices).argsort()]
    return whole.unflatten(0, inputs.shape)


def positions_in_documents(tokens: Tensor, document_token: int) -> Tensor:
    """Each token's position in its document, [B, T]. `document_token` starts a document; a row may start inside one."""
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    # cummax turns the index of each start into the index of the latest start.
    start = torch.where(tokens == document_token, index, 0).cummax(1).values
    return index - start
