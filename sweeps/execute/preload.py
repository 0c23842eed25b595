"""What the fork server imports once, so that no worker has to. Importing this module does the work."""

import atexit
import gc
import os
import signal

from submitit.core.plugins import get_job_environments

from sweeps.execute import local_executor, worker  # noqa: F401

# A closed terminal, systemd and timeout signal the whole group; the server must outlive the workers' saving of states.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
gc.disable()  # what is imported stays, and collections take a sixth of the time of importing; workers enable it again
get_job_environments()  # asks every installed package for plugins of submitit and remembers the answer
worker.package_versions()  # reads the metadata of the packages and remembers it
atexit.register(os._exit, 0)  # unloading the libraries at the end would keep a core busy for two seconds
