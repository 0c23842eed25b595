"""What the sampler of an evaluation is asked for."""

from collections.abc import Sequence
from typing import Any

import pytest

from pipelines.evaluation.sampler import Sampler
from pipelines.rollouts import Rollouts


@pytest.fixture
def drawn_with(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The seed of each call of `Sampler.generate`, in order."""
    seeds: list[tuple[int, ...]] = []
    generate = Sampler.generate

    def recorded(*args: Any, seed: Sequence[int], **options: Any) -> Rollouts:
        seeds.append(tuple(seed))
        return generate(*args, seed=seed, **options)

    monkeypatch.setattr(Sampler, "generate", recorded)
    return seeds
