"""A child that calls `die_with_parent` does not outlive a killed parent."""

import os
import select
import signal
import subprocess
import sys

import pytest

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
child.wait()
"""
CHILD = """
import os, time
from pipelines.processes import die_with_parent
{call}
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a feature of the Linux kernel")
@pytest.mark.parametrize("dies", [True, False])
def test_the_child_of_a_killed_parent(dies: bool) -> None:
    child_code = CHILD.format(call="die_with_parent()" if dies else "")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, child_code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    descriptor = os.pidfd_open(child)
    try:
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        # A process descriptor becomes readable when its process ends.
        ended = bool(select.select([descriptor], [], [], 10 if dies else 0.5)[0])
        assert ended == dies
    finally:
        if not dies:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
        parent.stdout.close()
