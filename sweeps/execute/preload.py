"""What the fork server imports once, so that no worker has to. Importing this module does the work."""

import atexit
import gc
import os

from sweeps.execute import fork_server, worker  # noqa: F401

gc.disable()  # what is imported stays, and collections take a sixth of the time of importing; workers enable it again
worker.package_versions()  # reads the metadata of the packages and remembers it
atexit.register(os._exit, 0)  # unloading the libraries at the end would keep a core busy for two seconds
