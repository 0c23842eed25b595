"""Whether a program passes its tests, run in a process that can do nothing else.

The worker that imports this module holds no threads and forks a child for each program. The child gives up, before
it runs a line of the program: processor time, memory, open files and file sizes beyond small limits (setrlimit);
and, by a seccomp filter that it cannot take back, every system call that opens a socket, starts a process, signals
another, traces or mounts, or opens a file for writing, makes, moves or removes one. It has no standard streams, an
empty environment and no descriptor but the pipe for its verdict.

The verdict is a random word that the harness writes once the tests have run to their end, so that `sys.exit()` in the
middle is no pass. The tests see built-in functions and modules as they were before the program ran, so one with its own
`abs` or `numpy.allclose` in their place gains nothing. Where the kernel has Landlock (Linux 5.13), the program reads
Python's own folders and the system's libraries alone; elsewhere files that are readable to the user stay readable. Code
that searches its own interpreter's frames for the word, and answers whose `__eq__` is always true, are not defended
against. Linux on x86-64 or arm64.
"""

import builtins
import contextlib
import ctypes
import errno
import os
import platform
import resource
import secrets
import select
import signal
import struct
import sys
import tempfile
import time
from types import ModuleType

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a thread could not be started in the child, nor may this process hold any
with contextlib.suppress(ImportError):
    import numpy  # noqa: F401 - tests import it (HumanEval+ and MBPP+ compare arrays); a child cannot load its libraries

SECONDS = 4
"""Processor and wall time of one program with its tests."""
MEMORY = 512 << 20
FILES = 16

_DENIED = {
    "x86_64": (
        # socket, connect, sendto, sendmsg, bind, listen, socketpair, accept, io_uring_setup
        *(41, 42, 44, 46, 49, 50, 53, 43, 288, 425),
        # clone, fork, vfork, execve, execveat, clone3, kill, tkill, tgkill, ptrace, process_vm_readv/writev, pidfd_*
        *(56, 57, 58, 59, 322, 435, 62, 200, 234, 101, 310, 311, 424, 434, 438),
        # creat, openat2, rename*, mkdir*, rmdir, link*, symlink*, unlink*, chmod*, chown*, truncate, mknod*, utime*
        *(85, 437, 82, 264, 316, 83, 258, 84, 86, 265, 88, 266, 87, 263, 90, 91, 268, 92, 93, 94, 260, 76, 133, 259),
        # mount, umount2, pivot_root, chroot, setns, unshare, bpf, keyctl, setsid, setpgid, memfd_create
        *(165, 166, 155, 161, 308, 272, 321, 250, 112, 109, 319),
    ),
    "aarch64": (
        *(198, 203, 206, 211, 200, 201, 199, 202, 242, 425),
        *(220, 221, 281, 435, 129, 130, 131, 117, 270, 271, 424, 434, 438),
        *(437, 38, 276, 34, 37, 36, 35, 52, 53, 54, 55, 45, 33),
        *(40, 39, 41, 51, 268, 97, 280, 219, 157, 154, 279),
    ),
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_OPEN = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
"""open and openat, with the place of their flags among the arguments."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

MACHINE = platform.machine()
if platform.system() != "Linux" or MACHINE not in _DENIED:
    raise ImportError(f"the code verifier's sandbox needs Linux on x86_64 or aarch64, not {platform.platform()}")
_LIBC = ctypes.CDLL(None, use_errno=True)


def passes(answer: str, reference: str) -> float:
    """1.0 where the program `answer` followed by the tests `reference` runs to its end without an exception."""
    word = secrets.token_hex(16).encode()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(f"{answer}\n", f"{reference}\n", word, writer)
    os.close(writer)
    try:
        return float(_read(reader, time.monotonic() + SECONDS) == word)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read(reader: int, deadline: float) -> bytes:
    """What the pipe holds when it closes, or nothing where that takes past `deadline`."""
    received = b""
    while len(received) < 64:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return b""
        part = os.read(reader, 64)
        if not part:
            break
        received += part
    return received


def _run(program: str, tests: str, word: bytes, writer: int) -> None:
    """In the child: shut the doors, run, and write the word if everything went well. Does not return."""
    try:
        _enclose(writer)
        names = {"__name__": "__program__", "__builtins__": __builtins__}
        modules = [
            (name, module, dict(vars(module))) for name, module in sys.modules.items() if isinstance(module, ModuleType)
        ]
        exec(compile(program, "<program>", "exec"), names)
        for name, module, content in modules:
            sys.modules[name] = module
            vars(module).update(content)
        for name in set(vars(builtins)) & set(names) - {"__name__", "__builtins__"}:
            del names[name]  # a test's `abs` is the built-in one
        exec(compile(tests, "<tests>", "exec"), names)
        os.write(writer, word)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _enclose(writer: int) -> None:
    os.environ.clear()
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)  # an empty folder that nobody has to remove
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.closerange(3, writer)
    os.closerange(writer + 1, 4096)
    for kind, limit in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    if _LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel does not let a process give up privileges")
    _limit_reading()
    _filter_calls()


NO_NEW_PRIVILEGES = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's calls, alike on both architectures
_READING = 1 << 2 | 1 << 3
"""Reading files, and listing folders."""
READABLE = sorted({os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64")})


def _limit_reading() -> None:
    """Give up reading outside `READABLE`, where the kernel knows how."""
    handled = struct.pack("=Q", _READING)
    ruleset = _LIBC.syscall(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        return
    for path in filter(os.path.isdir, READABLE):
        folder = os.open(path, os.O_PATH)
        _LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", _READING, folder), 0)
        os.close(folder)
    _LIBC.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _filter_calls() -> None:
    """Install the seccomp filter: denied calls fail with EPERM, everything else goes through."""
    load, equal, above, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: LD W ABS; JEQ, JGE, JSET, RET of constants
    deny, allow, kill = 0x00050000 | errno.EPERM, 0x7FFF0000, 0x80000000
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, _ARCHITECTURE[MACHINE]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (above, 0, 1, 0x40000000),  # x86-64's other numbering
        (give, 0, 0, deny),
    ]
    for call in _DENIED[MACHINE]:
        program += [(equal, 0, 1, call), (give, 0, 0, deny)]
    for call, argument in _OPEN[MACHINE]:
        program += [
            (equal, 0, 4, call),
            (load, 0, 0, 16 + 8 * argument),
            (any_bit, 0, 1, _WRITING),
            (give, 0, 0, deny),
            (load, 0, 0, 0),
        ]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    described = Program(len(program), ctypes.addressof(code))
    set_seccomp, filter_mode = 22, 2
    if _LIBC.prctl(set_seccomp, filter_mode, ctypes.byref(described), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses the seccomp filter")
