"""The objective on a GPU: its kernels against PyTorch, its speed against others' kernels, and its cost in training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import objective as on_objective
from benchmarks import pretrain
from benchmarks.gpu.rows import Measurement, failed
from pipelines.configuration.budgets import PretrainConfig
from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.model import ModelConfig
from pipelines.ledger import Ledger
from pipelines.models.causal_lm import empty_model, model_config
from pipelines.stage_context import StageContext
from pipelines.training import next_token
from pipelines.training.train import train
from shaping import Objective, shaped_cross_entropy

ONE_B = ModelConfig("1B", layers=28, d_model=1536, ffn=4608, heads=16, kv_heads=4, head_dim=128)
TINY = ModelConfig("tiny", layers=2, d_model=32, ffn=64, heads=2, kv_heads=1, head_dim=16)


def kernels(small: bool) -> Iterator[Measurement]:
    """Largest differences of values and gradients between Triton and PyTorch, and targets outside the vocabulary."""
    device = "cpu" if small else "cuda"
    rows, vocabulary = (5, 130) if small else (1024, 151_936)
    types = {torch.float32: 2e-5} if small else {torch.float32: 2e-5, torch.bfloat16: 2e-2}
    generator = torch.Generator(device).manual_seed(0)
    for name, objective in on_objective.SETTINGS.items():
        if objective.is_cross_entropy:
            continue
        chosen = Objective(objective.beta, objective.lam_head, objective.lam_tail, min(objective.top_k, vocabulary))
        for dtype, bound in types.items():
            scores = (2 * torch.randn(rows, vocabulary, device=device, generator=generator)).to(dtype)
            targets = torch.randint(vocabulary, (rows,), device=device, generator=generator)
            targets[0] = -100
            results = {}
            for backend in ("torch", "triton"):
                leaf = scores.clone().requires_grad_()
                loss = shaped_cross_entropy(leaf, targets, chosen, reduction="none", backend=backend)
                loss.sum().backward()
                assert leaf.grad is not None
                results[backend] = (loss.detach().float(), leaf.grad.float())
            for i, what in enumerate(("value", "gradient")):
                right, ours = results["torch"][i], results["triton"][i]
                difference = ((ours - right).abs() / right.abs().amax().clamp(min=1e-12)).max().item()
                label = (
                    f"{name}, {str(dtype).removeprefix('torch.')}: largest difference of a {what} / the largest {what}"
                )
                yield Measurement("kernels", label, difference, peer=bound, holds=difference <= bound)
    yield _out_of_range(device, rows, vocabulary)


def _out_of_range(device: str, rows: int, vocabulary: int) -> Measurement:
    """A target outside the vocabulary has to be an error, by an exception or, on a GPU, by a device assertion."""
    name = "a target outside the vocabulary is an error"
    scores = torch.randn(rows, vocabulary, device=device, requires_grad=True)
    targets = torch.full((rows,), vocabulary, device=device)
    try:
        shaped_cross_entropy(scores, targets, Objective(beta=-0.25), backend="triton").item()
    except Exception:  # its type depends on the device
        return Measurement("kernels", name, 1.0, holds=True)
    return Measurement("kernels", name, 0.0, holds=False)


def objective(small: bool) -> Iterator[Measurement]:
    """Time and memory of the fused form against Liger's, where it is installed, and compiled cross-entropy."""
    shape = (64, 32, 500) if small else (8192, 4096, 151_936)
    for row in on_objective.on_a_gpu(*shape, device="cpu" if small else "cuda"):
        yield Measurement("objective", row.name, row.ours, row.unit, row.peer, row.holds)
    if not on_objective.has_liger():
        yield failed("objective", "against Liger", "pip install liger-kernel")


def training(small: bool) -> Iterator[Measurement]:
    """Steps of the 1B model on rows of 4,096 tokens: share of the device's peak, and what the shaped loss costs."""
    shape, vocabulary, length, rows = (TINY, 300, 32, 2) if small else (ONE_B, 50_304, 4096, 16)
    steps = 6 if small else 10
    seconds = {}
    for name, chosen in (("cross-entropy", Objective()), ("beta = -0.25", Objective(beta=-0.25))):
        budget = PretrainConfig(
            tokens=steps * rows * length, batch_tokens=rows * length, sequence_length=length, learning_rate=1e-4,
            rope_base=1e4, mixture={"text": 1.0}, milestones=1, warmup_steps=2, precision="bfloat16-mixed",
        )  # fmt: skip
        row = _trained(shape, vocabulary, budget, chosen, compiled=not small)
        seconds[name] = row["step_seconds_p50"]
        yield Measurement("training", f"{shape.name}, {length} tokens, {name}: a step", seconds[name], "s")
        yield Measurement("training", f"{shape.name}, {name}: tokens per second", row["tokens_per_second"], "/s")
        yield Measurement("training", f"{shape.name}, {name}: memory", row["memory_gib"], "GiB")
        if "mfu" in row:
            yield Measurement("training", f"{shape.name}, {name}: MFU", row["mfu"], peer=0.4)
    shaped, plain = seconds["beta = -0.25"], seconds["cross-entropy"]
    yield Measurement("training", f"{shape.name}: a step with the shaped loss / without", shaped, "s", plain)


def _trained(
    shape: ModelConfig, vocabulary: int, budget: PretrainConfig, chosen: Objective, *, compiled: bool
) -> dict[str, Any]:
    """The last row of the ledger, over the second half of the steps; the first one warms up."""
    import tempfile

    next_token.LEDGER_ROWS = 2
    corpus: Any = pretrain.Corpus(vocabulary, 256, budget.sequence_length)
    compute = ComputeConfig(
        compile=compiled, activation_checkpointing="selective", micro_batch_tokens=budget.batch_tokens // 2
    )
    model = empty_model(model_config(shape, vocabulary, 1e4, end=0))
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        context = _Unsaved(Path(folder), corpus, ledger, compute=compute)
        train(model, chosen, budget, context=context)
        return dict(ledger.newest)


class _Unsaved(StageContext):
    """A context whose milestones nobody needs."""

    def save_milestone(self, model: Any, step: int, weights: Any = None) -> None:
        """Save nothing."""
