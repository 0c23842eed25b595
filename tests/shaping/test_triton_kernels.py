"""The Triton backend against the PyTorch backend, in Triton's interpreter on the CPU; and compiled for a GPU.

Tolerances: float32 2e-5 relative and 1e-6 absolute; bfloat16 and float16, whose gradients are rounded, one unit in the
last place.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

from shaping import NAMED, Objective, linear_shaped_cross_entropy, shaped_cross_entropy

pytest.importorskip("triton", reason="Triton is available only on Linux")
from shaping import triton_kernels

SETTINGS = [
    *NAMED.values(),
    Objective(-0.5, 0.2, -0.3, 7),
    Objective(1.5, -0.2, 0.3, 1),
    Objective(0.0, 0.3, 0.3, 7),
]


def logits(dtype: torch.dtype, vocabulary: int) -> torch.Tensor:
    """Five rows: with ties at the k-th place, with logits of -inf, with a certain prediction, and two plain ones."""
    generator = torch.Generator().manual_seed(vocabulary)
    rows = 2 * torch.randn(5, vocabulary, generator=generator)
    rows[0] = rows[0].round() * torch.where(torch.arange(vocabulary) % 2 == 0, 1.0, -0.0)
    rows[1, 1 : vocabulary // 2] = -torch.inf
    rows[2, 0] = 60.0
    return rows.to(dtype).requires_grad_()


# Of two logits that differ in the last bit the larger one is in the head, whatever their ids.
@pytest.mark.parametrize("top_k", [2, 3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_difference_in_the_last_bit_decides_who_is_in_the_head(sign: float, top_k: int) -> None:
    z = torch.full((2, 130), -3.0)
    close = torch.tensor(1.5 * sign)
    larger = torch.nextafter(close, torch.tensor(9.0))
    z[:, 5], z[:, 9] = close, larger  # the larger one has the larger id, which a tie would leave out
    z[:, 20] = 4.0
    z.requires_grad_()
    targets, objective = torch.tensor([5, 9]), Objective(0.0, 0.3, -0.2, top_k)
    gradients = []
    for backend in ("torch", "triton"):
        loss = shaped_cross_entropy(z, targets, objective, reduction="none", backend=backend)  # type: ignore[call-overload]
        gradients.append(torch.autograd.grad(loss.sum(), z)[0])
    torch.testing.assert_close(*gradients, rtol=2e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    ("objective", "vocabulary", "dtype"),
    [
        *((objective, vocabulary, torch.float32) for objective in SETTINGS for vocabulary in (2, 130)),
        *((objective, 130, dtype) for objective in SETTINGS[4:6] for dtype in (torch.bfloat16, torch.float16)),
        *((SETTINGS[4], 4500, dtype) for dtype in (torch.float32, torch.bfloat16)),  # more than one block
    ],
    ids=str,
)
def test_both_backends_agree(objective: Objective, vocabulary: int, dtype: torch.dtype) -> None:
    if objective.is_cross_entropy:
        objective = Objective(1e-30)  # at 0 both backends would call F.cross_entropy
    objective = Objective(objective.beta, objective.lam_head, objective.lam_tail, min(objective.top_k, vocabulary))
    z = logits(dtype, vocabulary)
    targets = torch.tensor([vocabulary // 3, vocabulary - 1, 0, 1, -100])
    results = []
    for backend in ("torch", "triton"):
        loss, statistics = shaped_cross_entropy(
            z,
            targets,
            objective,
            reduction="none",
            return_stats=True,
            backend=backend,  # type: ignore[call-overload]
        )
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        results.append((loss, gradient, *statistics))
    tolerance = {torch.float32: (2e-5, 1e-6), torch.bfloat16: (8e-3, 1e-6), torch.float16: (1e-3, 1e-6)}[dtype]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance[0], atol=tolerance[1], equal_nan=True)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_fused_form() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    targets = torch.randint(0, 40, (9,))
    results = []
    for backend in ("torch", "triton"):
        loss = linear_shaped_cross_entropy(hidden, weight, targets, SETTINGS[5], chunk_size=4, backend=backend)  # type: ignore[call-overload]
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    torch.testing.assert_close(*results, rtol=2e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_transposed_logits() -> None:
    z, targets = torch.randn(40, 6).t().requires_grad_(), torch.arange(6)
    gradients = [
        torch.autograd.grad(shaped_cross_entropy(z, targets, SETTINGS[5], backend=backend), z)[0]  # type: ignore[call-overload]
        for backend in ("torch", "triton")
    ]
    torch.testing.assert_close(*gradients, rtol=2e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.ci_only)])
@pytest.mark.parametrize("target", [-101, -1, 40, 41, 4000, 2**40, -(2**40)])
@pytest.mark.parametrize("objective", [Objective(0.5), SETTINGS[5]], ids=str)
def test_a_target_outside_the_vocabulary_reads_no_foreign_memory(
    objective: Objective, target: int, dtype: torch.dtype
) -> None:
    """Its loss and gradient are NaN, also where the next row's memory holds a plausible logit; others are as before."""
    rows = torch.zeros(3, 40, dtype=dtype)
    results = []
    for middle in (target, 5):
        targets = torch.tensor([1, middle, 2])
        state, head = triton_kernels.state(rows, objective)
        losses, statistics, gradient = torch.zeros(3), torch.zeros(3, 5), torch.zeros_like(rows)
        options = {"state": state, "head": head}
        triton_kernels.forward(rows, targets, objective, floor=1e-6, losses=losses, statistics=statistics, **options)
        triton_kernels.backward(rows, targets, objective, scale=torch.ones(3), out=gradient, **options)
        results.append((losses, gradient, statistics))
    (losses, gradient, statistics), valid = results
    assert losses[1].isnan()
    assert gradient[1].isnan().all()
    assert statistics[1, 3].isnan()
    for ours, theirs in zip(results[0], valid, strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])


