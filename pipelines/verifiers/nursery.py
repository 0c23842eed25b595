"""The process that programs are forked from: it has the libraries, no secrets, and namespaces of its own.

Started by `pipelines.verifiers.code`, once for each worker, as `python -P -m pipelines.verifiers.nursery WAY` with a
Unix socket as standard input. It serves one program at a time:

* `run` comes with the two ends of pipes that the program reads and writes. A child is forked that is confined before
  it reads the program (`pipelines.verifiers.program`). The reply is {} or {"failure": ...}.
* `seconds`: the reply is the child's processor time so far.
* `end` kills the child; the reply says how it had ended ({"status": exit code,
  "seconds": processor time, "alive": whether it had not ended by itself}).
* `await end` is the same for a child whose pipes are closed: its own end, a moment later, is awaited.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time

from pipelines.processes import die_with_parent
from pipelines.verifiers.confinement import confine, drop_capabilities, keep_descriptors
from pipelines.verifiers.namespaces import enter
from pipelines.verifiers.plain_values import send
from pipelines.verifiers.program import serve

LIBRARIES = (
    "abc", "array", "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math", "numbers", "numpy", "operator",
    "os", "queue", "random", "re", "statistics", "string", "sys", "textwrap", "time", "typing", "unittest",
)  # fmt: skip
"""What programs and tests import most, loaded once; others are loaded when they are imported."""

DYING_SECONDS = 2.0
"""How long the end of a process is awaited: a killed one closes its pipes first, on a busy machine much earlier."""


def load_libraries() -> None:
    """Import `LIBRARIES`; numpy may be missing."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def processor_seconds(process: int) -> float:
    """Returns the processor time that a child has used, with its threads."""
    return time.clock_gettime(~process << 3 | 2)  # the kernel's number for the clock of another process


def _run(pipes: list[int]) -> int:
    """Fork a child that reads a program from the first pipe and answers through the second; returns its number."""
    child = os.fork()
    if child:
        return child
    reader, writer = pipes
    try:
        try:
            die_with_parent()
            keep_descriptors(reader, writer)
            confine()
        except BaseException as error:
            send(writer, {"failure": f"{type(error).__name__}: {error}"})
            os._exit(1)
        serve(reader, writer)
    finally:
        os._exit(1)


def _end(child: int, *, patience: float) -> dict[str, float]:
    given_up = time.monotonic() + patience
    while alive := os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= given_up:
            break
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return {"alive": alive, "status": os.waitstatus_to_exitcode(status), "seconds": usage.ru_utime + usage.ru_stime}


def main() -> None:
    """Serve until the socket closes or the worker dies."""
    die_with_parent()
    control = socket.socket(fileno=os.dup(0))
    reply: object
    try:
        enter(sys.argv[1])
        load_libraries()
        drop_capabilities()
        reply = {}
    except OSError as error:
        reply = {"failure": str(error)}
    gc.freeze()  # children then share the memory of the libraries
    child = 0
    while True:
        control.send(json.dumps(reply).encode())
        request, pipes, _, _ = socket.recv_fds(control, 16, 2)
        reply = {}
        try:
            if request == b"run":
                child = _run(pipes)
            elif request == b"seconds":
                reply = processor_seconds(child)
            elif request in (b"end", b"await end"):
                reply = _end(child, patience=DYING_SECONDS if request == b"await end" else 0.0)
            else:
                return
        except OSError as error:
            reply = {"failure": str(error)}
        finally:
            for pipe in pipes:
                os.close(pipe)


if __name__ == "__main__":
    main()
