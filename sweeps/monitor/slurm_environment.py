"""Variables of a surrounding job or launcher in the environment, which must not reach what this process starts.

Inside an sbatch script or an interactive allocation, `SLURM_*` describe that allocation: Lightning takes them for the
ranks of its training, srun for its own options. `SBATCH_*`, `SQUEUE_*` and the like are a user's defaults for Slurm's
commands, and would change what this project sends and reads.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping

CONNECTION = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_SOCKET"}
"""How Slurm's commands reach the cluster."""

SLURM_PREFIXES = (
    *("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_"),
    *("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_"),
)
RANK_PREFIXES = ("SUBMITIT_", "TORCHELASTIC_", "PMI_", "PMIX_", "PMI2_", "OMPI_", "JSM_NAMESPACE_")
RANK_NAMES = {
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
}
"""Which rank this process is, for torch and Lightning."""

DEFAULTS = ("account", "partition", "qos", "constraint", "reservation", "wckey", "export")
"""sbatch's parameters for which a user's `SBATCH_*` counts where the configuration is silent."""


def without_surroundings(environment: Mapping[str, str], kept: Collection[str] = ()) -> dict[str, str]:
    """`environment` without what describes a surrounding job, rank or user default, except the names in `kept`."""

    def stays(name: str) -> bool:
        if name in CONNECTION or name in kept:
            return True
        return name not in RANK_NAMES and not name.startswith(SLURM_PREFIXES + RANK_PREFIXES)

    return {name: value for name, value in environment.items() if stays(name)}


@contextlib.contextmanager
def submission_environment(parameters: Collection[str]) -> Iterator[None]:
    """The environment for sbatch within this context, and so that of the job; `parameters` are given to sbatch.

    A user's `SBATCH_ACCOUNT` and other `DEFAULTS` stay unless `parameters` has them, since sbatch prefers its variables
    to the lines of a script.
    """
    before = os.environ.copy()
    after = without_surroundings(before, {f"SBATCH_{name.upper()}" for name in DEFAULTS if name not in parameters})
    # The devices of the surrounding job are not those of the new one.
    if "SLURM_JOB_ID" in before:
        for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
            after.pop(name, None)
    _replace_environment(after)
    try:
        yield
    finally:
        _replace_environment(before)


def _replace_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
