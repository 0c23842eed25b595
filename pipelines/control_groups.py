"""The limits of this process's control groups (versions 1 and 2): cores and memory. Loads no torch.

A limit of a group holds for all groups in it, so every level from this process's group up to the mounted root counts.
In a container the mounted root may be a group of the host, whose path is in `/proc/self/mountinfo`.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self")


def cores_allowed(proc: Path = PROC) -> int | None:
    """Whole cores that the quota of processor time is worth, at least 1; None without a quota."""
    quotas = []
    for group in _groups("cpu", proc):
        with contextlib.suppress(OSError, ValueError):
            if (group / "cpu.max").exists():
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = (_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            # "max" in version 2 and -1 in version 1 mean that there is no quota.
            if float(quota) > 0:
                quotas.append(float(quota) / float(period))
    return max(1, math.floor(min(quotas))) if quotas else None


def memory_allowed(proc: Path = PROC) -> int | None:
    """Bytes that the groups allow this process to use in addition; None without a limit.

    Page cache and reclaimable kernel memory count as free: the kernel gives them up before it refuses memory.
    """
    free = []
    for group in _groups("memory", proc):
        with contextlib.suppress(OSError, ValueError):
            if (group / "memory.current").exists():
                used, reclaimable = int(_text(group / "memory.current")), _statistics(group, prefix="")
                limits = [_text(group / name) for name in ("memory.max", "memory.high") if (group / name).exists()]
            else:
                used, reclaimable = int(_text(group / "memory.usage_in_bytes")), _statistics(group, prefix="total_")
                limits = [_text(group / "memory.limit_in_bytes")]
            free += [int(limit) - max(0, used - reclaimable) for limit in limits if limit != "max"]
    return max(0, min(free)) if free else None


def _text(path: Path) -> str:
    return path.read_text().strip()


def _statistics(group: Path, *, prefix: str) -> int:
    """Bytes of a group and those in it that the kernel can reclaim; shared memory is not among them."""
    names = {prefix + name for name in ("inactive_file", "active_file", "slab_reclaimable")}
    pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(value) for name, value in pairs if name in names)


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """The folders of this process's groups for a controller, in every hierarchy that may limit it."""
    try:
        memberships = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split(" - ", 1) for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return  # no /proc, or a kernel without control groups
    for number, controllers, path in memberships:
        # Version 2 has one hierarchy, numbered 0 and without names of controllers.
        version = "cgroup2" if number == "0" and not controllers else "cgroup"
        if version == "cgroup" and controller not in controllers.split(","):
            continue
        for mount_fields, filesystem_fields in mounts:
            filesystem, _, options = filesystem_fields.split(" ", 2)
            if filesystem == version and (version == "cgroup2" or controller in options.split(",")):
                root, mounted = (_unescaped(word) for word in mount_fields.split(" ")[3:5])
                yield from _levels(Path(mounted), root, path)
                break


def _levels(mounted: Path, root: str, path: str) -> Iterator[Path]:
    """The folders from the mounted root down to the group at `path`, of which `root` is what is mounted."""
    yield mounted
    # In a container the group may be seen by its path on the host, which is then the mounted root or below it.
    inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path.lstrip("/"))
    folder = mounted
    for part in inside.parts:
        folder = folder / part
        if part == ".." or not folder.is_dir():
            return  # a group outside of what this namespace shows
        yield folder


def _unescaped(word: str) -> str:
    """A path of mountinfo, in which spaces and the like are octal escapes."""
    return word.encode().decode("unicode_escape") if "\\" in word else word
