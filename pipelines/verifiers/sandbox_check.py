"""The program that is run when the sandbox is loaded: it tries to get out, and uses what right programs use."""

PROGRAM = '''
import ctypes, decimal, errno, fcntl, os, resource, statistics, zoneinfo

libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    # Most arguments are invalid: a call that is not forbidden fails with another error and does nothing.
    if getattr(libc, name)(*arguments) < 0 and ctypes.get_errno() == errno.EPERM:
        raise PermissionError(name)

def read(path):
    with open(path, "rb") as file:
        file.read(1)

ATTEMPTS = {
    "start a process": lambda: os.fork() or os._exit(0),
    "run another program": lambda: call("execve", 0, 0, 0),
    "open a file for writing": lambda: os.open(os.devnull, os.O_WRONLY),
    "make a file": lambda: call("open", b"", os.O_CREAT, 0),
    "make a folder": lambda: call("mkdir", b"", 0),
    "remove a file": lambda: call("unlink", b""),
    "change modes": lambda: call("chmod", b"", 0),
    "change times": lambda: call("utimes", b"", 0),
    "change attributes": lambda: call("setxattr", b"", b"user.x", b"", 0, 0),
    "open a socket": lambda: call("socket", 1, 1, 0),
    "send a signal": lambda: os.kill(os.getpid(), 0),
    "queue a signal": lambda: call("sigqueue", os.getppid(), 0, 0),
    "have signals sent": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, 0),
    "trace a process": lambda: call("ptrace", 16, 0, 0, 0),
    "limit a process": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0)),
    "change its limits": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "change priorities": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
    "choose processors": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "enter namespaces": lambda: call("unshare", 0),
    "mount": lambda: call("mount", 0, 0, 0, 0, 0),
    "change its user": lambda: os.setresuid(-1, -1, -1),
    "read the users of the machine": lambda: read("/etc/passwd"),
    "read an environment": lambda: read("/proc/self/environ"),
}

def ways_out():
    """The attempts that succeed."""
    found = []
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
        except (OSError, ValueError):  # what Python makes of EPERM
            continue
        found.append(name)
    return found

def right(values):
    return sorted({value: str(decimal.Decimal(value)) for value in values}.items())
'''

TESTS = """
ways = ways_out()
assert ways == [], "a program can " + ", ".join(ways)
assert right((3, 1)) == [(1, "1"), (3, "3")], "a right program does not pass its tests"
"""
