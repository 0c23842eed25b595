"""Experts that a sampler has chosen, recorded and used again where its responses are scored (routing replay).

The router of a mixture sends each token to the experts with the largest scores. Where two scores nearly tie, the
rounding of two programs decides differently, and the learner's probability of a token is that of another network than
the sampler's. With replay the learner takes the recorded experts and weights them by its own scores, through which the
gradient passes (Rollout Routing Replay, arXiv 2510.11370). It covers the study's mixtures, MiniMax-M2.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter

from pipelines.errors import UserError

NOT_RECORDED = -1
"""In place of an expert where the sampler recorded none: there the model chooses for itself."""


class Routing:
    """Hooks on a model's routers, which record their choices or replace them; without either they change nothing."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `UserError` for a model without routers that can be replayed."""
        routers = [module for module in model.modules() if isinstance(module, MiniMaxM2TopKRouter)]
        check_routers(len(routers))
        self.layers, self.active = len(routers), routers[0].top_k
        self._recorded: list[list[Tensor]] | None = None
        self._replayed: Tensor | None = None
        self._differing: list[Tensor] = []
        # A hook sees and changes what a router returns without a change to the model's code.
        for layer, router in enumerate(routers):
            router.register_forward_hook(partial(self._hook, layer))

    def record(self) -> None:
        """Record the choices of the passes from now on."""
        self._recorded = [[] for _ in range(self.layers)]

    def recorded(self, rows: int) -> Tensor:
        """The choices since the last call of this or `record`, [rows, columns, layers, active] int16 in main memory.

        They are of passes over `rows` rows each, whose columns are put one after another.
        """
        assert self._recorded is not None
        by_layer = [torch.cat([part.view(rows, -1, self.active) for part in parts], 1) for parts in self._recorded]
        self.record()
        return torch.stack(by_layer, 2).to("cpu", torch.int16)

    def stop_recording(self) -> None:
        """Forget what was recorded, and record nothing more."""
        self._recorded = None

    def replay(self, experts: Tensor | None) -> None:
        """Use `experts` [tokens, layers, active] instead of the model's choices from now on; None: its own.

        They stay until the next call, since a backward pass may compute layers again.
        """
        self._replayed, self._differing = experts, []

    def differing(self) -> tuple[float, int]:
        """Since the last `replay`: of how many tokens x layers the model chose otherwise, and of how many."""
        if not self._differing:
            return 0.0, 0
        flags = torch.cat(self._differing)
        return float(flags.sum().item()), len(flags)

    @torch.compiler.disable
    def _hook(
        self, layer: int, module: nn.Module, inputs: object, output: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Output of a router: logits [tokens, experts], weights [tokens, active] and choices [tokens, active]."""
        logits, _weights, own = output
        if self._recorded is not None:
            self._recorded[layer].append(own)
        if self._replayed is None:
            return None
        wanted = self._replayed[:, layer]
        known = wanted != NOT_RECORDED
        chosen = wanted.where(known, own)
        if len(self._differing) < self.layers:  # a backward pass that computes the layers again is not counted
            differs = (chosen.sort(-1).values != own.sort(-1).values).any(-1)
            self._differing.append(differs[known.all(-1)])
        # As the router weights its own choice.
        weights = logits.float().sigmoid().gather(1, chosen)
        return logits, weights / weights.sum(-1, keepdim=True), chosen


def check_routers(count: int) -> None:
    """Raise `UserError` for a model without routers."""
    if not count:
        raise UserError(
            "grpo.routing_replay=True: the model has no routers that can be replayed, as mixtures of this project "
            "have; set it to false"
        )


def routing_of(model: PreTrainedModel) -> Routing:
    """The model's hooks, made when they are first asked for. Raises `UserError` for a model without routers."""
    routing: Routing | None = getattr(model, "expert_routing", None)
    if routing is None:
        routing = Routing(model)
        model.expert_routing = routing  # type: ignore[assignment]
    return routing


def flat_experts(prompts: Sequence[Sequence[int]], experts: Sequence[Tensor]) -> Tensor:
    """Recorded experts as `flat_tokens.layout` orders tokens: [N, layers, active] int64.

    `experts` are those of each prompt with its response, without the last token: [P + L - 1, layers, active]. Of a
    prompt that several responses share, those that were recorded with the first one are used.
    """
    stored: set[tuple[int, ...]] = set()
    parts = []
    for prompt, recorded in zip(prompts, experts, strict=True):
        if tuple(prompt) not in stored:
            stored.add(tuple(prompt))
            parts.append(recorded[: len(prompt)])
        parts.append(recorded[len(prompt) :])
    return torch.cat(parts).long()
