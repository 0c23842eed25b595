"""Processes that tests kill, or that work together: forked from one that has imported what stages need, and forks the
workers of `shaping-run` too. A fresh one takes eight seconds of a core for that."""

import multiprocessing

from sweeps.execute.fork_server import PRELOAD

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(PRELOAD)
