"""Ending a process that has imported torch, transformers and Lightning: at once, without unloading them.

Python needs two seconds to unload them, most of the time of a short stage run that has a process to itself.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quick_exit() -> Iterator[None]:
    """Wrap a whole program, which then ends without unloading modules.

    Threads are joined, exit handlers run and output is flushed as usual, and the exit status is the same (1 after
    Ctrl-C). Enter this context before anything registers exit handlers.
    """
    status = 1

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(end)  # the handler that is registered first runs last
    try:
        yield
        status = 0
    except SystemExit as request:
        status = request.code if isinstance(request.code, int) else int(request.code is not None)
        raise
