"""The GPUs of this machine that stage runs may use, as CUDA_VISIBLE_DEVICES names them. Loads no torch."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from pipelines.errors import UserError

VARIABLE = "CUDA_VISIBLE_DEVICES"
QUERY = ("index", "uuid", "memory.used", "memory.total", "utilization.gpu", "compute_mode", "mig.mode.current")
SECONDS = 30.0
"""How long the driver may take to answer."""
FULL_SHARE = 0.9
"""A GPU with more of its memory in use than this is fully used."""
BUSY_PERCENT = 95.0
"""A GPU that computes for others more than this is only used if no other is free."""


@dataclass(frozen=True)
class _Gpu:
    """One GPU as the driver reports it."""

    index: str
    uuid: str
    used: float
    """MiB."""
    total: float
    utilization: float
    """Percent."""
    mode: str
    instances: tuple[str, ...]
    """UUIDs of its MIG instances; empty if it is not divided."""

    @property
    def is_full(self) -> bool:
        """Whether a stage run has no place on it."""
        return self.mode == "Prohibited" or (self.total > 0 and self.used > FULL_SHARE * self.total)

    @property
    def is_busy(self) -> bool:
        """Whether another process keeps it computing."""
        return self.utilization >= BUSY_PERCENT

    def is_named(self, name: str) -> bool:
        """Whether `name`, an index or the beginning of a UUID, means this GPU or an instance of it."""
        names_instance = name.startswith("MIG-") and (name in self.instances or name.startswith(f"MIG-{self.uuid}/"))
        return name == self.index or names_instance or (name.startswith("GPU-") and self.uuid.startswith(name))


def available_gpus() -> tuple[str, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, or all, without those that other processes use fully.

    Raises `UserError` if there are GPUs but none of them is free, since a stage run would run out of memory.
    """
    gpus, setting = _listed(), os.environ.get(VARIABLE)
    names = _allowed(setting, gpus) if setting is not None else _all(gpus)
    by_name = {name: next((gpu for gpu in gpus if gpu.is_named(name)), None) for name in names}
    # The driver reports the memory of a divided GPU as a whole, which says nothing about one instance.
    free = [name for name, gpu in by_name.items() if gpu is None or gpu.instances or not gpu.is_full]
    if names and not free:
        used = ", ".join(f"{n} ({g.used:.0f} of {g.total:.0f} MiB in use)" for n, g in by_name.items() if g)
        raise UserError(
            f"{VARIABLE}={setting or ''}: other processes use every GPU fully: {used}; wait for them, name another "
            f"GPU, or set {VARIABLE}=-1 to compute without GPUs"
        )
    idle = [name for name in free if not (gpu := by_name[name]) or gpu.instances or not gpu.is_busy]
    return tuple(idle or free)


def _allowed(setting: str, gpus: list[_Gpu]) -> tuple[str, ...]:
    """The names in CUDA_VISIBLE_DEVICES up to the first that is no GPU, where CUDA stops reading too."""
    names: list[str] = []
    for name in (word.strip() for word in setting.split(",")):
        is_name = re.fullmatch(r"\d+|(GPU|MIG)-\S+", name) is not None
        if not is_name or (gpus and not any(gpu.is_named(name) for gpu in gpus)):
            break
        if name not in names:
            names.append(name)
    return tuple(names)


def _all(gpus: list[_Gpu]) -> tuple[str, ...]:
    """Every GPU, and of divided ones every instance.

    By UUID where there are several kinds: CUDA and the driver number GPUs in different orders.
    """
    return tuple(name for gpu in gpus for name in (gpu.instances or (gpu.uuid or gpu.index,)))


def _listed() -> list[_Gpu]:
    """The GPUs that the driver lists; none without a driver."""
    lines = _driver(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    rows = [[value.strip() for value in line.split(",")] for line in lines]
    rows = [row for row in rows if len(row) == len(QUERY)]
    instances = _instances() if any(row[6] == "Enabled" for row in rows) else {}
    return [
        _Gpu(
            index=row[0],
            uuid=row[1],
            used=_number(row[2]),
            total=_number(row[3]),
            utilization=_number(row[4]),
            mode=row[5],
            instances=tuple(instances.get(row[1], ())),
        )
        for row in rows
    ]


def _instances() -> dict[str, list[str]]:
    """UUID of a GPU -> the UUIDs of its MIG instances."""
    instances: dict[str, list[str]] = {}
    gpu = ""
    for line in _driver("-L"):
        if match := re.search(r"UUID: ((GPU|MIG)-[^)\s]+)", line):
            if match[2] == "GPU":
                gpu = match[1]
            else:
                instances.setdefault(gpu, []).append(match[1])
    return instances


def _driver(*arguments: str) -> list[str]:
    """The lines that nvidia-smi prints; none if it is not installed, fails, or does not answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def _number(text: str) -> float:
    """A number, or 0 for what the driver does not know (`[N/A]`)."""
    try:
        return float(text)
    except ValueError:
        return 0.0
