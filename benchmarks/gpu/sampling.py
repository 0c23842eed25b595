"""What samples on a GPU: GRPO against TRL, rollouts and sleep of the engines, experts in vLLM, and evaluations."""

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks import grpo as on_grpo
from benchmarks.comparison import seconds_of
from benchmarks.gpu.rows import Measurement, failed
from pipelines.configuration.model import ModelConfig
from pipelines.errors import UserError
from pipelines.models.causal_lm import empty_model, model_config
from pipelines.rollouts import Engine, EngineSetting, Sampling, generate, load_engine
from pipelines.training.weight_stream import weight_stream

# The layers of Qwen3-0.6B with random weights and the benchmark's vocabulary, so nothing is downloaded.
LARGE = on_grpo.Shape("0.6 B, 16 x 8 x 512 tokens", 1024, 28, 3072, 16, 8, 128, 16, 8, 512, 16, 1.0)
TINY = on_grpo.Shape("tiny", 64, 2, 128, 2, 1, 32, 2, 4, 8, 8, 1.0)
MIXTURE = ModelConfig(
    "2B-A0.2B", layers=8, d_model=1024, ffn=320, heads=16, kv_heads=4, head_dim=128, experts=128, active_experts=8
)
TINY_MIXTURE = ModelConfig(
    "tiny", layers=2, d_model=64, ffn=32, heads=2, kv_heads=1, head_dim=32, experts=4, active_experts=2
)
ENGINES = ("vllm", "replica", "transformers")
SEED = (1, 2, 3, 4)


def grpo(small: bool) -> Iterator[Measurement]:
    """A step of ours with vLLM, and of TRL's with vLLM in the same process."""
    shape, steps = (TINY, 1) if small else (LARGE, 3)
    medians = {}
    for engine in ("vllm", "replica") if not small else ("transformers", "vllm"):
        try:
            step = on_grpo.our_step(shape, engine, device=_device())
            step()
            medians[engine] = statistics.median(seconds_of(step) for _ in range(steps))
            yield Measurement("grpo", f"{shape.name}, engine {engine}: a step", medians[engine], "s")
        except (UserError, RuntimeError, ValueError) as error:
            yield failed("grpo", f"{shape.name}, engine {engine}: a step", str(error))
        _release()
    try:
        peer = statistics.median(on_grpo.trl_steps(shape, steps, vllm=not small, device=_device().type))
    except Exception as error:  # another project's trainer: the row says what it said
        yield failed("grpo", f"{shape.name}, TRL: a step", str(error))
        return
    for engine, ours in medians.items():
        yield Measurement("grpo", f"{shape.name}, engine {engine} / TRL: a step", ours, "s", peer)


def rollouts(small: bool) -> Iterator[Measurement]:
    """Tokens per second of every engine, and the memory of the device while it is awake and asleep."""
    shape = TINY if small else LARGE
    count, sampling = (4, Sampling(1.0, 1.0, 8)) if small else (256, Sampling(1.0, 1.0, 512))
    prompts = torch.randint(1, on_grpo.VOCABULARY, (count, on_grpo.PROMPT_TOKENS)).tolist()
    model = shape.model().eval().to(_device())
    for name in ENGINES:
        try:
            engine = _loaded(name, model)
            engine.generate(prompts[:2], sampling, n=1, seed=SEED)  # compiles and captures
            started = time.perf_counter()
            tokens = int(engine.generate(prompts, sampling, n=4, seed=SEED).lengths.sum())
            yield Measurement("rollouts", f"{shape.name}, {name}", tokens / (time.perf_counter() - started), "tokens/s")
            yield from _sleep(engine, name)
            engine.close()
        except (UserError, RuntimeError, ValueError) as error:
            yield failed("rollouts", f"{shape.name}, {name}", str(error))
        _release()


def _sleep(engine: Engine, name: str) -> Iterator[Measurement]:
    """Memory that the driver has given away, which also counts what other libraries than torch take."""
    if _device().type != "cuda":
        return
    awake = _taken()
    engine.sleep()
    torch.cuda.empty_cache()
    asleep = _taken()
    seconds = seconds_of(engine.wake)
    yield Measurement("rollouts", f"{name}: memory awake", awake, "GiB")
    yield Measurement("rollouts", f"{name}: memory asleep", asleep, "GiB", awake)
    yield Measurement("rollouts", f"{name}: waking", seconds, "s")


def _taken() -> float:
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def experts(small: bool) -> Iterator[Measurement]:
    """Greedy tokens of a mixture in vLLM against transformers, with the first weights and with new ones."""
    shape = TINY_MIXTURE if small else MIXTURE
    models = [_mixture(shape, seed) for seed in (0, 1)]
    sampling = Sampling(0.0, 1.0, 8 if small else 32)
    prompts = torch.randint(1, on_grpo.VOCABULARY, (4 if small else 32, on_grpo.PROMPT_TOKENS)).tolist()
    engine = load_engine("vllm", models[0], lambda: 64)
    for when, model in zip(("before", "after"), models, strict=True):
        engine.wake()
        engine.take(weight_stream(model))
        ours = engine.generate(prompts, sampling, n=1, seed=SEED).responses()
        reference: Any = model
        right = generate(reference.to(torch.bfloat16), prompts, sampling, n=1, seed=SEED).responses()
        # Roundings of bfloat16 decide a token now and then, and everything after it; wrong weights decide all.
        share = statistics.mean(a[0] == b[0] for a, b in zip(ours, right, strict=True))
        yield Measurement(
            "experts",
            f"{shape.name}, {when} an update: share of equal first tokens",
            share,
            peer=0.9,
            holds=share >= 0.9,
        )


def _mixture(shape: ModelConfig, seed: int) -> PreTrainedModel:
    """A random mixture whose distribution is far from uniform."""
    torch.manual_seed(seed)
    model = empty_model(model_config(shape, on_grpo.VOCABULARY, 1e4, end=0, length=128)).eval().to(_device())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(4)
    return model


def evaluation(small: bool) -> Iterator[Measurement]:
    """Answers per second of an evaluation: many samples of few prompts, the nucleus cut, the longest answer 1,024."""
    shape = TINY if small else LARGE
    items, samples, limit = (2, 4, 8) if small else (8, 64, 1024)
    prompts: Sequence[list[int]] = torch.randint(1, on_grpo.VOCABULARY, (items, 64)).tolist()
    model = shape.model().eval().to(_device())
    for name in ENGINES:
        try:
            engine = _loaded(
                name, model, EngineSetting(key="evaluation.engine", dtype=torch.bfloat16, memory_share=0.7)
            )
            started = time.perf_counter()
            engine.generate(prompts, Sampling(0.7, 0.95, limit), n=samples, seed=SEED)
            rate = items * samples / (time.perf_counter() - started)
            yield Measurement("evaluation", f"{shape.name}, {name}: answers of {limit} tokens", rate, "/s")
            engine.close()
        except (UserError, RuntimeError, ValueError) as error:
            yield failed("evaluation", f"{shape.name}, {name}", str(error))
        _release()


def _loaded(name: str, model: PreTrainedModel, setting: EngineSetting | None = None) -> Engine:
    """An engine with the model's weights, awake."""
    engine = load_engine(name, model, lambda: 1200, setting=setting)
    engine.take(weight_stream(model, checkpoint_names=engine.checkpoint_names))
    return engine


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
