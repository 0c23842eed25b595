"""The optimizer of all training stages, and the learning rates of the token stages."""

import math

import torch
from torch import nn

from pipelines.configuration.budgets import MidtrainConfig, PretrainConfig


def adamw(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on the scales of norms; frozen weights have no moments."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    scales = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True)


def learning_rate(budget: PretrainConfig | MidtrainConfig, step: int) -> float:
    """The rate of step 0, 1, ...: warm-up then constant, or the decay from the first to the final rate."""
    if isinstance(budget, PretrainConfig):
        return budget.learning_rate * min(1.0, (step + 1) / max(1, budget.warmup_steps))
    done = min(1.0, step / max(1, budget.steps - 1))
    remaining = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "1-sqrt": 1 - math.sqrt(done)}
    return budget.final_learning_rate + (budget.learning_rate - budget.final_learning_rate) * remaining[budget.decay]
