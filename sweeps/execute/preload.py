"""What the fork server imports once, so that no worker has to: the code of a job, and what it looks up of this Python.

Importing this module does the work; nothing else imports it.
"""

import atexit
import gc
import os

from submitit.core.plugins import get_job_environments

from sweeps.execute import fork_server, worker  # noqa: F401

gc.disable()  # what is imported stays, and looking for garbage among it takes a sixth of the time; workers enable it
get_job_environments()  # asks every installed package for submitit plugins, and remembers
worker.environment()


def _end(server: int) -> None:
    """Ends the fork server at once: taking all the libraries down again takes seconds, and a worker whose command was
    killed goes on until its server is gone."""
    if os.getpid() == server:
        os._exit(0)


atexit.register(_end, os.getpid())
