"""The training objective of the study, for any trainer: replace `F.cross_entropy` by `shaped_cross_entropy`.

`objective` (the knobs and the five named settings; no torch), `loss` (the two functions to train with),
`loss_operators` (their passes and gradients as operators of PyTorch), `closed_form` and `triton_kernels` (the formulas
for rows of logits, in PyTorch and for a GPU), `statistics` (entropy, head and tail mass, rank), `estimators` (rewards
and the policy gradient by sampling), `theory` (what training converges to), `adapters` (for other trainers) and
`shaped_model` (the models that they change). The package imports torch and no other package of this project. torch is
loaded on first access to a function that needs it, so that `Objective` is cheap to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shaping.objective import NAMED, Objective

if TYPE_CHECKING:
    from shaping.estimators import policy_gradient_variance, sampled_policy_gradient_loss, token_rewards
    from shaping.loss import linear_shaped_cross_entropy, shaped_cross_entropy
    from shaping.statistics import TokenStatistics, entropy, head_tail_mass, target_rank
    from shaping.theory import effective_temperature, stationary_distribution

__version__ = "0.1.0"

_MODULES = {
    "linear_shaped_cross_entropy": "loss",
    "shaped_cross_entropy": "loss",
    "token_rewards": "estimators",
    "sampled_policy_gradient_loss": "estimators",
    "policy_gradient_variance": "estimators",
    "stationary_distribution": "theory",
    "effective_temperature": "theory",
    "TokenStatistics": "statistics",
    "entropy": "statistics",
    "head_tail_mass": "statistics",
    "target_rank": "statistics",
}

__all__ = [
    "NAMED",
    "Objective",
    "TokenStatistics",
    "__version__",
    "effective_temperature",
    "entropy",
    "head_tail_mass",
    "linear_shaped_cross_entropy",
    "policy_gradient_variance",
    "sampled_policy_gradient_loss",
    "shaped_cross_entropy",
    "stationary_distribution",
    "target_rank",
    "token_rewards",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'shaping' has no attribute {name!r}")
    return getattr(import_module(f"shaping.{_MODULES[name]}"), name)
