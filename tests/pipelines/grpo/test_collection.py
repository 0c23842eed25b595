"""Dynamic sampling keeps a fair sample of the mixed groups, and the ledger's diagnostics are right."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import Question
from pipelines.grpo.collapse import collapsed
from pipelines.grpo.collection import Collected, Collector, Group, Questions, empty_waiting
from pipelines.grpo.communicator import SINGLE_PROCESS
from pipelines.grpo.diagnostics import (
    collected_row,
    correlation,
    divergence_from,
    entropy_fall,
    forking_tokens,
    sampled_entropy,
)
from pipelines.grpo.policy import Policy
from pipelines.grpo.update import Division
from pipelines.rollouts import Finished, Rollouts, Sampling, generate, never
from pipelines.tasks.formats import FORMATS, Format
from pipelines.verifiers import VERIFIERS, Judge, Verifier
from tests.pipelines.grpo.test_update import group as made_group
from tests.pipelines.rollouts.test_transformers_engine import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Token i is character i, so that a scripted engine can write answers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<end>": 0} | {chr(i): i for i in range(1, 128)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


class Scripted:
    """An engine whose answer to a question is right with the probability that the question states."""

    exact = True
    checkpoint_names = False

    def __init__(self) -> None:
        self.calls: list[int] = []

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        n: int,
        seed: Sequence[int],
        share: range | None = None,
        interrupted: Callable[[], bool] = never,
        finished: Finished | None = None,
    ) -> Rollouts:
        self.calls.append(len(prompts))
        rng = random.Random(str(list(seed)))
        rows = []
        for prompt in prompts:
            probability = float("".join(map(chr, prompt[1:])).split()[1])
            rows += ["#### 1" if rng.random() < probability else "#### 0" for _ in range(n)]
        tokens = torch.tensor([[*map(ord, row), 0] for row in rows])
        lengths = torch.full((len(rows),), 7)
        return Rollouts(tokens, torch.full(tokens.shape, -0.5), lengths, torch.ones(len(rows), dtype=torch.bool))

    def take(self, weights: object) -> None: ...

    def sleep(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


def questions(probabilities: Sequence[float]) -> list[Question]:
    return [Question("t", str(probability), "1", "marked") for probability in probabilities]


def config(**changes: object) -> GRPOConfig:
    return GRPOConfig(**{"steps": 1, "tasks": ["t"], "milestones": 1, "prompts": 8, "samples": 4, **changes})  # type: ignore[arg-type]  # fmt: skip


def collector(
    settings: GRPOConfig,
    probabilities: Sequence[float],
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    engine: Scripted | None = None,
) -> Collector:
    stream = Questions([questions(probabilities)], seed)
    return Collector(settings, engine or Scripted(), Judge(), tokenizer=tokenizer, questions=stream, seed=seed)


def test_kept_groups_are_a_fair_sample_of_the_mixed_ones(tokenizer: PreTrainedTokenizerFast) -> None:
    """Mean reward of kept groups over many steps, against its exact expectation given that a group is mixed."""
    probabilities, n = [0.05, 0.3, 0.7, 0.98], 4
    mixed = [1 - p**n - (1 - p) ** n for p in probabilities]
    expected_mean = [
        sum(k / n * math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(1, n)) / m
        for p, m in zip(probabilities, mixed, strict=True)
    ]
    expected = np.average(expected_mean, weights=mixed)
    source = collector(config(samples=n), [round(p, 3) for p in probabilities] * 5, tokenizer)
    means = [float(g.rewards.mean()) for step in range(1, 301) for g in source.collect(step).kept]
    error = np.std(means) / math.sqrt(len(means))
    assert len(means) > 2000
    assert abs(np.mean(means) - expected) < 4 * error


def test_equal_groups_are_replaced_within_bounds(tokenizer: PreTrainedTokenizerFast) -> None:
    for rounds in (0, 1, 3):
        engine = Scripted()
        settings = config(resample_rounds=rounds)
        collected = collector(settings, [0.0, 0.0, 0.0, 0.5], tokenizer, engine=engine).collect(1)
        assert collected.rounds == len(engine.calls) <= 1 + rounds
        assert sum(engine.calls) == len(collected.sampled)
        assert all(group.mixed for group in collected.kept)
        assert len(collected.kept) + collected.left_over == sum(group.mixed for group in collected.sampled)
        assert len(collected.kept) + collected.missing == 8
        assert collected.missing == 0 or collected.rounds == 1 + rounds
    full = collector(config(resample_rounds=200), [0.0] * 9 + [0.5], tokenizer).collect(1)
    assert (len(full.kept), full.missing) == (8, 0)
    assert 3 < full.rounds < 100, "it goes on until the batch is full, and no longer"
    hopeless = collector(config(), [0.0], tokenizer).collect(1)
    assert (hopeless.kept, hopeless.rounds) == ([], 3)
    row = collected_row(hopeless)
    assert row["groups_missing"] == 8
    assert (row["groups_wrong"], row["groups_mixed"], row["groups_kept"], row["reward"]) == (1, 0, 0, 0)


def test_without_dynamic_sampling_every_group_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    collected = collector(config(dynamic_sampling=False), [0.0, 1.0], tokenizer).collect(1)
    assert (len(collected.kept), collected.rounds, collected.left_over) == (8, 1, 0)


@pytest.mark.parametrize("leftovers", ["discard", "keep"])
def test_left_over_groups_wait_or_are_discarded(tokenizer: PreTrainedTokenizerFast, leftovers: str) -> None:
    settings, probabilities = config(leftovers=leftovers, resample_rounds=8), [0.0, 0.9, 0.9]
    source = collector(settings, probabilities, tokenizer, seed=3)
    step, left_over = 0, 0
    while not left_over:
        step += 1
        left_over = source.collect(step).left_over
    restored = collector(settings, probabilities, tokenizer, seed=3)
    state = json.loads(json.dumps(source.state_dict()))
    tensors = {name: tensor.clone() for name, tensor in source.tensors().items()}
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in empty_waiting(state).items()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == expected
    restored.load_state_dict(state, tensors)
    second, repeated = source.collect(step + 1), restored.collect(step + 1)
    assert [g.step for g in second.kept].count(step) == (left_over if leftovers == "keep" else 0)
    for kept, again in zip(second.kept, repeated.kept, strict=True):
        assert (kept.question, kept.responses, kept.step) == (again.question, again.responses, again.step)
        assert torch.equal(torch.stack(kept.log_probs), torch.stack(again.log_probs))
        assert torch.equal(kept.rewards, again.rewards)


class Reporting(Scripted):
    """Reports two thirds of its responses, the last ones first."""

    def generate(self, *args: Any, finished: Finished | None = None, **kwargs: Any) -> Rollouts:
        rollouts = super().generate(*args, **kwargs)
        assert finished is not None
        responses, stopped = rollouts.responses(), rollouts.stopped.tolist()
        for row in reversed([row for row in range(len(responses)) if row % 3]):
            finished([row], [responses[row]], [stopped[row]])
        return rollouts


def test_groups_are_the_same_if_they_are_verified_during_sampling(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a verifier in worker processes: rewards, kept groups and those that wait are equal over several steps."""
    monkeypatch.setitem(VERIFIERS, "equal", Verifier("operator:eq"))
    monkeypatch.setitem(FORMATS, "marked", Format("Q: {question} A", r"#### (.*)", "equal"))
    settings, probabilities = config(leftovers="keep"), [0.0, 0.4, 0.8, 1.0, 0.1]
    at_once, during = (
        collector(settings, probabilities, tokenizer, seed=5, engine=engine) for engine in (Scripted(), Reporting())
    )
    for step in (1, 2, 3):
        for one, other in zip(at_once.collect(step).kept, during.collect(step).kept, strict=True):
            assert (one.question, one.responses, one.texts) == (other.question, other.responses, other.texts)
            assert torch.equal(one.rewards, other.rewards)
    assert at_once.state_dict() == during.state_dict()
    for source in (at_once, during):
        source._judge.close()


