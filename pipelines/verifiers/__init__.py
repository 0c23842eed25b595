"""Verifiers: functions that compare an answer, extracted from a response, with a reference and return a reward.

`registry` lists them and `Judge` runs them: most in worker processes, which are killed when an answer takes too long.
When a verifier raises, hangs or returns NaN, the reward of that sample is 0, the failure is counted, and the run
continues. Imports no torch.
"""

from pipelines.verifiers.judge import Judge, Verdict
from pipelines.verifiers.registry import VERIFIERS, Verifier

__all__ = ["VERIFIERS", "Judge", "Verdict", "Verifier"]
