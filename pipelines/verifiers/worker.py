"""A worker process: imports one verifier's function, then answers requests line by line until its input ends.

Started by `pipelines.verifiers.judge` as `python -P -m pipelines.verifiers.worker module:function READS [SECONDS]`. A
request is a JSON list [answer, reference]; a reply is a number, {"error": ...} or "timeout". If READS is
`conversation`, the answer is the JSON of messages, which the function receives as a list. A coroutine is run to its
end. What the function prints is lost.
With SECONDS, the function runs in a fork of the worker. The kernel kills the fork when one answer has used that much
processor time, and the worker forks again without importing anything.
"""

import asyncio
import inspect
import json
import os
import pkgutil
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TextIO

from pipelines.errors import UserError
from pipelines.processes import die_with_parent


def main() -> None:
    """Serve until standard input ends or the judge's process dies."""
    die_with_parent()
    # Keep standard output for the replies; what the function prints goes to /dev/null.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        verify = _reading(pkgutil.resolve_name(sys.argv[1]), sys.argv[2])
    except UserError as error:
        replies.write(json.dumps({"refused": str(error)}) + "\n")
        return
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    replies.write(json.dumps("ready") + "\n")
    if len(sys.argv) == 3:
        _serve(verify, replies, processor_seconds=0.0)
        return
    # Fork until a child ends for another reason than its processor time.
    while (child := os.fork()) and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGPROF:
        replies.write(json.dumps("timeout") + "\n")
    if not child:
        die_with_parent()
        _serve(verify, replies, processor_seconds=float(sys.argv[3]))


def _reading(function: Callable[..., Any], reads: str) -> Callable[[str, str], float]:
    """The function with what it reads in place of the answer, and its result in place of its coroutine."""

    def verify(answer: str, reference: str) -> float:
        result = function(json.loads(answer) if reads == "conversation" else answer, reference)
        return float(asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result)

    return verify


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _serve(verify: Callable[[str, str], float], replies: TextIO, *, processor_seconds: float) -> None:
    """Answer requests until the input ends; `processor_seconds` is the limit for each, 0 for none."""
    for line in sys.stdin:
        answer, reference = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, processor_seconds)  # SIGPROF, unless handled, ends the process
        try:
            reply: object = float(verify(answer, reference))
        except BaseException as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
