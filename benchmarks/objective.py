"""The objective against plain cross-entropy in time and memory; on a GPU also against Liger-Kernel's fused form.

On a CPU: the fused form at N 4,096, D 512, V 32,768 for the five settings and one with both lambdas; a vocabulary of
151,936, where the plain form would hold three tensors of 5 GB; the form on logits; and the cost of statistics.
"""

import gc
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison import Row, peak_memory, report, timed
from shaping import NAMED, Objective, linear_shaped_cross_entropy, shaped_cross_entropy

BOTH = Objective(lam_head=0.1, lam_tail=-0.1)
SETTINGS = {**NAMED, "both lambdas": BOTH}


def main() -> int:
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    rows = [*on_a_gpu()] if gpu else [*fused(), *large_vocabulary(), *on_logits(), *statistics()]
    machine = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} threads"
    return report(rows, f"The objective, forward and backward; torch {torch.__version__}, {machine}")


def problem(
    n: int, d: int, v: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, D] with standard deviation 1, weight [V, D] for logits with 2, and targets [N]."""
    hidden = torch.randn(n, d, device=device, dtype=dtype).requires_grad_()
    weight = (2 * d**-0.5 * torch.randn(v, d, device=device, dtype=dtype)).requires_grad_()
    return hidden, weight, torch.randint(0, v, (n,), device=device)


def step(loss: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
    """A call of one forward and backward pass that starts without gradients."""

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return call


def fused_steps(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Callable[[], None]]:
    """One step of the fused form for each setting."""
    return {
        name: step(partial(linear_shaped_cross_entropy, hidden, weight, targets, objective), hidden, weight)
        for name, objective in SETTINGS.items()
    }


def fused() -> list[Row]:
    hidden, weight, targets = problem(4096, 512, 32768)
    leaves = (hidden, weight)
    sides = fused_steps(hidden, weight, targets)
    plain = step(lambda: F.cross_entropy(hidden @ weight.t(), targets), *leaves)
    seconds = timed({**sides, "plain": plain}, rounds=5)
    memory = {name: added_memory(call, leaves) for name, call in {**sides, "plain": plain}.items()}
    return [
        *(Row(f"fused, {name}: time", seconds[name], seconds["plain"], "s", 1.05) for name in sides),
        *(Row(f"fused, {name}: memory", memory[name], memory["plain"], "MiB", 0.15) for name in sides),
    ]


def large_vocabulary() -> list[Row]:
    n, v = 8192, 151936
    hidden, weight, targets = problem(n, 256, v)
    call = step(lambda: linear_shaped_cross_entropy(hidden, weight, targets, BOTH), hidden, weight)
    # Computed, not run: the log-probabilities that cross_entropy saves, and the gradient of the logits.
    plain = 2 * n * v * 4 / 2**20
    return [Row("fused, V 151,936: memory", added_memory(call, (hidden, weight)), plain, "MiB", 2048 / plain)]


def on_logits() -> list[Row]:
    logits, targets = 2 * torch.randn(4096, 32768), torch.randint(0, 32768, (4096,))
    logits.requires_grad_()
    shaped = {name: objective for name, objective in SETTINGS.items() if name != "ce"}
    sides = {
        name: step(partial(shaped_cross_entropy, logits, targets, objective), logits)
        for name, objective in shaped.items()
    }
    seconds = timed({**sides, "plain": step(lambda: F.cross_entropy(logits, targets), logits)})
    return [
        Row(f"logits, {name}: time", seconds[name], seconds["plain"], "s", 1.6 if shaped[name].uses_head else 1.25)
        for name in sides
    ]


def statistics() -> list[Row]:
    hidden, weight, targets = problem(1024, 512, 32768)
    logits = (hidden @ weight.t()).detach().requires_grad_()
    rows = []
    for name in ("ce", "precision", "both lambdas"):
        forms: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
            "fused": (
                partial(linear_shaped_cross_entropy, hidden, weight, targets, SETTINGS[name]),
                (hidden, weight),
            ),
            "logits": (partial(shaped_cross_entropy, logits, targets, SETTINGS[name]), (logits,)),
        }
        for form, (loss, leaves) in forms.items():
            seconds = timed(
                {
                    "with": step(lambda loss=loss: loss(return_stats=True)[0], *leaves),  # type: ignore[misc]
                    "without": step(loss, *leaves),
                }
            )
            rows.append(Row(f"{form}, {name}: with statistics", seconds["with"], seconds["without"], "s", 1.1))
    return rows


def added_memory(call: Callable[[], None], leaves: tuple[Tensor, ...]) -> float:
    """MiB that one step adds at its peak, gradients included."""
    for leaf in leaves:
        leaf.grad = None
    gc.collect()
    return peak_memory(call)


def has_liger() -> bool:
    """Whether Liger-Kernel is installed."""
    return find_spec("liger_kernel") is not None


def on_a_gpu(n: int = 8192, d: int = 4096, v: int = 151_936, *, device: str = "cuda") -> list[Row]:
    """Against compiled cross-entropy and, where it is installed, Liger's fused form; another device only shows that."""
    hidden, weight, targets = problem(n, d, v, device=device, dtype=torch.bfloat16)
    leaves = (hidden, weight)
    compiled = torch.compile(lambda: F.cross_entropy((hidden @ weight.t()).float(), targets))
    sides = fused_steps(hidden, weight, targets)
    if has_liger():
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        sides["liger"] = step(lambda: liger_fused_linear_cross_entropy(hidden, weight, targets), *leaves)
    sides["compiled"] = step(compiled, *leaves)
    on_gpu = device == "cuda"

    def synchronous(call: Callable[[], None]) -> Callable[[], None]:
        def call_and_wait() -> None:
            call()
            if on_gpu:
                torch.cuda.synchronize()

        return call_and_wait

    def added_memory(call: Callable[[], None]) -> float:
        for leaf in leaves:
            leaf.grad = None
        if not on_gpu:
            return peak_memory(call)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    seconds = timed({name: synchronous(call) for name, call in sides.items()}, rounds=11, warm_up=3)
    memory = {name: added_memory(call) for name, call in sides.items()}
    rows = []
    for name, objective in SETTINGS.items():
        if "liger" in sides:
            bar = 1.15 if objective.uses_head else 1.0
            rows.append(Row(f"{name} / Liger: time", seconds[name], seconds["liger"], "s", bar))
            rows.append(Row(f"{name} / Liger: memory", memory[name], memory["liger"], "MiB", 1.0))
        rows.append(Row(f"{name} / compiled plain: time", seconds[name], seconds["compiled"], "s"))
        rows.append(Row(f"{name} / compiled plain: memory", memory[name], memory["compiled"] or 1e-9, "MiB"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
