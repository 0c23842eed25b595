"""Balance of a mixture of experts without an auxiliary loss.

Each router adds a bias to its scores when it chooses experts, and to nothing else, so the bias carries no gradient.
After every optimizer step it moves by a fixed rate, down for an expert that was sent more than its share of the tokens
and up for one that was sent fewer (Wang et al., arXiv 2408.15664; DeepSeek-V3). The paper names the method; the rate,
1e-3, is ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce
from transformers import PreTrainedModel

BIAS = "e_score_correction_bias"


class ExpertBalance:
    """Counts where the routers of a model send tokens, and moves their biases.

    Counting is on within `counting()` alone, so that a backward pass that computes layers again counts nothing twice.
    """

    def __init__(self, model: PreTrainedModel, rate: float) -> None:
        self._blocks = [module for module in model.modules() if hasattr(module, BIAS)]
        self._rate = rate
        self._counts: list[Tensor | None] = [None] * len(self._blocks)
        self._counts_now = False
        for index, block in enumerate(self._blocks):
            gate = block.gate
            assert isinstance(gate, torch.nn.Module)
            gate.register_forward_hook(self._counter(index))

    def __bool__(self) -> bool:
        """Whether the model has experts at all."""
        return bool(self._blocks)

    def _counter(self, index: int):  # type: ignore[no-untyped-def]
        experts = len(getattr(self._blocks[index], BIAS))

        @torch.compiler.disable
        def count(module: object, inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
            if not self._counts_now:
                return
            counts = torch.bincount(output[2].flatten(), minlength=experts)
            before = self._counts[index]
            self._counts[index] = counts if before is None else before + counts

        return count

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what the routers choose in here."""
        self._counts_now = True
        try:
            yield
        finally:
            self._counts_now = False

    @torch.no_grad()
    def move(self, everywhere: bool = False, keep: bool = False) -> Tensor | None:
        """Move the biases by what was counted since the last call; returns loads [layers, experts], or None.

        A load is the number of tokens that an expert was sent, over an equal share; 1 is balance. With `everywhere`
        counts are summed over all ranks first. With `keep` the biases stay (a step that was skipped).
        """
        if any(count is None for count in self._counts) or not self._counts:
            return None
        counts = torch.stack([count for count in self._counts if count is not None])
        self._counts = [None] * len(self._blocks)
        if everywhere:
            all_reduce(counts, ReduceOp.SUM)
        loads = counts / counts.sum(-1, keepdim=True) * counts.shape[-1]
        if not keep:
            for block, load in zip(self._blocks, loads, strict=True):
                getattr(block, BIAS).add_(torch.sign(1.0 - load), alpha=self._rate)
        return loads

    def row(self, loads: Tensor) -> dict[str, float]:
        """Columns of the ledger: the largest load of any layer, experts sent nothing, and the span of the biases."""
        biases = torch.stack([getattr(block, BIAS) for block in self._blocks])
        return {
            "expert_load_max": loads.max().item(),
            "experts_dead": float((loads == 0).sum().item()),
            "router_bias_span": (biases.amax(-1) - biases.amin(-1)).max().item(),
        }
