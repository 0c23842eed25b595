"""A worker process: imports one verifying function, then answers requests line by line until its input ends.

Run by `pipelines.verifiers.judge` as `python -m pipelines.verifiers.worker module:function [SECONDS]`. A request is a
JSON list [answer, reference], a reply is a number, {"error": ...} or "timeout". What the function prints goes nowhere.
With SECONDS the function runs in a fork of the worker, which the kernel kills when one answer has taken that much time
of the processor, wherever it is stuck; the next fork has everything imported.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TextIO


def main() -> None:
    """Serve until standard input ends; die with the parent."""
    _die_with_parent()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    module, function = sys.argv[1].split(":")
    try:
        verify = getattr(importlib.import_module(module), function)
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    replies.write(json.dumps("ready") + "\n")
    if len(sys.argv) == 2:
        _serve(verify, replies, 0.0)
        return
    while (child := os.fork()) and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGPROF:
        replies.write(json.dumps("timeout") + "\n")
    if not child:
        _die_with_parent()
        _serve(verify, replies, float(sys.argv[2]))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _serve(verify: Callable[[str, str], float], replies: TextIO, seconds: float) -> None:
    """Answer requests until there are none; `seconds` of the processor for each, 0 for no limit."""
    for line in sys.stdin:
        answer, reference = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, unless handled, ends the process
        try:
            reply: object = float(verify(answer, reference))
        except BaseException as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
