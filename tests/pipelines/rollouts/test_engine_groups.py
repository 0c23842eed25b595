"""Four gloo processes in two groups that share an engine each: they sample what one process samples, once.

The engine is ours for vLLM, with a fake vLLM of which every token needs all ranks of the group.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipelines.configuration.compute import ComputeConfig
from pipelines.configuration.grpo import GRPOConfig
from pipelines.data.questions import Question
from pipelines.errors import Interrupted, StageFailure, UserError
from pipelines.grpo.collection import Collector, Questions
from pipelines.grpo.communicator import Communicator
from pipelines.rollouts import EngineSetting, Sampling, load_engine
from pipelines.rollouts.engine_groups import SINGLE, EngineGroup, Lockstep, check_groups, engine_group
from pipelines.rollouts.expert_replay import NOT_RECORDED
from pipelines.rollouts.vllm_engine import VLLMEngine, whole_record
from pipelines.stage_context import Ranks
from pipelines.tasks.formats import FORMATS, Format
from pipelines.verifiers import VERIFIERS, Judge, Verifier
from sweeps.compose.cells import compose_cell
from tests.pipelines.rollouts.test_transformers_engine import tiny
from tests.ranks import run_ranks

SAMPLES = 3


class StandIn:
    """In place of `vllm.LLM`: responses are functions of their seeds, and a step checks that its group is in step."""

    def __init__(self, group: EngineGroup) -> None:
        self.llm_engine, self._group, self._running = self, group, {}

    def enqueue(self, requests: Sequence[Any], parameters: Sequence[Any], *, use_tqdm: bool) -> list[str]:
        """Take the requests; returns their numbers inside the engine."""
        numbers = [f"{i}-inside" for i in range(len(requests))]
        asked = zip(requests, parameters, strict=True)
        self._running = {str(i): (request, wanted, 0) for i, (request, wanted) in enumerate(asked)}
        return numbers

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def step(self) -> list[Any]:
        """One more token of each response; returns those that have ended, as vLLM does."""
        state = [[number, request["prompt_token_ids"], p.seed, t] for number, (request, p, t) in self._running.items()]
        if self._group.size > 1:
            states: list[Any] = [None] * self._group.size
            dist.all_gather_object(states, state, group=self._group.process_group)
            assert all(other == state for other in states), "the ranks of a group are not in step"
        outputs = []
        for number, (request, wanted, tokens) in list(self._running.items()):
            self._running[number] = (request, wanted, tokens + 1)
            if tokens + 1 == 1 + wanted.seed % 5:
                del self._running[number]
                drawn = [(wanted.seed + len(request["prompt_token_ids"]) + j) % 50 + 1 for j in range(tokens + 1)]
                log_probs = [{token: SimpleNamespace(logprob=-token / 64)} for token in drawn]
                # Of all tokens but the last, one expert of 4 in each of two layers.
                computed = len(request["prompt_token_ids"]) + tokens
                experts = np.arange(computed, dtype=np.uint8)[:, None, None] % 4 + np.zeros((1, 2, 1), np.uint8)
                sample = SimpleNamespace(
                    token_ids=drawn, logprobs=log_probs, finish_reason="stop", routed_experts=experts
                )
                outputs.append(SimpleNamespace(finished=True, request_id=number, outputs=[sample]))
        return outputs

    def abort_request(self, numbers: Sequence[str], *, internal: bool) -> None:
        self._running = {}


def engine_over_stand_in(size: int, *, routed: bool = False) -> VLLMEngine:
    """Our engine of a group of `size` ranks, without vLLM; `routed`: it gives experts."""
    engine = VLLMEngine.__new__(VLLMEngine)
    parts: dict[str, Any] = {"_group": engine_group(size), "_ends": [0], "_tokenizer": None, "_routed": routed}
    parts |= {"_vllm": SimpleNamespace(SamplingParams=lambda **options: SimpleNamespace(**options))}
    vars(engine).update(parts | {"_llm": StandIn(parts["_group"])})
    return engine


class Words:
    """A tokenizer in which a token is its number."""

    def batch_decode(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


def odd(answer: str, reference: str) -> float:
    """Right for an odd number of tokens."""
    return float(len(answer.split()) % 2)


def collector(communicator: Communicator, size: int, interrupted: Callable[[], bool] = lambda: False) -> Collector:
    """Of groups of `SAMPLES` responses by an engine that `size` ranks share."""
    VERIFIERS["odd"] = Verifier(f"{__name__}:odd", in_process=True)
    FORMATS["odd"] = Format("{question}", str, "odd")
    config = GRPOConfig(steps=1, milestones=1, tasks=["t"], prompts=3, samples=SAMPLES, max_new_tokens=6)
    questions = [Question("t", "q" * (1 + i), "", "odd") for i in range(5)]
    words: Any = Words()
    return Collector(
        config,
        engine_over_stand_in(size),
        Judge(),
        tokenizer=words,
        prompts=lambda texts: [[7] * len(text) for text in texts],
        questions=Questions([questions], 0),
        seed=3,
        communicator=communicator,
        interrupted=interrupted,
    )


def collect_as(ranks: Ranks, folder: Path, size: int) -> None:
    """Write down the groups of three calls: of a whole step, and of fewer responses than there are ranks."""
    if ranks.tasks > 1:
        dist.init_process_group("gloo")
    own = collector(Communicator(ranks.rank, ranks.tasks), size)
    everything = engine_over_stand_in(size).generate([[1], [2, 3]], Sampling(1.0, 1.0, 6), n=3, seed=(5,))
    assert (
        everything.responses()
        == engine_over_stand_in(1).generate([[1], [2, 3]], Sampling(1.0, 1.0, 6), n=3, seed=(5,)).responses()
    )
    groups = own.collect(1).sampled + own.sample([Question("t", "one", "", "odd")], step=1, seed=(4,))
    rows = [
        {
            "rewards": group.rewards.tolist(),
            "lengths": group.lengths.tolist(),
            "owners": group.owners,
            "responses": group.responses,
            "log_probs": [part.tolist() for part in group.log_probs],
            "texts": group.texts,
        }
        for group in groups
    ]
    (folder / f"{ranks.tasks}-{ranks.rank}.json").write_text(json.dumps(rows))


@pytest.mark.slow
def test_groups_sample_what_one_process_samples_and_count_it_once(tmp_path: Path) -> None:
    assert run_ranks(4, collect_as, tmp_path, 2) == [0] * 4
    assert run_ranks(1, collect_as, tmp_path, 1) == [0]
    one = json.loads((tmp_path / "1-0.json").read_text())
    ranks = [json.loads((tmp_path / f"4-{rank}.json").read_text()) for rank in range(4)]
    assert len({length for group in one for length in group["lengths"]}) > 2
    for number, expected in enumerate(one):
        for rank in ranks:
            for key in ("rewards", "lengths", "owners"):
                assert rank[number][key] == (expected[key] if key != "owners" else ranks[0][number][key])
        for row in range(SAMPLES):
            # The owner has the tokens, their log-probabilities and the text, and nobody else has.
            owner = ranks[0][number]["owners"][row]
            for key in ("responses", "log_probs", "texts"):
                assert ranks[owner][number][key][row] == expected[key][row]
                assert not any(rank[number][key][row] for index, rank in enumerate(ranks) if index != owner)


def stop_as(ranks: Ranks, folder: Path, *, how: str) -> None:
    """The last rank is asked to stop after a while, or its verdicts fail; every rank writes down how it ended."""
    dist.init_process_group("gloo")
    calls, last = 0, ranks.rank == 3

    def interrupted() -> bool:
        nonlocal calls
        calls += 1
        return how == "signal" and last and calls > 2

    own = collector(Communicator(ranks.rank, ranks.tasks), 2, interrupted)
    if how == "verdict" and last:

        def broken(*arguments: object, **options: object) -> None:
            raise ValueError("no verdict")

        own._tokenizer = SimpleNamespace(batch_decode=broken)  # type: ignore[assignment]
    try:
        own.collect(1)
    except (Interrupted, StageFailure, ValueError) as error:
        (folder / f"{ranks.rank}").write_text(f"{type(error).__name__}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "verdict"])
def test_a_rank_that_stops_ends_its_group_at_the_same_token_and_then_all(tmp_path: Path, how: str) -> None:
    assert run_ranks(4, partial(stop_as, how=how), tmp_path, seconds=120) == [0] * 4
    ends = [(tmp_path / str(rank)).read_text() for rank in range(4)]
    if how == "signal":
        assert {end.partition(":")[0] for end in ends} == {"Interrupted"}
        assert ends[2] == ends[3] == "Interrupted: asked to stop in the rollouts"
    else:
        assert ends == [*["StageFailure: rank 3: no verdict"] * 3, "ValueError: no verdict"]


def gap_as(ranks: Ranks) -> None:
    """Shares of a group with a gap or in the wrong order are refused; empty ones are no gap."""
    dist.init_process_group("gloo")
    group = engine_group(2)
    assert group.whole([range(4, 4), range(4, 6)][ranks.rank]) == range(4, 6)
    assert group.whole([range(2, 6), range(6, 6)][ranks.rank]) == range(2, 6)
    assert group.whole(range(3, 3)) == range(3, 3)
    for shares in ([range(2), range(3, 4)], [range(2, 4), range(2)]):
        with pytest.raises(ValueError, match="not consecutive"):
            group.whole(shares[ranks.rank])
    assert group.any(ranks.rank == 1)
    assert not group.any(False)


@pytest.mark.slow
def test_a_group_knows_all_of_its_samples() -> None:
    assert run_ranks(2, gap_as) == [0, 0]


def test_a_rank_alone_asks_for_its_own() -> None:
    assert engine_group(1) is SINGLE
    assert SINGLE.whole(range(3, 5)) == range(3, 5)
    assert SINGLE.any(True)
    assert not SINGLE.any(False)


def test_only_local_rows_are_reported_and_an_error_waits_for_the_others() -> None:
    seen: list[Any] = []
    lockstep = Lockstep(SINGLE, range(2, 4), interrupted=lambda: False, finished=lambda *ended: seen.append(ended))
    stopped = torch.tensor([False, True, True, False, True])
    lockstep.report([0, 3, 4], [[1], [2], [3]], stopped)
    lockstep.report([1], [[4]], stopped)
    lockstep.report([2], [[5, 6]], stopped)
    assert seen == [([1], [[2]], [False]), ([0], [[5, 6]], [True])]
    assert not lockstep.asked()
    failing = Lockstep(SINGLE, range(2), interrupted=lambda: False, finished=lambda *_: 1 / 0)  # type: ignore[arg-type]
    failing.raise_failure()
    failing.report([0], [[1]], stopped)
    assert failing.asked()
    with pytest.raises(ZeroDivisionError):
        failing.raise_failure()


@pytest.mark.parametrize(
    ("size", "ranks", "told"),
    [
        (2, 3, "compute.tensor_parallel=2: 3 ranks cannot be divided into groups of 2; values that fit: 1, 3"),
        (2, 1, "compute.tensor_parallel=2: 1 ranks cannot be divided into groups of 2; values that fit: 1"),
        (
            3, 6,
            "compute.tensor_parallel=3: the model's 4 heads, 2 of keys and values, cannot be divided by 3 ranks; "
            "values that fit: 1, 2, 4",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_refused(size: int, ranks: int, told: str) -> None:
    model = tiny()
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 2)
    with pytest.raises(UserError) as refused:
        check_groups(size, model, ranks=ranks)
    assert str(refused.value) == told
    for fits in (1, 2, 4):
        check_groups(fits, model, ranks=4)


def test_engines_that_ranks_do_not_share_are_refused() -> None:
    told = "compute.tensor_parallel=2: ranks do not share the engine {}; set it to 1, or grpo.engine=vllm"
    for name in ("transformers", "replica"):
        with pytest.raises(UserError) as refused:
            load_engine(name, tiny(), lambda: 64, setting=EngineSetting(tensor_parallel=2))
        assert str(refused.value) == told.format(name)
        with pytest.raises(UserError) as refused:
            compose_cell([f"grpo.engine={name}", "compute.tensor_parallel=2"])
        assert str(refused.value) == told.format(name)
    assert compose_cell(["grpo.engine=vllm", "compute.tensor_parallel=2"]).compute.tensor_parallel == 2
    assert compose_cell(["until=midtrain", "compute.tensor_parallel=2"]).compute.tensor_parallel == 2
    with pytest.raises(UserError, match=r"compute\.tensor_parallel=0"):
        ComputeConfig(tensor_parallel=0)


def test_the_stand_in_engine_alone() -> None:
    """The rows of a share are those of the whole, as with every engine."""
    engine, sampling = engine_over_stand_in(1), Sampling(1.0, 1.0, 6)
    whole = engine.generate([[1], [2, 3]], sampling, n=3, seed=(5,))
    part = engine.generate([[1], [2, 3]], sampling, n=3, seed=(5,), share=range(2, 5))
    assert part.responses() == whole.responses()[2:5]
    assert torch.equal(part.log_probs, whole.log_probs[2:5])
    assert part.experts is None


def test_experts_are_those_of_all_tokens_but_the_last() -> None:
    engine, prompts = engine_over_stand_in(1, routed=True), [[1], [2, 3]]
    rollouts = engine.generate(prompts, Sampling(1.0, 1.0, 6), n=3, seed=(5,), share=range(2, 5))
    assert rollouts.experts is not None
    for number, size, experts in zip(range(2, 5), rollouts.lengths.tolist(), rollouts.experts, strict=True):
        tokens = len(prompts[number // 3]) + size - 1
        assert experts.dtype == torch.int16
        assert experts.tolist() == [[[t % 4], [t % 4]] for t in range(tokens)]
    marked = whole_record(np.ones((2, 3, 1), np.uint8), 4)
    assert marked[:, 0, 0].tolist() == [1, 1, NOT_RECORDED, NOT_RECORDED]
    assert whole_record(np.ones((5, 3, 1), np.uint8), 4).shape == (4, 3, 1)
    with pytest.raises(StageFailure, match=r"grpo.routing_replay=True: vLLM gives no experts of this model"):
        whole_record(None, 4)


def test_the_stand_in_engine_samples_the_end_of_a_list_as_with_the_whole() -> None:
    engine, sampling, prompts = engine_over_stand_in(1), Sampling(1.0, 1.0, 6), [[1], [2, 3], [4]]
    whole = engine.generate(prompts, sampling, n=3, seed=(5,))
    end = engine.generate(prompts[1:], sampling, n=3, seed=(5,), first=1)
    assert end.responses() == whole.responses()[3:]
    assert engine.generate(prompts[1:], sampling, n=3, seed=(5,)).responses() != end.responses()
