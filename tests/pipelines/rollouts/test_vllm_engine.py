"""The vLLM engine against a fake module with vLLM's interface; the real one needs a GPU and was not run."""

import random
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.errors import UserError
from pipelines.rollouts import Sampling, load_engine
from pipelines.rollouts.vllm_engine import VLLMEngine
from tests.pipelines.rollouts.test_transformers_engine import END, tiny


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("vllm")
    module.loaded, module.requests, module.resets = [], [], 0  # type: ignore[attr-defined]

    class LLM:
        def __init__(self, **arguments: Any) -> None:
            module.arguments = arguments  # type: ignore[attr-defined]
            model = SimpleNamespace(load_weights=lambda pairs: module.loaded.extend(pairs))  # type: ignore[attr-defined]
            worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
            self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

        def reset_prefix_cache(self) -> None:
            module.resets += 1  # type: ignore[attr-defined]

        def generate(self, requests: list[dict], parameters: list[Any], use_tqdm: bool) -> list[Any]:
            module.requests.append((requests, parameters))  # type: ignore[attr-defined]
            outputs = []
            for request, p in zip(requests, parameters, strict=True):
                rng, samples = random.Random(p.seed), []
                for j in reversed(range(p.n)):  # vLLM guarantees no order
                    size = rng.randint(1, p.max_tokens)
                    ids = [request["prompt_token_ids"][0] + 1] * (size - 1)
                    ids.append(END if size < p.max_tokens else 9)
                    logs = [{token: SimpleNamespace(logprob=-0.5 - i)} for i, token in enumerate(ids)]
                    reason = "stop" if size < p.max_tokens else "length"
                    samples.append(SimpleNamespace(index=j, token_ids=ids, logprobs=logs, finish_reason=reason))
                outputs.append(SimpleNamespace(outputs=samples))
            return outputs

    module.LLM, module.SamplingParams = LLM, lambda **arguments: SimpleNamespace(**arguments)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_samples_come_back_in_order_with_their_log_probs(fake: Any) -> None:
    engine = VLLMEngine(tiny(), lambda: 64)
    rollouts = engine.generate([[5, 6], [20]], Sampling(0.8, 1.0, 7), n=3, seed=(1, 2))
    assert rollouts.tokens.shape == (6, 7)
    assert [row[0] for row in rollouts.responses() if row[0] not in (END, 9)] == sorted(
        row[0] for row in rollouts.responses() if row[0] not in (END, 9)
    )
    for row, (length, stopped) in enumerate(zip(rollouts.lengths, rollouts.stopped, strict=True)):
        expected = -0.5 - torch.arange(int(length))
        torch.testing.assert_close(rollouts.log_probs[row, :length], expected)
        assert not rollouts.log_probs[row, length:].any()
        assert bool(stopped) == (rollouts.tokens[row, length - 1] == END)
    _, parameters = fake.requests[0]
    assert (parameters[0].temperature, parameters[0].max_tokens, parameters[0].n) == (0.8, 7, 3)
    assert parameters[0].seed != parameters[1].seed
    repeated = engine.generate([[5, 6], [20]], Sampling(0.8, 1.0, 7), n=3, seed=(1, 2))
    assert torch.equal(rollouts.tokens, repeated.tokens)
    assert fake.arguments["logprobs_mode"] == "processed_logprobs"
    assert fake.arguments["max_model_len"] == 64


def test_the_newest_weights_are_transferred(fake: Any) -> None:
    engine, newer = load_engine("vllm", tiny(), lambda: 64), tiny(seed=4)
    engine.sync(newer)
    assert [name for name, _ in fake.loaded] == [name for name, _ in newer.named_parameters()]
    assert all(torch.equal(weight, dict(newer.named_parameters())[name]) for name, weight in fake.loaded)
    assert fake.resets == 1
    assert not engine.exact


def test_without_vllm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"grpo\.engine=vllm: .*pip install 'shaping\[vllm\]'"):
        VLLMEngine(tiny(), lambda: 64)
