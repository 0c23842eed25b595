"""Rewards that can be trusted: a registry of verifiers, run where a hang, a crash or a lie costs one sample.

A verifier compares an answer that was extracted from a response with a reference and returns its reward. `exact`
runs in place. The others run in worker processes that are killed when an answer takes too long. Whatever goes wrong -
an exception, a hang, a NaN - the sample's reward is 0, the failure is counted, and the run goes on. Imports no torch.
"""

from pipelines.verifiers.judge import Judge, Verdict
from pipelines.verifiers.registry import VERIFIERS, Verifier

__all__ = ["VERIFIERS", "Judge", "Verdict", "Verifier"]
