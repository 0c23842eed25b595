"""The verifiers by name. One is a function (answer, reference) -> reward between 0 and 1, named by where it stands."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verifier:
    """A verifying function and how it is run."""

    function: str
    """`module:function`; a worker process imports it, so this table stays data."""
    seconds: float
    """Time for one answer; then its worker is killed and the reward is 0."""


VERIFIERS: dict[str, Verifier] = {
    "math": Verifier("pipelines.verifiers.mathematics:equivalent", 5.0),
    "code": Verifier("pipelines.verifiers.code:passes", 10.0),
}
"""Name -> verifier that runs in a worker. `exact`, plain equality, needs none. Adding one is adding a line."""

LONGEST_ANSWER = 4096
"""Characters; a longer answer is wrong unread. Parsers take more than linear time on what a broken policy writes."""