def test_questions_come_in_shuffled_passes_and_resume_from_a_number() -> None:
    sets = [questions([0.1, 0.2, 0.3]), questions([0.5, 0.6])]
    source = Questions(sets, 1)
    drawn = [source.draw().question for _ in range(24)]
    assert set(drawn[::2]) == {"0.1", "0.2", "0.3"}
    for start in range(0, 24, 6):
        assert len(set(drawn[start : start + 6 : 2])) == 3
    assert len({tuple(drawn[start : start + 6 : 2]) for start in range(0, 24, 6)}) > 1
    later = Questions(sets, 1)
    later.drawn = 11
    assert [later.draw().question for _ in range(13)] == drawn[11:]


def test_a_response_that_the_limit_cut_has_reward_0_whatever_it_says(tokenizer: PreTrainedTokenizerFast) -> None:
    class Cut(Scripted):
        def generate(self, *args: Any, **kwargs: Any) -> Rollouts:
            rollouts = super().generate(*args, **kwargs)
            return replace(rollouts, stopped=torch.arange(len(rollouts.lengths)) % 2 == 0)

    (group,) = collector(config(samples=4), [1.0], tokenizer, engine=Cut()).sample(questions([1.0]), step=1, seed=(0,))
    assert group.rewards.tolist() == [1, 0, 1, 0]


