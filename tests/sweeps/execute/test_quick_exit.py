"""A program that ends at once says and leaves what any other does."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, sys, threading, time
sys.path.insert(0, os.getcwd())
class Heavy:
    def __del__(self):
        print("taken down")
{enter}
    kept = Heavy()
    kept.itself = kept
    atexit.register(print, "exit handler")
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    print("work", end=" ")
    {end}
"""


def end_of(end: str, enter: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(enter=enter, end=end)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr.splitlines()[-1] if done.stderr else ""


ENDS = ["pass", "sys.exit()", "sys.exit(0)", "sys.exit(3)", "sys.exit('a word')", "1 / 0", "raise KeyboardInterrupt"]


@pytest.mark.parametrize("end", ENDS)
def test_status_output_threads_and_handlers_are_those_of_any_program(end: str) -> None:
    status, output, complaint = end_of(end, "from sweeps.execute.quick_exit import quick_exit\nwith quick_exit():")
    plain = end_of(end, "if True:")
    assert output + "taken down\n" == plain[1] == "work thread\nexit handler\ntaken down\n"
    assert complaint == plain[2]
    assert status == (1 if "Keyboard" in end else plain[0])  # Python ends by the signal; here it is a failure
