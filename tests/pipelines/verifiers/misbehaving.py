"""A verifier that reports its process or its number of calls as a fraction, and that hangs or dies on request."""

import os
import signal

calls = 0


def verify(answer: str, reference: str) -> float:
    """Returns, over 2^32: the process id for `pid`, the parent's for `parent`, the calls so far for `count`.

    `spin` never returns and `die` ends the process.
    """
    global calls
    calls += 1
    if answer == "count":
        return calls / 2**32
    while answer == "spin":
        pass
    if answer == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return (os.getpid() if answer == "pid" else os.getppid()) / 2**32
