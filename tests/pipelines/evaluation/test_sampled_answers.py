"""How the answers of an evaluation are sampled: with which temperature, length and seed, and in pieces of any size."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipelines.configuration.evaluation import BenchmarkConfig
from pipelines.data.questions import Question
from pipelines.evaluation import sampled_answers
from pipelines.evaluation.benchmark_cache import BenchmarkCache
from pipelines.evaluation.context import Control
from pipelines.evaluation.sampled_answers import measure_samples
from pipelines.rollouts import Finished, Rollouts, Sampling
from pipelines.stage_context import Ranks

QUESTIONS = [Question("t", f"What is {i}?", str(i), "marked") for i in range(6)]
Call = tuple[Sampling, int, tuple[int, ...], range]


class Scripted:
    """Samples whose tokens depend on the seed and on the sample's place in the benchmark, as those of an engine."""

    def __init__(self, range_tokens: int = 10**6, cut_every: int = 10**6, **identity: Any) -> None:
        self.range_tokens, self.cut_every, self.identity = range_tokens, cut_every, identity
        self.calls: list[Call] = []

    def generate(
        self,
        prompts: Sequence[Any],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        first: int = 0,
        finished: Finished | None = None,
    ) -> Rollouts:
        self.calls.append((sampling, n, tuple(seed), range(first, first + len(prompts))))
        places = [(first + i) * n + j for i in range(len(prompts)) for j in range(n)]
        answers = [random.Random(f"{list(seed)} {place}").randrange(6) for place in places]
        stopped = torch.tensor([place % self.cut_every != self.cut_every - 1 for place in places])
        tokens = torch.tensor(answers)[:, None]
        return Rollouts(tokens, torch.full((len(places), 1), -0.5), torch.ones(len(places), dtype=torch.int64), stopped)


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(sampled_answers, "load_items", lambda *_, count, **__: QUESTIONS[:count])
    monkeypatch.setattr(sampled_answers, "available_items", lambda *_: len(QUESTIONS))
    tokenizer = SimpleNamespace(batch_decode=lambda rows, **_: [f"#### {row[0]}" for row in rows])
    corpus = SimpleNamespace(tokenizer=tokenizer, prompts=lambda texts: [[1, 2] for _ in texts])

    def run(sampler: Scripted, *, folder: str = "cache", name: str = "B", control: float = 1.0, **limits: Any) -> Any:
        context: Any = SimpleNamespace(
            corpus=corpus,
            stage=SimpleNamespace(verifier_workers=1),
            sampler=sampler,
            model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=64)),
            control=Control("c", temperature=control),
            cache=BenchmarkCache(tmp_path / folder, {}, Ranks()),
            config=SimpleNamespace(temperature=0.8, top_p=0.9, max_new_tokens=limits.get("limit", 8), pass_k=[1, 2]),
        )
        own = limits.get("own")
        return measure_samples(
            context, name, BenchmarkConfig("sampled", "math", "chain3", items=6, samples=3, max_new_tokens=own)
        )

    return run


def test_a_matched_control_is_sampled_at_the_product_of_both_temperatures(measure: Callable[..., Any]) -> None:
    plain, matched = Scripted(), Scripted()
    measure(plain)
    measure(matched, control=0.5)
    assert [call[0] for call in plain.calls] == [Sampling(0.8, 0.9, 8)]
    assert [call[0] for call in matched.calls] == [Sampling(0.4, 0.9, 8)]


def test_a_benchmarks_own_limit_comes_before_the_evaluations(measure: Callable[..., Any]) -> None:
    sampler = Scripted()
    measure(sampler, own=5)
    assert sampler.calls[0][0].max_new_tokens == 5


def test_samples_do_not_depend_on_the_pieces(measure: Callable[..., Any]) -> None:
    """Whole, and in pieces of two items and of one (3 samples of at most 8 tokens each)."""
    whole, twos, ones = Scripted(), Scripted(2 * 3 * 8), Scripted(3 * 8)
    results = [measure(sampler, folder=str(i)) for i, sampler in enumerate((whole, twos, ones))]
    assert [[call[3] for call in sampler.calls] for sampler in (whole, twos, ones)] == [
        [range(6)],
        [range(0, 2), range(2, 4), range(4, 6)],
        [range(i, i + 1) for i in range(6)],
    ]
    assert results[0] == results[1] == results[2]
    assert [row["item"] for row in results[0].samples] == [i for i in range(6) for _ in range(3)]
    assert [row["question"] for row in results[0].samples[::3]] == [f"What is {i}?" for i in range(6)]
    right = sum(row["answer"] == str(row["item"]) for row in results[0].samples)
    assert 0 < right < 18
    assert results[0].metrics["avg@3"].value == pytest.approx(right / 18)


def test_each_benchmark_has_random_numbers_of_its_own(measure: Callable[..., Any]) -> None:
    sampler, again = Scripted(), Scripted()
    measure(sampler, name="B")
    measure(sampler, name="C")
    measure(again, name="B", folder="another")
    assert sampler.calls[0][2] != sampler.calls[1][2]
    assert again.calls[0][2] == sampler.calls[0][2]


@pytest.mark.parametrize("change", [{"limit": 9}, {"own": 9}, {"control": 0.5}, {"name": "C"}])
def test_stored_answers_are_not_those_of_another_setting(measure: Callable[..., Any], change: dict[str, Any]) -> None:
    first, same, other = Scripted(), Scripted(), Scripted()
    expected = measure(first)
    assert measure(same) == expected
    assert not same.calls
    measure(other, **change)
    assert len(other.calls) == 1


def test_another_engine_samples_anew(measure: Callable[..., Any]) -> None:
    other = Scripted(sampler="vllm")
    measure(Scripted())
    measure(other)
    assert len(other.calls) == 1


def test_an_answer_that_the_limit_cut_is_wrong_and_counted(measure: Callable[..., Any]) -> None:
    whole, cut = measure(Scripted(), folder="a"), measure(Scripted(cut_every=2), folder="b")
    places = range(1, 18, 2)
    assert cut.coverage.cut_answers == 9
    assert [row["reward"] for row in cut.samples[1::2]] == [0.0] * 9
    assert any(whole.samples[place]["reward"] for place in places)
    assert [row["finish"] for row in cut.samples] == ["stop", "length"] * 9
    assert [row["reward"] for row in cut.samples[::2]] == [row["reward"] for row in whole.samples[::2]]
