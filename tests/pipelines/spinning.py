"""A verifier that tells who runs it, as a fraction, and that spins or dies when it is told to."""

import os
import signal


def verify(answer: str, reference: str) -> float:
    """By `answer`: `pid` and `parent` give process ids over 2^32, `spin` never returns, `die` ends the process."""
    while answer == "spin":
        pass
    if answer == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return (os.getpid() if answer == "pid" else os.getppid()) / 2**32
