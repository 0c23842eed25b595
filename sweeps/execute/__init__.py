"""Running a graph of stage runs: on this machine, as Slurm jobs or under torchrun, and the worker that runs one."""
