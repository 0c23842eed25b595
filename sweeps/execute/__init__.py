"""Runs a graph of stage runs on this machine or as Slurm jobs; `worker` runs a single one."""
