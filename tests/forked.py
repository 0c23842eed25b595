"""Processes for tests that kill them or run several at once.

They are forked from a server that has imported the libraries of the stages, which would take each eight seconds. The
workers of `shaping-run` come from the same server.
"""

import multiprocessing

from sweeps.execute.fork_server import PRELOAD

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(PRELOAD)
