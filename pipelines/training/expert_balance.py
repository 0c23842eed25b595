"""Balance of a mixture of experts without an auxiliary loss.

Each router adds a bias to its scores when it chooses experts, and to nothing else, so the bias carries no gradient.
After every optimizer step the bias moves by a fixed rate: down for an expert that received more than its share of the
tokens and up for one that received fewer (Wang et al., arXiv 2408.15664; DeepSeek-V3). The method is the paper's; the
rate, 1e-3, is ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed import ReduceOp, all_reduce
from transformers import MiniMaxM2ForCausalLM, PreTrainedModel

BIAS = "e_score_correction_bias"


class ExpertBalance:
    """Counts the tokens that a model's routers send to each expert, and moves the routers' biases.

    Tokens are counted only inside `counting()`, so that layers that the backward pass computes again are counted once.
    """

    def __init__(self, model: PreTrainedModel, rate: float) -> None:
        # Those of our MiniMax-M2; other architectures keep their own way to balance, if they have one.
        blocks = model.modules() if isinstance(model, MiniMaxM2ForCausalLM) else ()
        self._blocks = [module for module in blocks if hasattr(module, BIAS)]
        self._rate = rate
        self._counts: list[Tensor | None] = [None] * len(self._blocks)
        """Tokens sent to each expert [experts] since the last call of `move`, for each layer with experts."""
        self._is_counting = False
        # A hook on each router sees its choices without a change to the model's code.
        for index, block in enumerate(self._blocks):
            gate = block.gate
            assert isinstance(gate, torch.nn.Module)
            gate.register_forward_hook(self._counter(index))

    def __bool__(self) -> bool:
        """Whether the model has experts."""
        return bool(self._blocks)

    def _counter(self, index: int):  # type: ignore[no-untyped-def]
        experts = len(getattr(self._blocks[index], BIAS))

        @torch.compiler.disable
        def count(module: object, inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
            if not self._is_counting:
                return
            # output[2]: the chosen experts of each token [tokens, active experts]
            counts = torch.bincount(output[2].flatten(), minlength=experts)
            earlier = self._counts[index]
            self._counts[index] = counts if earlier is None else earlier + counts

        return count

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the routers' choices inside this context."""
        self._is_counting = True
        try:
            yield
        finally:
            self._is_counting = False

    @torch.no_grad()
    def move(self, everywhere: bool = False, keep: bool = False) -> Tensor | None:
        """Move the biases by the counts since the last call; returns loads [layers, experts], None if nothing counted.

        A load is an expert's number of tokens divided by an equal share, so 1 is balance. With `everywhere` counts are
        summed over all ranks first. With `keep` the biases stay (after a skipped step).
        """
        if any(count is None for count in self._counts) or not self._counts:
            return None
        # [layers, experts]
        counts = torch.stack([count for count in self._counts if count is not None])
        self._counts = [None] * len(self._blocks)
        if everywhere:
            all_reduce(counts, ReduceOp.SUM)
        # A load of 1 is an equal share: counts * experts / tokens sent.
        loads = counts / counts.sum(-1, keepdim=True) * counts.shape[-1]
        if not keep:
            for block, load in zip(self._blocks, loads, strict=True):
                getattr(block, BIAS).add_(torch.sign(1.0 - load), alpha=self._rate)
        return loads

    def row(self, loads: Tensor) -> dict[str, float]:
        """Ledger columns: the largest load of any layer, experts without tokens, and the span of the biases."""
        # [layers, experts]
        biases = torch.stack([getattr(block, BIAS) for block in self._blocks])
        return {
            "expert_load_max": loads.max().item(),
            "experts_dead": float((loads == 0).sum().item()),
            "router_bias_span": (biases.amax(-1) - biases.amin(-1)).max().item(),
        }
