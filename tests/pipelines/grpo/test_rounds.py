"""The rounds of sampling of one step: their seeds and sizes, and what an interrupted one leaves."""

import contextlib
import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pipelines.errors import Interrupted
from pipelines.grpo import module
from pipelines.grpo.collapse import collapsed
from pipelines.grpo.collection import Questions
from pipelines.rollouts import Rollouts, Sampling
from tests.pipelines.grpo.test_collection import Scripted, collector, config, history, questions, tokenizer

__all__ = ["tokenizer"]


class Recorded(Scripted):
    """Also notes the seed and the limit of each round, and can be interrupted in one."""

    def __init__(self, interrupted_in: int = 0) -> None:
        super().__init__()
        self.seeds: list[tuple[int, ...]] = []
        self.samplings: list[Sampling] = []
        self.prompts: list[list[str]] = []
        self.interrupted_in = interrupted_in

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, **options: Any) -> Rollouts:
        self.seeds.append(tuple(options["seed"]))
        self.samplings.append(sampling)
        self.prompts.append(["".join(map(chr, prompt[1:])) for prompt in prompts])
        if len(self.seeds) == self.interrupted_in:
            raise Interrupted("asked to stop")
        return super().generate(prompts, sampling, **options)


def test_every_round_of_every_step_and_seed_has_random_numbers_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    seeds: list[tuple[int, ...]] = []
    for seed in (0, 1):
        engine = Recorded()
        source = collector(config(resample_rounds=2), [0.0], tokenizer, seed=seed, engine=engine)
        for step in (1, 2):
            assert source.collect(step).rounds == 3
        seeds += engine.seeds
    assert len(set(seeds)) == len(seeds) == 2 * 2 * 3
    repeated = Recorded()
    collector(config(resample_rounds=2), [0.0], tokenizer, seed=1, engine=repeated).collect(2)
    assert repeated.seeds == seeds[-3:]


def test_the_order_of_questions_depends_on_the_seed() -> None:
    def drawn(seed: int) -> list[str]:
        source = Questions([questions([i / 100 for i in range(40)])], seed)
        return [source.draw().question for _ in range(40)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert sorted(drawn(0)) == sorted(drawn(1))


@pytest.mark.parametrize("levels", [[0.0], [0.0] * 30 + [0.5] * 2, [0.5]], ids=["none", "few", "half"])
def test_an_extra_round_asks_what_the_share_of_mixed_groups_calls_for(
    tokenizer: PreTrainedTokenizerFast, levels: list[float]
) -> None:
    """missing / share, with a share of at least 1/8, and at most a whole batch."""
    engine = Recorded()
    source = collector(config(prompts=16, samples=3, resample_rounds=3), levels, tokenizer, engine=engine)
    groups = iter(source.collect(1).sampled)
    sizes, mixed = [16], 0
    while len(sizes) < 4:
        mixed += sum(next(groups).mixed for _ in range(sizes[-1]))
        if mixed >= 16:
            break
        sizes.append(min(16, math.ceil((16 - mixed) / max(mixed / sum(sizes), 0.125))))
    assert engine.calls == sizes
    assert (engine.calls[1] < 16) == (levels == [0.5])


def test_groups_that_waited_are_not_in_the_share_of_mixed_ones(tokenizer: PreTrainedTokenizerFast) -> None:
    """They fill the batch, and say nothing of the questions that are asked now."""
    engine, waiting, waited = Recorded(), 0, 0
    settings = config(prompts=16, samples=3, resample_rounds=3, leftovers="keep")
    source = collector(settings, [0.0, 0.5, 0.5], tokenizer, engine=engine)
    for step in range(1, 13):
        engine.calls.clear()
        collected = source.collect(step)
        groups, sizes, mixed, share = iter(collected.sampled), list[int](), 0, 1.0
        while waiting + mixed < 16 and len(sizes) < 4:
            sizes.append(min(16, math.ceil((16 - waiting - mixed) / max(share, 0.125))))
            mixed += sum(next(groups).mixed for _ in range(sizes[-1]))
            share = mixed / sum(sizes)
        assert engine.calls == sizes
        waited += waiting
        waiting = collected.left_over
    assert waited > 0


def test_an_interrupted_step_is_collected_again_with_the_same_result(tokenizer: PreTrainedTokenizerFast) -> None:
    settings = config(leftovers="keep", resample_rounds=4)
    levels = [0.0, 0.9, 0.9]
    whole = collector(settings, levels, tokenizer, seed=3)
    expected = [whole.collect(step) for step in range(1, 6)]
    engine = Recorded()
    source = collector(settings, levels, tokenizer, seed=3, engine=engine)
    for step, step_expected in enumerate(expected, start=1):
        state = json.dumps(source.state_dict())
        engine.interrupted_in = len(engine.seeds) + min(2, step_expected.rounds)  # in the last or in the second round
        with pytest.raises(Interrupted):
            source.collect(step)
        assert json.dumps(source.state_dict()) == state
        again = source.collect(step)
        assert [g.question for g in again.kept] == [g.question for g in step_expected.kept]
        assert [g.responses for g in again.kept] == [g.responses for g in step_expected.kept]


def test_the_temperature_and_the_length_are_those_of_the_configuration(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = Recorded()
    settings = config(temperature=0.7, max_new_tokens=12)
    collector(settings, [0.5], tokenizer, engine=engine).collect(1)
    assert engine.samplings[0] == Sampling(0.7, 1.0, 12)


@pytest.mark.parametrize("steps", range(6, 10))
def test_no_collapse_is_called_before_ten_steps(steps: int) -> None:
    """The last five of them have no entropy and no length at all, and no reward: with one more step it is one."""
    gone = (0.0, 0.0, 0.0)
    rows = history((steps - 5, 0.3, 1.0, 20.0), (5, *gone))
    assert collapsed(rows, config()) is None
    assert collapsed(history((10 - 5, 0.3, 1.0, 20.0), (5, *gone)), config()) == "entropy"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"reward": 0.89, "entropy": 0.19}, "entropy"),
        ({"reward": 0.90, "entropy": 0.19}, None),  # solved
        ({"reward": 0.30, "entropy": 0.21}, None),
        ({"reward": 0.34, "response_length": 5.9}, "length"),
        ({"reward": 0.36, "response_length": 5.9}, None),  # shorter, and better by 0.05
        ({"reward": 0.30, "response_length": 6.1}, None),
    ],
)
def test_a_collapse_by_its_bounds(change: dict[str, float], expected: str | None) -> None:
    """Entropy below a fifth of the first steps', or length below three tenths, each unless the reward explains it."""
    settings = config(collapse_entropy=0.2, collapse_length=0.3)
    first = {"reward": 0.3, "entropy": 1.0, "response_length": 20.0}
    middle = {"reward": 0.0, "entropy": 9.0, "response_length": 99.0}
    rows = [first] * 5 + [middle] * 4 + [first | {"entropy": 0.9, "response_length": 19.0} | change] * 5
    assert collapsed(rows, settings) == expected


