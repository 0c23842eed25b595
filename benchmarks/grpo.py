"""A GRPO step against TRL's GRPOTrainer, and rollouts against `transformers.generate`.

    python -m benchmarks.grpo [--json FILE]

The same random Qwen3, the same prompts, float32, one process, medians after a warm-up. A step is everything: sampling,
rewards, diagnostics, loss, optimizer. TRL (the `bench` extra) processes all responses in one batch or in micro-batches,
whichever is faster for the shape; activation checkpointing and bf16, its defaults, are off.

For rollouts of different lengths the model is a counter: the prompt ends in a number, each token is the previous number
minus one, and the end token is 0. So both sides sample 10 to 200 tokens per response and compute as much as for a
random model.
"""

import itertools
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from benchmarks.comparison import Row, report, seconds_of, timed
from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import Question
from pipelines.grpo.collection import Collector, Questions
from pipelines.grpo.communicator import SINGLE_PROCESS, Communicator
from pipelines.grpo.diagnostics import collected_row, divergence_from
from pipelines.grpo.policy import Policy
from pipelines.grpo.update import Updater, plain_backward
from pipelines.rollouts import Sampling, generate, load_engine
from pipelines.tasks.formats import FORMATS, Format
from pipelines.training.optimizer import adamw
from pipelines.training.weight_stream import weight_stream
from pipelines.verifiers import VERIFIERS, Judge, Verifier

VOCABULARY = 640
PROMPT_TOKENS = 9
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """A model, and the prompts, samples and tokens of a step."""

    name: str
    d_model: int
    layers: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    prompts: int
    samples: int
    tokens: int
    trl_batch: int
    """Responses in a micro-batch of TRL."""
    bar: float

    def model(self, tied: bool = True) -> Qwen3ForCausalLM:
        """A random model of this shape, the same each time."""
        torch.manual_seed(0)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCABULARY, hidden_size=self.d_model, intermediate_size=self.ffn,
                num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
                head_dim=self.head_dim, tie_word_embeddings=tied, eos_token_id=0, pad_token_id=0, bos_token_id=None,
            )
        )  # fmt: skip


SMALL = Shape("0.3 M, 32 x 16 x 36 tokens", 96, 3, 256, 4, 2, 24, 32, 16, 36, 128, 1 / 3)
LARGE = Shape("5 M, 8 x 8 x 256 tokens", 256, 6, 704, 8, 4, 32, 8, 8, 256, 16, 1 / 2)


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<end>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


def prompts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(1, VOCABULARY)}" for _ in range(PROMPT_TOKENS)) for _ in range(count)]


def coin(text: str) -> float:
    """The reward 1 for half of all texts, chosen by hash, else 0."""
    return float(zlib.crc32(text.encode()) & 1)


def coins(completions: list[str], **_: object) -> list[float | None]:
    return [coin(text) for text in completions]


class Text(Question):
    """A question whose answer is the whole response, also where the limit cut it."""

    def judged(self, response: str, *, complete: bool = True) -> tuple[str, str | None, str]:
        """See `Question.judged`."""
        return "coin", response, ""


def verify(answer: str, reference: str) -> float:
    """The verifier of `Text`."""
    return coin(answer)


def our_step(
    shape: Shape,
    engine_name: str = "transformers",
    *,
    device: torch.device = CPU,
    policy: Policy | None = None,
    communicator: Communicator = SINGLE_PROCESS,
    backward: Callable[[torch.Tensor, bool], None] = plain_backward,
) -> Callable[[], None]:
    """A function that takes one GRPO step; the model is kept between calls. On a GPU products are in bfloat16.

    `policy` is by default a new one of this shape. Several ranks pass their `communicator`, and a `backward` that
    averages the gradients over them with the last micro-batch.
    """
    FORMATS["whole"] = Format("{question}", r"(?s)(.*)", "coin")
    VERIFIERS["coin"] = Verifier("benchmarks.grpo:verify", in_process=True, longest=None)
    precision = "float32" if device.type == "cpu" else "bfloat16-mixed"
    if policy is None:
        learner: Any = shape.model()
        policy = Policy(learner.to(device), precision)
    model = policy.model
    config = GRPOConfig(
        steps=1, milestones=1, tasks=["t"], prompts=shape.prompts, samples=shape.samples, max_new_tokens=shape.tokens,
        dynamic_sampling=False, engine=engine_name,
    )  # fmt: skip
    engine = load_engine(engine_name, model, lambda: PROMPT_TOKENS + 1 + shape.tokens)
    frozen: Any = shape.model().eval()
    reference = Policy(frozen.to(device).requires_grad_(False), precision)
    optimizer = adamw(model, learning_rate=1e-6, weight_decay=0.1, betas=(0.9, 0.95))
    exact = engine.exact and precision == "float32"
    updater = Updater(policy, optimizer, config, exact_sampler=exact, communicator=communicator, backward=backward)
    questions = Questions([[Text("t", text, "", "whole") for text in prompts(4 * shape.prompts)]], 0)
    collector = Collector(
        config, engine, Judge(), tokenizer=tokenizer(), questions=questions, seed=0, communicator=communicator
    )
    # A step as in pipelines.grpo: collection, diagnostics, update.
    step = 0

    def run() -> None:
        nonlocal step
        step += 1
        # As `pipelines.grpo.module` hands over and lets sleep.
        engine.wake()
        engine.take(weight_stream(model, checkpoint_names=engine.checkpoint_names))
        collected = collector.collect(step)
        engine.sleep()
        divergence_from(reference, collected.sampled, config, seed=(0, step), division=updater.division)
        collected_row(collected, communicator)
        assert not updater.update(collected.kept, step)["skipped"]

    return run


