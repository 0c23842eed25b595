"""The verifiers by name. One is a function (answer, reference) -> reward between 0 and 1, named by where it stands."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verifier:
    """A verifying function and how it is run."""

    function: str
    """`module:function`; a worker process imports it, so this table stays data."""
    seconds: float
    """Wall time for one answer; then its worker is killed, to be started and to import anew, and the reward is 0."""
    processor_seconds: float | None = None
    """Time of the processor for one answer, for a function that computes in its own process: then a fork of its worker
    is killed and replaced, which takes a moment, and a busy machine makes nothing late."""


VERIFIERS: dict[str, Verifier] = {
    "math": Verifier("pipelines.verifiers.mathematics:equivalent", 10.0, 0.5),  # an answer takes 1.5 ms
    "code": Verifier("pipelines.verifiers.code:passes", 10.0),
}
"""Name -> verifier that runs in a worker. `exact`, plain equality, needs none. Adding one is adding a line."""

LONGEST_ANSWER = 4096
"""Characters; a longer answer is wrong unread. Parsers take more than linear time on what a broken policy writes."""
