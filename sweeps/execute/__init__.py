"""Runs a graph of stage runs on this machine or as Slurm jobs.

`launch` records a sweep and hands its graph to `local` (with `local_executor`, `fork_server`, `preload` and the live
`display`) or to `slurm` (with `slurm_job`, the process of a job). `worker` runs a single stage run on either.
`machine` and `gpus` read what this machine offers; `quick_exit` ends a process without unloading torch.
"""