def trl_steps(shape: Shape, steps: int, *, vllm: bool = False, device: str = "cpu") -> list[float]:
    """Seconds of each of TRL's steps after the first; `vllm` samples in the same process."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig as TRLConfig
    from trl import GRPOTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.perf_counter())

    colocated: dict[str, Any] = {}
    if vllm:
        colocated = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4}
    with tempfile.TemporaryDirectory() as folder:
        config = TRLConfig(
            output_dir=folder, per_device_train_batch_size=shape.trl_batch,
            gradient_accumulation_steps=shape.prompts * shape.samples // shape.trl_batch,
            num_generations=shape.samples, max_completion_length=shape.tokens, temperature=1.0, loss_type="dapo",
            epsilon=0.2, epsilon_high=0.28, beta=0.0, learning_rate=1e-6, lr_scheduler_type="constant",
            weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, bf16=device != "cpu", use_cpu=device == "cpu",
            **colocated,
            gradient_checkpointing=False, report_to=[], save_strategy="no", max_steps=steps + 1, disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=shape.model(),
            args=config,
            reward_funcs=coins,
            train_dataset=Dataset.from_dict({"prompt": prompts(4 * shape.prompts)}),
            processing_class=tokenizer(),
            callbacks=[Clock()],
        )
        trainer.train()
    return [after - before for before, after in itertools.pairwise(times)]


def step_rows() -> list[Row]:
    """For both shapes. TRL's trainer takes its steps in one run, and ours are taken before and after it."""
    rows = []
    for shape, steps in ((SMALL, 6), (LARGE, 2)):
        ours = our_step(shape)
        ours()
        seconds = [seconds_of(ours) for _ in range(steps)]
        peer_seconds = trl_steps(shape, steps)
        seconds += [seconds_of(ours) for _ in range(steps)]
        ours_median, peer_median = statistics.median(seconds), statistics.median(peer_seconds)
        rows.append(Row(f"GRPO step against TRL, {shape.name}", ours_median, peer_median, "s", shape.bar))
    return rows


def rollout_rows() -> list[Row]:
    """Seconds per thousand sampled tokens, padding not counted, of one batch."""
    rows = []
    model = SMALL.model().eval()
    texts = torch.randint(1, VOCABULARY, (512, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    seconds = timed(
        {
            "ours": lambda: generate(model, texts.tolist(), Sampling(1.0, 1.0, 36), n=1, seed=(0,)),
            "peer": lambda: _generate_with_transformers(model, texts, 36),
        }
    )
    thousands = 512 * 36 / 1000
    rows.append(
        Row("rollouts, 512 x 36 tokens", seconds["ours"] / thousands, seconds["peer"] / thousands, "s/1k", 1 / 1.5)
    )

    # Responses of 10 to 200 tokens, of which a batch with padding wastes half.
    counter = _counter()
    lengths = torch.linspace(10, 200, 256).round().long()
    starts = torch.cat([torch.randint(210, VOCABULARY, (256, PROMPT_TOKENS - 1)), lengths[:, None]], 1)
    sampled = generate(counter, starts.tolist(), Sampling(1.0, 1.0, 200), n=1, seed=(0,)).lengths
    assert torch.equal(sampled, lengths), "the counter model does not count down"
    assert _generate_with_transformers(counter, starts, 200).shape[1] == PROMPT_TOKENS + 200
    seconds = timed(
        {
            "ours": lambda: generate(counter, starts.tolist(), Sampling(1.0, 1.0, 200), n=1, seed=(0,)),
            "peer": lambda: _generate_with_transformers(counter, starts, 200),
        },
        rounds=3,
    )
    thousands = int(lengths.sum()) / 1000
    rows.append(
        Row("rollouts, 256 x 10..200 tokens", seconds["ours"] / thousands, seconds["peer"] / thousands, "s/1k", 1 / 3)
    )
    return rows


def _generate_with_transformers(model: Qwen3ForCausalLM, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    with torch.inference_mode():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
        )


def _counter() -> Qwen3ForCausalLM:
    """A model whose next token is its last token minus one: attention and MLP are computed but add nothing."""
    model = SMALL.model(tied=False).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(100 * model.model.embed_tokens.weight.roll(-1, 0))
    return model


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    sys.exit(report([*rollout_rows(), *step_rows()], "GRPO and its rollouts"))
