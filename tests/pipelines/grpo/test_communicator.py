"""What is raised on each rank when one of them fails or is asked to stop."""

from collections.abc import Callable

import pytest
import torch.distributed as dist

from pipelines.errors import Interrupted, StageFailure
from pipelines.grpo.communicator import Communicator

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
