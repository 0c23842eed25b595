"""The policy as the module that is trained: its forward pass scores responses, on the strategies of pre-training."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from pipelines.rollouts import Scores, score
from pipelines.rollouts.architectures import short_cuts
from pipelines.training import parallel


class Policy(nn.Module):
    """A causal language model whose `forward` returns scores, so that FSDP gathers the output layer inside it."""

    def __init__(self, model: PreTrainedModel, precision: str = "float32") -> None:
        super().__init__()
        self.model, self.precision = model, precision
        short_cuts(model)  # probed before the model is copied or sharded
        self.is_sharded = False

    def forward(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        temperature: float,
        *,
        experts: Sequence[Tensor] | None = None,
    ) -> Scores:
        """See `score`. Without a response it scores a single token, whose gradient nobody uses.

        A rank that has run out of rows so takes part in the passes of the others.
        """
        if not responses:
            prompts, responses, experts = [[0]], [[0]], None
        # A sharded model is cast by FSDP.
        mixed = self.precision == "bfloat16-mixed" and not self.is_sharded
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=mixed):
            return score(self.model, prompts, responses, temperature=temperature, experts=experts)

    @torch.no_grad()
    def measured(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        temperature: float,
        *,
        experts: Sequence[Tensor] | None = None,
    ) -> Scores:
        """The scores without gradient."""
        scores: Scores = self(prompts, responses, temperature, experts=experts)
        if self.is_sharded:
            # Only a backward pass would make FSDP forget the gathered output layer, which the optimizer changes.
            module: Any = self
            module.reshard()
        return scores

    def shard(self, mesh: DeviceMesh, *, in_main_memory: bool = False) -> None:
        """Shard the model over the mesh; with `in_main_memory` each part waits there until it is needed."""
        parallel.shard(self, self.model, mesh=mesh, precision=self.precision, in_main_memory=in_main_memory)
        self.is_sharded = True


class Reference:
    """A frozen copy of the start model: on the device where a KL term needs it in every pass, else in main memory."""

    def __init__(self, policy: Policy, *, resident: bool) -> None:
        """To be made before `policy` is sharded; `resident` keeps the copy on the device."""
        model = copy.deepcopy(policy.model).eval().requires_grad_(False)
        self.policy = Policy(model, policy.precision)
        self._resident = resident

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the copy like the policy."""
        self.policy.shard(mesh, in_main_memory=not self._resident)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Policy]:
        """The copy, ready to score on the device; a sharded one moves by itself."""
        if not self.policy.is_sharded:
            self.policy.to(device)
        yield self.policy
        if not self.policy.is_sharded and not self._resident:
            self.policy.to("cpu")