def test_a_left_over_group_is_kept_as_it_was_sampled(tokenizer: PreTrainedTokenizerFast) -> None:
    source = collector(config(leftovers="keep", resample_rounds=8), [0.0, 0.9, 0.9], tokenizer, seed=3)
    step, collected = 1, source.collect(1)
    while not collected.left_over:
        step += 1
        collected = source.collect(step)
    waiting = [group for group in collected.sampled if group.mixed][-collected.left_over :]
    kept = source.collect(step + 1).kept[: collected.left_over]
    for before, after in zip(waiting, kept, strict=True):
        assert (before.question, before.responses, before.step) == (after.question, after.responses, step)
        assert torch.equal(torch.stack(before.log_probs), torch.stack(after.log_probs))


def test_each_data_set_has_an_order_of_its_own() -> None:
    """Two sets with the same questions, in two passes."""
    same = questions([i / 100 for i in range(40)])
    source = Questions([same, same], 0)
    drawn = [source.draw().question for _ in range(160)]
    orders = {tuple(drawn[start : start + 80 : 2]) for start in (0, 1, 80, 81)}
    assert len(orders) == 4
    assert len({frozenset(order) for order in orders}) == 1


def test_pass_rates_and_divergences_have_random_numbers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run's seed, and by the task or the step."""
    seeds: list[tuple[int, ...]] = []

    def sample(asked: Sequence[str], *, step: int, seed: Sequence[int]) -> list[Any]:
        seeds.append(tuple(seed))
        return [SimpleNamespace(rewards=torch.tensor([0.0, 1.0])) for _ in asked]

    def divergence_from(*_: Any, seed: Sequence[int], **__: Any) -> float:
        seeds.append(tuple(seed))
        return 0.0

    monkeypatch.setattr(module, "divergence_from", divergence_from)
    for seed in (0, 1):
        run: Any = SimpleNamespace(
            seed=seed,
            config=SimpleNamespace(pass_rate_low=0.1, pass_rate_high=0.9, tasks=["a", "b"], start_divergence=True),
            asked=SimpleNamespace(training=[["1", "2"], ["3"]]),
            context=SimpleNamespace(log=lambda *_: None),
            device=None,
            _sampling=contextlib.nullcontext,
            _collector=SimpleNamespace(sample=sample),
            _reference=SimpleNamespace(on=contextlib.nullcontext),
            _updater=SimpleNamespace(division=None),
        )
        assert module.GRPO._within_pass_rate(run) == [[0, 1], [0]]
        for run.step in (1, 2):
            module.GRPO._divergence(run, SimpleNamespace(sampled=[]))  # type: ignore[arg-type]
    assert len(set(seeds)) == len(seeds) == 2 * (2 + 2)


def test_the_bounds_on_the_pass_rate_are_within_them() -> None:
    rates = {"never": 0.0, "low": 0.25, "half": 0.375, "high": 0.5, "more": 0.625}
    run: Any = SimpleNamespace(
        seed=0,
        config=SimpleNamespace(pass_rate_low=0.25, pass_rate_high=0.5, tasks=["t"]),
        asked=SimpleNamespace(training=[list(rates)]),
        context=SimpleNamespace(log=lambda *_: None),
        _sampling=contextlib.nullcontext,
        _collector=SimpleNamespace(
            sample=lambda asked, **_: [SimpleNamespace(rewards=torch.tensor([rates[name]])) for name in asked]
        ),
    )
    assert module.GRPO._within_pass_rate(run) == [[1, 2, 3]]