def test_it_raises_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    z, targets = torch.zeros(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="use backend='torch'"):
        shaped_cross_entropy(z.double(), targets, Objective(0.5), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="needs a GPU"):
        shaped_cross_entropy(z, targets, Objective(0.5), backend="triton")


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from shaping import triton_kernels as kernels

types = {"targets": "*i64", "vocabulary": "i32", "top_k": "i32"}
types |= dict.fromkeys(["losses", "state", "head", "statistics", "scale"], "*fp32")
types |= dict.fromkeys(["beta", "lam_head", "lam_tail", "floor"], "fp32")
constants = {"HEAD": True, "STATISTICS": True, "DIGIT": kernels.DIGIT, "BLOCK": kernels.BLOCK, "COUNTED": 1024}
for element, significant in (("*bf16", 16), ("*fp32", 32)):
    for kernel in (kernels._forward, kernels._backward):
        signature = types | {"logits": element, "out": element}
        values = constants | {"SIGNIFICANT": significant}
        source = ASTSource(
            kernel,
            {name: signature.get(name, "constexpr") for name in kernel.arg_names},
            {(index,): values[name] for index, name in enumerate(kernel.arg_names) if name in values},
        )
        built = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": kernels.WARPS})
        assert "ptx" in built.asm
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu() -> None:
    """For compute capability 9.0, bfloat16 and float32. The interpreter accepts code that the compiler rejects."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("wrong", "least"), [(0.01, 0.1), (0.2, 0.2)])
def test_a_nearly_certain_token_weighs_as_at_the_floor(wrong: float, least: float) -> None:
    """Of two tokens the true one has p = 1 - wrong, and the least 1 - p is 0.1."""
    z = torch.tensor([[math.log((1 - wrong) / wrong), 0.0]], requires_grad=True)
    loss = shaped_cross_entropy(z, torch.tensor([0]), Objective(-0.25), floor=0.1, backend="triton")
    loss.backward()
    assert loss.item() == pytest.approx(-(least**-0.25) * math.log1p(-wrong), rel=1e-4)
    assert z.grad[0, 1].item() == pytest.approx(least**-0.25 * wrong, rel=1e-4)  # type: ignore[index]