def test_a_verifier_that_fails_costs_one_sample(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hang, an exception, NaN, a dead process, a long answer: reward 0, counted, and the others are judged."""
    (tmp_path / "failing.py").write_text(
        "import os, time\n"
        "def verify(answer, reference):\n"
        "    if reference == 'hang': time.sleep(60)\n"
        "    if reference == 'raise': raise RuntimeError('no')\n"
        "    if reference == 'nan': return float('nan')\n"
        "    if reference == 'die': os._exit(3)\n"
        "    print('noise')\n"
        "    return answer == reference\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(VERIFIERS, "failing", Verifier("failing:verify", 1.0))
    monkeypatch.setitem(FORMATS, "failing", Format("{question}", r"#### (.*)", "failing"))
    monkeypatch.setitem(VERIFIERS, "short", Verifier("failing:verify", 1.0, longest=0))
    monkeypatch.setitem(FORMATS, "short", Format("{question}", r"#### (.*)", "short"))
    references = ("1", "hang", "raise", "nan", "die", "1")
    asked = [Question("t", "x 1.0", reference, "failing") for reference in references]
    asked.append(Question("t", "x 1.0", "1", "short"))
    failures = {"timeout": 0, "error": 0, "too_long": 0}
    with Judge(2) as judge:
        stream = Questions([asked], 0)
        source = Collector(config(samples=2), Scripted(), judge, tokenizer=tokenizer, questions=stream, seed=0)
        monkeypatch.setattr("pipelines.grpo.collection.encode", lambda *_: [0, *map(ord, "Q: 1.0 A")])
        groups = source.sample(asked, step=1, seed=(0,), failures=failures)
    assert [g.rewards.tolist() for g in groups] == [[1, 1], [0, 0], [0, 0], [0, 0], [0, 0], [1, 1], [0, 0]]
    assert failures == {"timeout": 2, "error": 6, "too_long": 2}


# Diagnostics


def real_groups(n: int = 64, temperature: float = 1.0) -> list[Group]:
    model = tiny(scale=3.0)
    rollouts = generate(model, [[5], [9, 2]], Sampling(temperature, 1.0, 12), n=n, seed=(1,))
    responses = rollouts.responses()
    groups = []
    for i, prompt in enumerate(([5], [9, 2])):
        rows = range(i * n, (i + 1) * n)
        groups.append(
            Group(
                question=questions([0.5])[0],
                prompt=list(prompt),
                responses=[responses[row] for row in rows],
                log_probs=[rollouts.log_probs[row, : len(responses[row])] for row in rows],
                texts=[""] * n,
                rewards=torch.tensor([float(len(responses[row]) % 2) for row in rows]),
                stopped=rollouts.stopped[list(rows)],
                lengths=rollouts.lengths[list(rows)],
                owners=[0] * n,
                step=1,
            )
        )
    return groups


def distributions(model: Qwen3ForCausalLM, groups: list[Group]) -> torch.Tensor:
    """log pi [tokens, V] at every response token, by the forward pass of `transformers`, in float64."""
    log_probs = []
    for g in groups:
        rows = [g.prompt + response for response in g.responses]
        width = max(map(len, rows))
        with torch.no_grad():
            logits = model(torch.tensor([row + [0] * (width - len(row)) for row in rows])).logits.double()
        log_probs += [logits[i, len(g.prompt) - 1 : len(row) - 1].log_softmax(-1) for i, row in enumerate(rows)]
    return torch.cat(log_probs)


def test_the_sampled_entropy_estimates_the_exact_one() -> None:
    groups = real_groups(800)
    p = distributions(tiny(scale=3.0), groups)
    exact = -(p.exp() * p).sum(-1)
    surprisal = torch.cat([log_probs for g in groups for log_probs in g.log_probs])
    error = (surprisal.std() / math.sqrt(len(surprisal))).item()
    assert abs(sampled_entropy(groups) - exact.mean().item()) < 5 * error


def measured_divergence(reference: Qwen3ForCausalLM, groups: list[Group], seed: Sequence[int]) -> float:
    policy = Policy(reference)
    return divergence_from(policy, groups, config(), seed=seed, division=Division(policy, SINGLE_PROCESS, 16384))


def test_the_divergence_from_the_start_is_zero_at_the_start_and_right_elsewhere() -> None:
    groups = real_groups(100)
    policy, other = tiny(scale=3.0), tiny(scale=2.9)
    assert measured_divergence(policy, groups, seed=(0,)) < 1e-9
    estimates = [measured_divergence(other, groups, seed=(i,)) for i in range(20)]
    p, q = (distributions(model, groups) for model in (policy, other))
    assert np.mean(estimates) == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=0.3)


def test_forking_tokens_are_the_fifth_with_the_highest_entropy(tokenizer: PreTrainedTokenizerFast) -> None:
    model, groups = tiny(scale=3.0), real_groups(8)
    policy = Policy(model)
    division = Division(policy, SINGLE_PROCESS, 16384)
    rows = forking_tokens(policy, groups, config(), tokenizer=tokenizer, step=7, division=division)
    p = distributions(model, groups)
    entropies = -(p.exp() * p).sum(-1).numpy()
    threshold = np.quantile(entropies, 0.8)
    assert rows[0]["threshold"] == pytest.approx(threshold, abs=1e-3)
    assert rows[0]["entropy"] == pytest.approx(np.mean(entropies), abs=1e-3)
    by_token = [row for row in rows if row["by"] == "token"]
    by_position = [row for row in rows if row["by"] == "position"]
    assert sum(row["gradient"] for row in by_position) == pytest.approx(1, abs=1e-5)
    assert sum(row["share"] for row in by_position) == pytest.approx(1)
    assert sum(row["gradient"] for row in by_token) <= rows[0]["gradient"] + 1e-6
    assert all(row["entropy"] > threshold - 1e-6 for row in by_token)
    assert {row["step"] for row in rows} == {7}
    json.dumps(rows)


@pytest.mark.parametrize("limit", [40, 16384])
def test_forking_tokens_by_token_and_by_tenth_of_the_response(tokenizer: PreTrainedTokenizerFast, limit: int) -> None:
    """Against a list of all tokens, however the work is cut into micro-batches."""
    model, groups = tiny(scale=3.0), real_groups(8)
    policy = Policy(model)
    division = Division(policy, SINGLE_PROCESS, limit)
    rows = forking_tokens(policy, groups, config(), tokenizer=tokenizer, step=7, division=division)
    responses = [response for g in groups for response in g.responses]
    tokens = [(token, i, 10 * i // len(response)) for response in responses for i, token in enumerate(response)]
    p = distributions(model, groups)
    entropies = -(p.exp() * p).sum(-1).numpy()
    forking = [tokens[i] for i in np.flatnonzero(entropies > np.quantile(entropies, 0.8))]
    by_token = {row["token"]: row for row in rows if row["by"] == "token"}
    assert len(by_token) > 3
    for token, row in by_token.items():
        places = [place for other, place, _ in forking if tokenizer.decode([other]) == token]
        assert row["count"] == len(places)
        assert row["position"] == pytest.approx(np.mean(places))
    shares = [row["share"] for row in rows if row["by"] == "position"]
    expected = np.bincount([tenth for _, _, tenth in forking], minlength=10) / len(forking)
    assert shares == pytest.approx(list(expected))


def test_divergence_and_forking_tokens_are_of_the_distribution_at_the_temperature(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model, groups, settings = tiny(scale=3.0), real_groups(16, temperature=0.5), config(temperature=0.5)
    policy = Policy(model)
    division = Division(policy, SINGLE_PROCESS, 16384)
    assert divergence_from(policy, groups, settings, seed=(0,), division=division) < 1e-9
    summary = forking_tokens(policy, groups, settings, tokenizer=tokenizer, step=1, division=division)[0]
    p = (distributions(model, groups) / 0.5).log_softmax(-1)
    assert summary["entropy"] == pytest.approx(-(p.exp() * p).sum(-1).mean().item(), abs=1e-3)


def test_a_response_that_is_not_in_the_loss_has_no_forking_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    policy, groups = Policy(tiny(scale=3.0)), real_groups(8)
    division = Division(policy, SINGLE_PROCESS, 16384)
    found = []
    for filler in (5, 9):
        for g in groups:
            g.stopped[0] = False
            g.responses[0] = [filler] * int(g.lengths[0])
        settings = config(overlong="filter")
        found.append(forking_tokens(policy, groups, settings, tokenizer=tokenizer, step=7, division=division))
    assert found[0] == found[1]


def test_the_columns_of_two_groups_by_hand() -> None:
    """Rewards 1, 1/2 and 0, 1/4 of responses of 2, 4, 8 and 6 tokens, of which the limit cut the last."""
    first = made_group([1, 2], [[6] * 2, [6] * 4], [1.0, 0.5])
    second = made_group([1, 2, 3, 4], [[6] * 8, [6] * 6], [0.0, 0.25], stopped=(True, False))
    failures = {"timeout": 1, "error": 2, "too_long": 3}
    row = collected_row(Collected([first], [first, second], rounds=2, left_over=1, missing=3, failures=failures))
    expected = {
        **{"reward": 0.4375, "reward_std": (0.5 + 0.25) / math.sqrt(2) / 2, "reward_spread": 0.625 / math.sqrt(2)},
        **{"entropy": 2.0, "prompt_length": 3.0, "response_length": 5.0, "truncated": 0.25},
        **{"length_p10": 2.6, "length_p50": 5.0, "length_p90": 7.4, "length_right": 3.0, "length_wrong": 7.0},
        **{"length_reward_correlation": -0.75 / (2 * math.sqrt(0.15625)), "pass@2": 0.5},
        **{"groups": 2, "groups_right": 0.5, "groups_wrong": 0.5, "groups_mixed": 1.0, "groups_kept": 1},
        **{"groups_left_over": 1, "groups_missing": 3, "rounds": 2},
        **{"verifier_timeouts": 1, "verifier_errors": 2, "verifier_too_long": 3},
    }
    assert row == pytest.approx(expected)


def test_the_correlation_of_length_and_reward_is_within_groups() -> None:
    lengths = torch.tensor([[1.0, 2, 3], [10, 20, 30]])
    assert correlation(lengths, lengths) == pytest.approx(1)
    # Between groups longer is better, within groups it is worse: only the latter counts.
    assert correlation(lengths, torch.tensor([[0.2, 0.1, 0.0], [1.0, 0.9, 0.8]])) < -0.7
    assert math.isnan(correlation(lengths, torch.zeros(2, 3)))  # there is none to measure


def history(*parts: tuple[int, float, float, float]) -> list[dict[str, float]]:
    return [{"reward": r, "entropy": e, "response_length": size} for n, r, e, size in parts for _ in range(n)]


def test_collapse_is_distinguished_from_success() -> None:
    settings = config()
    start = (5, 0.3, 1.0, 20.0)
    assert collapsed(history(start), settings) is None
    early = history((4, 0.3, 1.0, 20.0), (5, 0.1, 0.01, 1.0))  # one step too early: the last five have collapsed
    assert collapsed(early, settings) is None
    assert collapsed(history(start, (5, 0.3, 0.05, 20.0)), settings) == "entropy"
    assert collapsed(history(start, (5, 0.97, 0.05, 20.0)), settings) is None
    assert collapsed(history(start, (5, 0.3, 0.9, 5.0)), settings) == "length"
    assert collapsed(history(start, (5, 0.5, 0.9, 5.0)), settings) is None
    assert collapsed(history(start, (20, 0.4, 0.5, 18.0)), settings) is None


def test_entropy_lost_per_reward_gained() -> None:
    assert entropy_fall(history((5, 0.2, 1.0, 9), (5, 0.6, 0.4, 9))) == pytest.approx(1.5)
    assert math.isnan(entropy_fall(history((5, 0.2, 1.0, 9), (5, 0.2, 0.4, 9))))
    assert math.isnan(entropy_fall(history((5, 0.2, 1.0, 9))))


@pytest.mark.parametrize("steps", [1, 5, 6, 9, 10])
def test_no_entropy_per_reward_is_given_before_ten_steps(steps: int) -> None:
    """The first five and the last five steps may not overlap."""
    rows = [{"reward": 0.1 * step, "entropy": 2.0 - 0.1 * step} for step in range(steps)]
    assert entropy_fall(rows) == pytest.approx(1.0 if steps == 10 else math.nan, nan_ok=True)


def test_the_divergence_is_measured_on_responses_that_the_seed_draws() -> None:
    groups, other = real_groups(100), tiny(scale=2.9)
    assert measured_divergence(other, groups, seed=(1,)) == measured_divergence(other, groups, seed=(1,))
    assert len({measured_divergence(other, groups, seed=(i,)) for i in range(4)}) == 4
