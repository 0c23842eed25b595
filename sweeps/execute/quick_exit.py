"""How a process that has loaded torch, transformers and lightning ends: at once. Python takes two seconds to take them
down again, which for a short stage run in a process of its own is most of the time besides its work."""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """The whole of a program, which then ends without taking anything down: threads are waited for, exit handlers run
    and output is flushed as ever, and the exit status is the same (1 for an interrupt).

    Enter it before what has exit handlers of its own.
    """
    status = 1

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(end)  # the first to be registered is the last to run
    try:
        yield
        status = 0
    except SystemExit as asked:
        status = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
        raise
