"""The operations of the fast Qwen3 forward pass, with their gradients, against formulas and autograd in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipelines.rollouts.qwen3 import _Norm, _Rotary, _SwiGLU

EPS = 1e-6


def norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale


def rotary(x: Tensor, angle: Tensor) -> Tensor:
    """Each pair (first half, second half) as a complex number, turned by the angle."""
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + (-gate).exp()) * up


def rotary_as_run(x: Tensor, angle: Tensor) -> Tensor:
    return _Rotary.apply(x, angle.detach().cos(), angle.detach().sin())


@pytest.mark.parametrize(
    ("ours", "formula", "shapes"),
    [
        (lambda x, scale: _Norm.apply(x, scale, EPS), norm, [(5, 6), (6,)]),
        (lambda x, scale: _Norm.apply(x, scale, EPS), norm, [(5, 3, 4), (3, 4)]),
        (_SwiGLU.apply, swiglu, [(5, 6), (5, 6)]),
        (rotary_as_run, rotary, [(5, 3, 8), (5, 1, 4)]),
    ],
    ids=["norm", "norm of heads", "swiglu", "rotary"],
)
def test_values_and_gradients_are_those_of_the_formula(
    ours: Callable[..., Tensor], formula: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    if formula is rotary:
        inputs[1].requires_grad_(False)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    upstream = torch.randn_like(ours(*inputs))
    torch.testing.assert_close(ours(*inputs), formula(*inputs))
    found, expected = (torch.autograd.grad(run(*inputs), wanted, upstream) for run in (ours, formula))
    torch.testing.assert_close(found, expected)
