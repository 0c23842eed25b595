"""A program that ends without unloading has the output and exit status of any other."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, sys, threading, time
sys.path.insert(0, os.getcwd())
class Heavy:
    def __del__(self):
        print("unloaded")
{enter}
    heavy = Heavy()
    heavy.itself = heavy
    atexit.register(print, "exit handler")
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    print("work", end=" ")
    {end}
"""


def run_program(end: str, enter: str) -> tuple[int, str, str]:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(enter=enter, end=end)], capture_output=True, text=True, check=False
    )
    return finished.returncode, finished.stdout, finished.stderr.splitlines()[-1] if finished.stderr else ""


ENDS = ["pass", "sys.exit()", "sys.exit(0)", "sys.exit(3)", "sys.exit('a message')", "1 / 0", "raise KeyboardInterrupt"]


@pytest.mark.parametrize("end", ENDS)
def test_status_output_threads_and_exit_handlers_are_as_usual(end: str) -> None:
    status, output, last_error_line = run_program(
        end, "from sweeps.execute.quick_exit import quick_exit\nwith quick_exit():"
    )
    usual = run_program(end, "if True:")
    assert output + "unloaded\n" == usual[1] == "work thread\nexit handler\nunloaded\n"
    assert last_error_line == usual[2]
    assert status == (1 if "Keyboard" in end else usual[0])  # Python ends by the signal, quick_exit with status 1
