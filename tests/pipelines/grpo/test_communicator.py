"""What is raised on each rank when one of them fails or is asked to stop, and how responses travel."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipelines.errors import Interrupted, StageFailure
from pipelines.grpo.communicator import Communicator, _packed, _packed_size

Reason = tuple[bool, str] | None


def work_of(error: Exception | None) -> Callable[[], int]:
    def work() -> int:
        if error is not None:
            raise error
        return 7

    return work


@pytest.mark.parametrize(
    ("own", "other", "kind", "message"),
    [
        (None, (False, "no room"), StageFailure, "rank 1: no room"),
        (None, (True, ""), Interrupted, "another rank was asked to stop"),
        (ValueError("mine"), None, ValueError, "mine"),
        (ValueError("mine"), (False, "no room"), ValueError, "mine"),
        (ValueError("mine"), (True, ""), ValueError, "mine"),
        (Interrupted("asked"), None, Interrupted, "asked"),
        (Interrupted("asked"), (True, ""), Interrupted, "asked"),
        # A failure is told before a request to stop.
        (Interrupted("asked"), (False, "no room"), StageFailure, "rank 1: no room"),
    ],
)
def test_every_rank_ends_and_says_whose_fault_it_is(
    own: Exception | None, other: Reason, kind: type[Exception], message: str, *, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathered(reasons: list[Reason], reason: Reason) -> None:
        reasons[:] = [reason, other]

    monkeypatch.setattr(dist, "all_gather_object", gathered)
    communicator = Communicator(rank=0, ranks=2)
    with pytest.raises(kind) as raised:
        communicator.together(work_of(own))
    assert type(raised.value) is kind
    assert message in str(raised.value)


def test_without_a_fault_the_result_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_gather_object", lambda reasons, reason: None)
    for ranks in (1, 2):
        assert Communicator(ranks=ranks).together(work_of(None)) == 7


@pytest.mark.parametrize("experts", [(0, 0), (3, 2)])
def test_a_packed_response_has_the_size_that_its_receiver_expects(experts: tuple[int, int]) -> None:
    """Its tokens, the bits of its log-probabilities, then the experts of every token that was run: all but the last."""
    layers, active = experts
    routes = torch.arange(8 * layers * active, dtype=torch.int16).view(8, layers, active) if layers else None
    row: Any = SimpleNamespace(
        prompt=[9] * 4, length=5, response=[1, 2, 3, 4, 5], sampler_log_probs=torch.rand(5), experts=routes
    )
    packed = _packed(row)
    assert _packed_size(row, experts) == len(packed) == 10 + 8 * layers * active
    assert packed[:5].tolist() == row.response
    assert torch.equal(packed[5:10].view(torch.float32), row.sampler_log_probs)
    assert packed[10:].tolist() == list(range(8 * layers * active))
