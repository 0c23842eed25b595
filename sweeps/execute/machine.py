"""What this machine offers to stage runs: cores, memory, GPUs, as the operating system reports them. Loads no torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.control_groups import memory_allowed
from pipelines.cores import available_cores
from sweeps.execute.gpus import available_gpus

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""A user's thread settings, in the order in which torch reads them."""


@dataclass(frozen=True)
class Machine:
    """Cores that this process may use, bytes of free memory, and GPUs as CUDA_VISIBLE_DEVICES names them."""

    cores: int
    memory: int
    gpus: tuple[str, ...]

    @classmethod
    def here(cls) -> "Machine":
        """This machine at this moment, within the limits of its control groups."""
        return cls(available_cores(), _free_memory(), available_gpus())


def threads_wanted() -> int | None:
    """The threads per process that the user's environment sets; None without a setting."""
    for name in THREAD_VARIABLES:
        first = os.environ.get(name, "").split(",")[0].strip()  # a list has a number per level of nested parallelism
        if first.isdigit() and int(first) > 0:
            return int(first)
    return None


def _free_memory() -> int:
    """Bytes that are available on the machine and in this process's control groups."""
    available = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    free = int(available[0].split()[1]) * 1024
    allowed = memory_allowed()
    return free if allowed is None else min(free, allowed)
