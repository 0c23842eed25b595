"""A verifier that tells who runs it, or how often it was asked, as a fraction, and that spins or dies when told to."""

import os
import signal

asked = 0


def verify(answer: str, reference: str) -> float:
    """By `answer`: `pid` and `parent` give process ids over 2^32 and `count` the calls so far, `spin` never returns,
    `die` ends the process."""
    global asked
    asked += 1
    if answer == "count":
        return asked / 2**32
    while answer == "spin":
        pass
    if answer == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return (os.getpid() if answer == "pid" else os.getppid()) / 2**32
