"""Runs a program that does not receive the signals which ask a stage run to stop.

    python -I -S unsignalled.py PROGRAM ARGUMENT...

Slurm sends SIGTERM to every process of a job, whatever its session. W&B's service would end at it while the stage still
saves its state. The signals are ignored before the program starts, and because it installs handlers for them, a seccomp
filter answers those calls without effect. Imports only the standard library, so that it starts in
a moment.
"""

import contextlib
import ctypes
import os
import platform
import signal
import struct
import sys

STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a stage run to stop."""

_MACHINES = {"x86_64": (0xC000003E, 13), "aarch64": (0xC00000B7, 134)}
"""Audit architecture, and the number of the call `rt_sigaction`."""


def ignore_stop_signals() -> None:
    """Have this process, and the program that it becomes, ignore the signals for good; Linux on known machines."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux" and platform.machine() in _MACHINES:
        _keep_dispositions(*_MACHINES[platform.machine()])


def _keep_dispositions(architecture: int, set_action: int) -> None:
    """Install the seccomp filter. A BPF instruction is (code, skip if true, skip if false, constant)."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF: LD W ABS, JEQ, RET
    allow, succeed_without_effect = 0x7FFF0000, 0x00050000
    count = len(STOP_SIGNALS)
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, count + 3, architecture),
        (load, 0, 0, 0),  # the number of the call
        (equal, 0, count + 1, set_action),
        (load, 0, 0, 16),  # its first argument, the signal
        *((equal, count - index, 0, number) for index, number in enumerate(STOP_SIGNALS)),
        (give, 0, 0, allow),
        (give, 0, 0, succeed_without_effect),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    installed = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    libc.prctl(set_seccomp, filter_mode, installed, 0, 0)


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        ignore_stop_signals()
    os.execv(sys.argv[1], sys.argv[1:])
