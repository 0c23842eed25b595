"""The registry of verifiers.

A verifier of one's own is a plugin (`pipelines.plugins`). To add one here, add an entry to `VERIFIERS`: the judge, the
formats of questions, the configuration of benchmarks and majority votes all read it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verifier:
    """A function (answer, reference) -> reward between 0 and 1, and how it is run."""

    function: str
    """`module:function`. It is imported where it runs, so reading this table imports nothing."""
    seconds: float = 10.0
    """Limit on the wall time of one answer. Past it the worker process is killed and started again, and the reward
    is 0."""
    processor_seconds: float | None = None
    """Limit on the processor time of one answer, for a function that computes in its own process. Cheaper than
    `seconds`, since only a fork of the worker is killed, and no answer times out because the machine is busy."""
    in_process: bool = False
    """Call the function in this process, without limits: only for functions that cannot fail or hang."""
    compares_answers: bool = True
    """Whether the reference is an answer too. If not (tests of a program), there are no majority votes, and a benchmark
    passes the whole program instead of the final answer."""
    packages: tuple[str, ...] = ()
    """Installed packages whose version can change its verdicts."""
    version: int = 1
    """Raise it when the function gives other verdicts: stored answers are then judged again."""
    reads: str = "answer"
    """`answer`: what the format finds in the response; `conversation`: the question and the whole response as
    messages."""
    source: str | None = None
    """Version or hash of a plugin's code; None: ours, whose `version` counts."""
    longest: int | None = 1 << 16
    """Characters of the longest answer that is verified; None: no limit. A longer one has reward 0 and is counted as a
    failure."""


READS = ("answer", "conversation")

VERIFIERS: dict[str, Verifier] = {
    "exact": Verifier("operator:eq", in_process=True, longest=None),
    # An answer takes 0.1 to 5 ms; the parsers' time grows faster than linearly with its length.
    "math": Verifier(
        "pipelines.verifiers.mathematics:equivalent",
        processor_seconds=0.5,
        packages=("math-verify", "latex2sympy2-extended", "sympy"),
        longest=4096,
    ),
    # Processor time decides, so `seconds` is only for what should never happen on a busy machine.
    "code": Verifier("pipelines.verifiers.code:passes", seconds=600.0, compares_answers=False, version=3),
}
