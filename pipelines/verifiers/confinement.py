"""What a process that runs code of others gives up: everything but computing, reading libraries and its own pipes.

`confine` is irrevocable and needs no privileges. It sets limits (setrlimit), drops all capabilities, restricts reading
to `READABLE_FOLDERS` (Landlock, where the kernel has it) and installs a seccomp filter that allows the listed system
calls and answers all others with EPERM. Namespaces are entered earlier, by `pipelines.verifiers.namespaces`. Linux on
x86-64 or arm64.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

from pipelines.errors import UserError

SECONDS = 4
"""Limit on the processor time of a program, and on that of its tests."""
MEMORY = 512 << 20
"""Bytes of address space."""
FILES = 16
"""Open files."""

MACHINE = platform.machine()
if platform.system() != "Linux" or MACHINE not in ("x86_64", "aarch64"):
    raise UserError(
        f"verifier=code: programs are run only on Linux on x86_64 or aarch64, not on {platform.platform()}: leave out "
        "tasks and benchmarks that are verified by running programs"
    )
LIBC = ctypes.CDLL(None, use_errno=True)


def confine() -> None:
    """Give up, in this process and for good, what a program may not do. Raises `OSError` if the kernel refuses."""
    os.environ.clear()
    os.chdir("/")
    for limited, limit in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limited)
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(limited, (lower, lower))
    drop_capabilities()
    restrict_reading()
    filter_system_calls()


def keep_descriptors(*kept: int) -> None:
    """Point the standard streams at /dev/null and close every other descriptor that is not `kept`."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    last = 2
    for descriptor in sorted(kept):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


def called(result: int, what: str) -> int:
    """Returns the result of a C function, or raises `OSError` with errno if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


_NO_NEW_PRIVILEGES, _DROP_BOUNDING, _AMBIENT, _CLEAR_AMBIENT = 38, 24, 47, 4  # prctl's options
_CAPABILITY_VERSION = 0x20080522


def drop_capabilities() -> None:
    """Give up all capabilities and every way to regain one."""
    for capability in range(64):
        LIBC.prctl(_DROP_BOUNDING, capability, 0, 0, 0)  # refused without privileges, and then not needed
    LIBC.prctl(_AMBIENT, _CLEAR_AMBIENT, 0, 0, 0)
    called(LIBC.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)), "capset")
    called(LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")


# Landlock. Its system calls have the same numbers on all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""Version of Landlock -> every right over files that it can deny, from that version on."""
_READ_RIGHTS = 1 << 2 | 1 << 3
"""To read files and to list folders."""


def landlock_version() -> int:
    """Returns the version of the kernel's Landlock, 0 if it has none."""
    return max(0, LIBC.syscall(_CREATE_RULESET, None, 0, 1))


def readable_folders() -> list[str]:
    """Python's own folders and the system's libraries, with symbolic links resolved."""
    folders = (sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", *os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    return sorted({os.path.realpath(path) for path in folders if os.path.isdir(path)})


READABLE_FOLDERS = readable_folders()  # before `confine` clears the environment


def restrict_reading() -> None:
    """Give up every access to files but reading in `READABLE_FOLDERS`; connections and signals too (Landlock 4, 6)."""
    version = landlock_version()
    if not version:
        return
    files = max(rights for since, rights in _FILE_RIGHTS.items() if since <= version)
    handled = struct.pack("=QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = called(LIBC.syscall(_CREATE_RULESET, handled, len(handled), 0), "Landlock")
    for path in READABLE_FOLDERS:
        folder = os.open(path, os.O_PATH)
        called(LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", _READ_RIGHTS, folder), 0), "Landlock")
        os.close(folder)
    called(LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


# seccomp

SYSTEM_CALLS = {
    # name: numbers on x86-64 and arm64, None where the architecture does not have the call
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "dup": (32, 23), "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29),
    "fstat": (5, 80), "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    "brk": (12, 214), "futex": (202, 98),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "setitimer": (38, 103), "getitimer": (36, 102), "alarm": (37, None),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "restart_syscall": (219, 128), "times": (100, 153),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "sched_yield": (24, 124),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getrusage": (98, 165), "getrlimit": (97, 163),
    "prlimit64": (302, 261), "sched_getaffinity": (204, 123), "uname": (63, 160), "sysinfo": (99, 179),
    "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
"""The calls that a program may make."""

_READING = os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOCTTY | 0o100000  # O_LARGEFILE
_ONLY: dict[str, tuple[tuple[int, str, tuple[int, ...]], ...]] = {
    # name: (word of the arguments, "in" or "mask", values); two words an argument, the lower first
    "open": ((2, "mask", (_READING,)),),
    "openat": ((4, "mask", (_READING,)),),
    "fcntl": ((2, "in", (0, 1, 2, 3, 1030)),),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
    "ioctl": ((2, "in", (0x5401, 0x5413, 0x5450, 0x5451)),),  # TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX
    "prlimit64": ((0, "in", (0,)), (4, "in", (0,)), (5, "in", (0,))),  # of this process, and without a new limit
    "sched_getaffinity": ((0, "in", (0,)),),
}
"""Calls that are allowed only with certain arguments."""
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LOAD, _EQUAL, _ANY_BIT, _GIVE = 0x20, 0x15, 0x45, 0x06  # BPF: LD W ABS, JEQ, JSET, RET
_DENY, _ALLOW, _KILL = 0x00050000 | errno.EPERM, 0x7FFF0000, 0x80000000


def filter_program(machine: str = MACHINE) -> bytes:
    """The filter in BPF. An instruction is (code, instructions to skip if true, if false, constant)."""
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_GIVE, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for name, numbers in SYSTEM_CALLS.items():
        number = numbers[machine == "aarch64"]
        if number is None:
            continue
        body: list[tuple[int, int, int, int]] = []
        for word, kind, values in _ONLY.get(name, ()):
            body.append((_LOAD, 0, 0, 16 + 4 * word))
            if kind == "mask":
                body.append((_ANY_BIT, 0, 1, ~values[0] & 0xFFFFFFFF))
            else:
                body += [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
            body.append((_GIVE, 0, 0, _DENY))
        body.append((_GIVE, 0, 0, _ALLOW))
        lines += [(_EQUAL, 0, len(body), number), *body]
    lines.append((_GIVE, 0, 0, _DENY))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


_FILTER = ctypes.create_string_buffer(filter_program())
_SET_SECCOMP, _FILTER_MODE = 22, 2


def filter_system_calls() -> None:
    """Install the filter: calls that are not allowed fail with EPERM."""
    installed = struct.pack("@HP", (len(_FILTER) - 1) // 8, ctypes.addressof(_FILTER))
    called(LIBC.prctl(_SET_SECCOMP, _FILTER_MODE, installed, 0, 0), "the kernel refuses the seccomp filter")
