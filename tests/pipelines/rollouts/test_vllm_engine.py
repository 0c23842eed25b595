"""The vLLM engine where vLLM is missing or another version; tests/vllm runs the real one."""

import sys
from types import ModuleType

import pytest
from transformers import MiniMaxM2ForCausalLM

from pipelines.errors import UserError
from pipelines.rollouts import load_engine
from pipelines.rollouts.vllm_engine import sampler_config
from tests.pipelines.rollouts.test_transformers_engine import moe, tiny


def test_a_missing_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"grpo\.engine=vllm: .*pip install 'shaping\[vllm\]'"):
        load_engine("vllm", tiny(), lambda: 64)


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = ModuleType("vllm")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    with pytest.raises(UserError, match=rf"grpo\.engine=vllm: .*0\.32\.x, but {version} is installed"):
        load_engine("vllm", tiny(), lambda: 64)


def test_the_samplers_configuration_is_untied_and_has_the_keys_of_its_class() -> None:
    model = moe()
    assert isinstance(model, MiniMaxM2ForCausalLM)
    config = sampler_config(model)
    assert not config.tie_word_embeddings
    assert (config.rotary_dim, config.scoring_func, config.use_routing_bias) == (model.config.head_dim, "sigmoid", True)
    assert sampler_config(tiny()).architectures == ["Qwen3ForCausalLM"]
    assert not hasattr(model.config, "use_routing_bias"), "the learner's is unchanged"
