"""Responses are verified while others are sampled, and the result does not depend on when they were reported."""

import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from pipelines.errors import Interrupted, StageFailure
from pipelines.rollouts import Finished, Rollouts, Verified, verified
from pipelines.verifiers import VERIFIERS, Judge, Verifier

SOURCE = """
import asyncio, os, time, zlib
from pathlib import Path

def coin(answer, reference):
    if answer == "slow":
        time.sleep(60)
    if answer == "die":
        os._exit(1)
    if answer.startswith("touch"):
        Path(reference, answer).touch()
    return zlib.crc32(answer.encode()) % 7 / 7

async def awaited(answer, reference):
    await asyncio.sleep(0.001 * (zlib.crc32(answer.encode()) % 5))
    return coin(answer, reference)
"""


@pytest.fixture(params=["coin", "awaited"])
def verifier(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "coins.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(VERIFIERS, "t", Verifier(f"coins:{request.param}", 30.0))
    return "t"


Order = Callable[[Finished, list[list[int]]], None]


def sampled(texts: Sequence[str], report: Order, judge: Judge, *, reference: str = "") -> Verified:
    """Verify responses with these texts, which `report` passes on as it likes; row i is token i."""

    def generate(*, finished: Finished) -> Rollouts:
        report(finished, [[row] for row in range(len(texts))])
        count = torch.ones(len(texts), dtype=torch.int64)
        return Rollouts(torch.arange(len(texts))[:, None], torch.zeros(len(texts), 1), count, count > 0)

    return verified(
        generate,
        judge,
        decode=lambda responses: [texts[response[0]] for response in responses],
        item=lambda row, text, stopped: ("t", text, reference),
    )


def in_parts(seed: int) -> Order:
    """Reports some of the rows, in parts and in any order."""

    def report(finished: Finished, responses: list[list[int]]) -> None:
        rng = random.Random(seed)
        rows = rng.sample(range(len(responses)), rng.randrange(len(responses) + 1))
        while rows:
            part, rows = rows[:3], rows[3:]
            finished(part, [responses[row] for row in part], [True] * len(part))

    return report


def test_verdicts_do_not_depend_on_when_responses_are_reported(verifier: str) -> None:
    texts = [f"answer {i % 9}" for i in range(20)] + ["die"]
    with Judge(3) as judge:
        expected = [(zlib.crc32(text.encode()) % 7 / 7, None) for text in texts[:-1]] + [(0.0, "error")]
        for seed in range(4):
            result = sampled(texts, in_parts(seed), judge)
            assert [tuple(verdict) for verdict in result.verdicts] == expected
            assert result.texts == texts
            assert [item[1] for item in result.items] == texts


def test_a_response_is_verified_while_others_are_sampled(verifier: str, tmp_path: Path) -> None:
    """The next response is sampled only once the verifier has seen the one before."""

    def report(finished: Finished, responses: list[list[int]]) -> None:
        for row, response in enumerate(responses):
            finished([row], [response], [True])
            deadline = time.monotonic() + 60
            while not (tmp_path / f"touch{row}").exists():
                assert time.monotonic() < deadline, "it is not verified before sampling ends"
                time.sleep(0.01)

    with Judge(1) as judge:
        sampled(["touch0", "touch1"], report, judge, reference=str(tmp_path))


def test_a_verifier_that_cannot_be_loaded_ends_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "t", Verifier("no_such_module:verify", 1.0))

    def report(finished: Finished, responses: list[list[int]]) -> None:
        for row, response in enumerate(responses):
            finished([row], [response], [True])
            time.sleep(0.05)
        raise AssertionError("sampling went on")

    with Judge(2) as judge, pytest.raises(StageFailure, match="no_such_module:verify cannot be loaded"):
        sampled([str(i) for i in range(1000)], report, judge)


def children() -> set[str]:
    """Process ids of the workers of this process."""
    return {
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.exists() and path.read_text().rpartition(") ")[2].split()[1] == str(os.getpid())
    }


def test_an_engine_that_fails_does_not_wait_for_the_verifier(verifier: str) -> None:
    def report(finished: Finished, responses: list[list[int]]) -> None:
        finished([0], [responses[0]], [True])
        time.sleep(1)
        raise ValueError("the sampler broke")

    before, began = children(), time.monotonic()
    with pytest.raises(ValueError, match="the sampler broke"), Judge(1) as judge:
        sampled(["slow", "slower"], report, judge)
    assert time.monotonic() - began < 20
    assert children() == before


def test_a_signal_is_noticed_while_verdicts_are_waited_for(verifier: str) -> None:
    asked = threading.Event()
    previous = signal.signal(signal.SIGUSR2, lambda *_: asked.set())
    before, began = children(), time.monotonic()
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGUSR2))
    timer.start()
    try:
        with Judge(2) as judge, judge.verification() as verification:
            verification.add([("t", "slow", ""), ("t", "quick", ""), ("t", "slow", "again")])
            with pytest.raises(Interrupted):
                verification.verdicts(asked.is_set)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR2, previous)
    assert asked.is_set()
    assert time.monotonic() - began < 20
    assert children() == before
