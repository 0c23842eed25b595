"""The table of rollout engines."""

from pathlib import Path

import pytest

from pipelines.configuration.engines import ENGINES
from pipelines.configuration.grpo import GRPOConfig
from pipelines.errors import UserError
from pipelines.rollouts import TransformersEngine, load_engine
from tests.pipelines.rollouts.test_transformers_engine import tiny


def no_tokens_needed() -> int:
    raise AssertionError("the transformers engine does not need the longest sequence")


def test_the_default_engine_does_not_tokenize_the_prompts() -> None:
    assert isinstance(load_engine("transformers", tiny(), no_tokens_needed), TransformersEngine)


def test_a_new_engine_is_one_entry_and_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote_engine.py").write_text(
        "class RemoteEngine:\n    exact = False\n    def __init__(self, model, longest): self.longest = longest()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(ENGINES, "remote", "remote_engine:RemoteEngine")
    config = GRPOConfig(steps=1, tasks=["t"], milestones=1, engine="remote")
    engine = load_engine(config.engine, tiny(), lambda: 7)
    assert (type(engine).__name__, engine.exact, vars(engine)) == ("RemoteEngine", False, {"longest": 7})


def test_a_model_on_one_rank_samples_by_itself() -> None:
    """Only a sharded one needs a whole copy."""
    assert type(load_engine("transformers", tiny(), no_tokens_needed)) is TransformersEngine


def test_an_unknown_engine_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(UserError, match=r"grpo\.engine=transformer: did you mean 'transformers'"):
        GRPOConfig(steps=1, tasks=["t"], milestones=1, engine="transformer")
