"""Whether a program passes its tests, run in a sandboxed process that can only compute.

The worker that imports this module has no threads and forks a child for each program. Before it runs the program, the
child gives up processor time, memory, open files and file sizes beyond small limits (setrlimit). A seccomp filter that
it cannot remove denies every system call that opens a socket; starts, signals or traces a process; mounts; or opens a
file for writing, makes, moves or removes one. The child has no standard streams, an empty environment and, as its only
descriptor, the pipe for its verdict.

The verdict is a random word that the harness writes after the tests have run to their end, so `sys.exit()` halfway is
not a pass. The tests see built-in functions and modules as they were before the program ran, so a program gains nothing
by replacing `abs` or `numpy.allclose`. With Landlock (Linux 5.13) the program can read only Python's own folders and
the system's libraries; without it, everything the user can read. There is no defence against code that searches its
interpreter's frames for the word, or answers whose `__eq__` is always true. Linux on x86-64 or arm64.

The sandbox is tried when this module is loaded: where it cannot be closed, every program would be wrong, so the import
fails with the reason.
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
from collections.abc import Callable
from types import ModuleType

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # this process may have no threads, and a child cannot start any
with contextlib.suppress(ImportError):
    import numpy  # noqa: F401 - HumanEval+ and MBPP+ compare arrays in their tests, and a child cannot load its libraries

SECONDS = 4
"""Limit on the processor time, and on the wall time, of one program with its tests."""
MEMORY = 512 << 20
"""Bytes of address space."""
FILES = 16
"""Open files."""

_DENIED_CALLS = {
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
    "aarch64": (  # the same calls, by this architecture's numbers
        *(198, 203, 206, 211, 200, 201, 199, 202, 242, 425),
        *(220, 221, 281, 435, 129, 130, 131, 117, 270, 271, 424, 434, 438),
        *(437, 38, 276, 34, 37, 36, 35, 52, 53, 54, 55, 45, 33),
        *(40, 39, 41, 51, 268, 97, 280, 219, 157, 154, 279),
    ),
}
_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_OPEN_CALLS = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
"""open and openat, each with the index of its flags among the arguments."""
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

MACHINE = platform.machine()
if platform.system() != "Linux" or MACHINE not in _DENIED_CALLS:
    raise ImportError(f"the code verifier's sandbox needs Linux on x86_64 or aarch64, not {platform.platform()}")
_LIBC = ctypes.CDLL(None, use_errno=True)


def passes(answer: str, reference: str) -> float:
    """1.0 if the program `answer` followed by the tests `reference` runs to its end without an exception, else 0.0."""
    word = secrets.token_hex(16).encode()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run(f"{answer}\n", f"{reference}\n", word=word, writer=writer)
    os.close(writer)
    try:
        return float(_read(reader, time.monotonic() + SECONDS) == word)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read(reader: int, deadline: float, most: int = 64) -> bytes:
    """At most `most` bytes written to the pipe until it closes, or nothing if it is still open at `deadline`."""
    received = b""
    while len(received) < most:
        seconds_left = deadline - time.monotonic()
        if seconds_left <= 0 or not select.select([reader], [], [], seconds_left)[0]:
            return b""
        part = os.read(reader, most)
        if not part:
            break
        received += part
    return received


def _run(program: str, tests: str, *, word: bytes, writer: int) -> None:
    """In the child: enter the sandbox, run, and write the word if everything went well. Does not return."""
    try:
        _enter_sandbox(writer)
        names = {"__name__": "__program__", "__builtins__": __builtins__}
        # Remember the content of every module, run the program, and undo what it changed before the tests run.
        modules = [
            (name, module, dict(vars(module))) for name, module in sys.modules.items() if isinstance(module, ModuleType)
        ]
        exec(compile(program, "<program>", "exec"), names)
        for name, module, content in modules:
            sys.modules[name] = module
            vars(module).update(content)
        for name in set(vars(builtins)) & set(names) - {"__name__", "__builtins__"}:
            del names[name]  # `abs` in a test is the built-in function
        exec(compile(tests, "<tests>", "exec"), names)
        os.write(writer, word)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _enter_sandbox(writer: int) -> None:
    """Give up everything but computing, reading and writing to `writer`."""
    os.environ.clear()
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)  # the working directory is then empty, and needs no clean-up
    # Point the standard streams at /dev/null and close every other descriptor but `writer`.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.closerange(3, writer)
    os.closerange(writer + 1, 4096)
    for limited, limit in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limited, (limit, limit))
    if _LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel does not let a process give up privileges")
    _restrict_reading()
    _filter_system_calls()


_NO_NEW_PRIVILEGES = 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on both architectures
_READ_RIGHTS = 1 << 2 | 1 << 3
"""Landlock's rights to read files and to list folders."""
READABLE_FOLDERS = sorted({os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64")})


def _restrict_reading() -> None:
    """Give up reading outside `READABLE_FOLDERS`, if the kernel has Landlock."""
    handled = struct.pack("=Q", _READ_RIGHTS)
    ruleset = _LIBC.syscall(_CREATE_RULESET, handled, len(handled), 0)
    if ruleset < 0:
        return
    for path in filter(os.path.isdir, READABLE_FOLDERS):
        folder = os.open(path, os.O_PATH)
        _LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", _READ_RIGHTS, folder), 0)
        os.close(folder)
    _LIBC.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _filter_system_calls() -> None:
    """Install the seccomp filter: denied calls fail with EPERM, all others are allowed.

    A BPF instruction is (code, instructions to skip if true, instructions to skip if false, constant).
    """
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: LD W ABS, JEQ, JGE, JSET, RET
    deny, allow, kill = 0x00050000 | errno.EPERM, 0x7FFF0000, 0x80000000
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, _AUDIT_ARCHITECTURE[MACHINE]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the number of the call
        (at_least, 0, 1, 0x40000000),  # x86-64's second set of numbers (x32)
        (give, 0, 0, deny),
    ]
    for call in _DENIED_CALLS[MACHINE]:
        program += [(equal, 0, 1, call), (give, 0, 0, deny)]
    # open and openat are denied if their flags allow writing; afterwards the number of the call is loaded again.
    for call, argument in _OPEN_CALLS[MACHINE]:
        program += [
            (equal, 0, 4, call),
            (load, 0, 0, 16 + 8 * argument),
            (any_bit, 0, 1, _WRITE_FLAGS),
            (give, 0, 0, deny),
            (load, 0, 0, 0),
        ]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    installed = Program(len(program), ctypes.addressof(code))
    set_seccomp, filter_mode = 22, 2
    if _LIBC.prctl(set_seccomp, filter_mode, ctypes.byref(installed), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses the seccomp filter")


def check_sandbox() -> None:
    """Try the sandbox in a child. Raises `ImportError` with the reason if programs cannot run in it, or can get out."""
    # The child enters the sandbox, tries to get out of it, and sends what it found.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _enter_sandbox(writer)
            problem = _way_out() or "none"
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        os.write(writer, problem.encode()[:500])
        os._exit(0)
    os.close(writer)
    try:
        problem = _read(reader, time.monotonic() + SECONDS, 500).decode() or "its process died"
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    # Programs that are right must also pass in it.
    if problem == "none" and not passes("value = 1", "assert value == 1"):
        problem = "a right program does not pass its tests"
    if problem != "none":
        raise ImportError(f"programs cannot be confined on this machine: {problem}")


def _way_out() -> str | None:
    """In the child: what the sandbox should deny and does not, or None."""
    attempts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("start a process", lambda: os.fork() or os._exit(0)),
        ("open a file for writing", lambda: os.open(os.devnull, os.O_WRONLY)),
        ("send a signal", lambda: os.kill(os.getpid(), 0)),
        ("open a socket", _open_socket),
    )
    for name, attempt in attempts:
        try:
            attempt()
        except PermissionError:
            continue
        return f"a program can {name}"
    return None


def _open_socket() -> None:
    if _LIBC.socket(1, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "socket")


check_sandbox()
