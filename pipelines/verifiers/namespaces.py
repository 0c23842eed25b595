"""How the process that runs programs gets user, mount, pid, network, IPC, host-name and cgroup namespaces of its own.

Its root then holds nothing but `READABLE_FOLDERS`, the package that it runs and /dev/null, all read-only, and no /proc.
bubblewrap does it where it is installed; `enter` does the same with system calls. Where the kernel allows neither, the
process stays where it is, and only `pipelines.verifiers.confinement` confines programs.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

from pipelines.processes import die_with_parent
from pipelines.verifiers.confinement import LIBC, MACHINE, READABLE_FOLDERS, called

PACKAGE = Path(__file__).parents[1]
_USER = 65534
"""User and group in the namespace: nobody."""
_LINKED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Symbolic links into /usr on most systems; programs are linked against /lib64/ld-linux-x86-64.so.2."""


def folders() -> list[str]:
    """Every path that the private root contains, parents first, under each name by which Python knows it."""
    names = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(PACKAGE), *READABLE_FOLDERS}
    names |= {path for path in _LINKED if os.path.isdir(path) and not os.path.islink(path)}
    executable = Path(sys.executable)
    while executable.is_symlink():  # python -> python3 -> /opt/python/bin/python3.11
        executable = executable.parent / executable.readlink()
        names.add(str(executable.parent))
    paths = sorted(os.path.abspath(name) for name in names if os.path.isdir(name))
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def ways(command: list[str]) -> dict[str, list[str]]:
    """How to start `command` in namespaces, the closest first: name -> the command to run.

    `command` calls `enter` with its last argument, which is one of `bwrap`, `namespaces`, `no root` and `none`.
    """
    ways = {way: [*command, way] for way in ("namespaces", "no root", "none")}
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        return ways
    options = ["--unshare-all", "--unshare-user", "--uid", str(_USER), "--gid", str(_USER)]
    options += ["--die-with-parent", "--as-pid-1", "--cap-drop", "ALL", "--dev", "/dev", "--chdir", "/"]
    for path in folders():
        options += ["--ro-bind", path, path]
    for path in _LINKED:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
    options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--remount-ro", "/"]
    return {"bwrap": [bubblewrap, *options, "--", *command, "bwrap"]} | ways


_NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS and NEWCGROUP."""


def enter(way: str) -> None:
    """Move this process into namespaces; it returns in a child, the first process of its pid namespace.

    Raises `OSError` if the kernel refuses. The process must have no threads.
    """
    if way in ("bwrap", "none"):
        return
    user, group = os.geteuid(), os.getegid()
    called(LIBC.unshare(_NEW_NAMESPACES), "the kernel allows no namespaces")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_USER} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_USER} {group} 1")
    if way == "namespaces":
        _private_root()
    child = os.fork()
    if child:
        os.closerange(0, 3)  # the pipes close when the child ends
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_READ_ONLY, _NO_SET_UID, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE, _DETACH = 1, 2, 32, 4096, 16384, 1 << 18, 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[MACHINE]


def _mount(source: str, target: str, *, flags: int, kind: str = "", options: str = "") -> None:
    arguments = [text.encode() for text in (source, target, kind)]
    called(LIBC.mount(*arguments, flags, options.encode()), f"mounting {target}")


def _private_root() -> None:
    """Replace the root by an empty file system in memory into which `folders()` are mounted."""
    sources = {path: os.path.realpath(path) for path in folders()}
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    _mount("tmpfs", "/tmp", kind="tmpfs", flags=_NO_SET_UID, options="size=1m,mode=755")
    os.mkdir("/tmp/old")
    called(LIBC.syscall(_PIVOT_ROOT, b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    for path, source in sources.items():
        os.makedirs(path)
        _mount(f"/old{source}", path, flags=_BIND | _RECURSIVE)
    for path in _LINKED:
        if os.path.islink(f"/old{path}"):
            os.symlink(os.readlink(f"/old{path}"), path)
    for path in ("/dev/null", "/etc/ld.so.cache"):
        if os.path.exists(f"/old{path}"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
            _mount(f"/old{path}", path, flags=_BIND)
    called(LIBC.umount2(b"/old", _DETACH), "unmounting the old root")
    os.rmdir("/old")
    _mount("none", "/", flags=_REMOUNT | _BIND | _READ_ONLY)
