"""What this machine offers to stage runs: cores, memory, GPUs, as the operating system reports them. Loads no torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Cores that this process may use, bytes of free memory, and GPUs as CUDA_VISIBLE_DEVICES names them."""

    cores: int
    memory: int
    gpus: tuple[str, ...]

    @classmethod
    def here(cls) -> "Machine":
        """This machine at this moment, within the limits of its control group."""
        return cls(len(os.sched_getaffinity(0)), _free_memory(), _gpus())


def _free_memory() -> int:
    """Bytes that are available on the machine and in this process's control group (version 2 or 1)."""
    available = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    free = int(available[0].split()[1]) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return free


def _gpus() -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, or all that the driver lists."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return tuple(name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return tuple(line.strip() for line in listing.stdout.splitlines() if line.strip()) if not listing.returncode else ()
