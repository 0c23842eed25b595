"""Has the permissions of files bind a process of root too, as they bind every other user."""

import ctypes
import os

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
PR_CAPBSET_DROP = 24
CAPABILITY_VERSION = 0x20080522
"""Of `capget` and `capset`: three masks of 64 bits, each in two halves."""


def bind_root() -> None:
    """Give up, for this process and all that it starts, the capabilities that make root ignore permissions.

    Raises `OSError` if the kernel refuses. Has no effect on other users.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    masks = (ctypes.c_uint32 * 6)()
    _succeeded(libc.capget(header, masks))
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        _succeeded(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
        for half in range(3):  # effective, permitted and inheritable, of the capabilities below 32
            masks[half] &= ~(1 << capability)
    _succeeded(libc.capset(header, masks))


def _succeeded(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, f"capabilities: {os.strerror(number)}")
