"""A worker process: imports one verifying function, then answers requests line by line until its input ends.

Run by `pipelines.verifiers.judge` as `python -m pipelines.verifiers.worker module:function`. A request is a JSON list
[answer, reference], a reply is a number or {"error": ...}. Whatever the function prints goes nowhere.
"""

import ctypes
import importlib
import json
import os
import signal
import sys


def main() -> None:
    """Serve until standard input ends; die with the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
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
    for line in sys.stdin:
        answer, reference = json.loads(line)
        try:
            reply: object = float(verify(answer, reference))
        except BaseException as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
