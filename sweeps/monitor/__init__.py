"""What happens after a launch.

`status` of each stage run, `index` (a summary of all), `launched_sweeps` (their records), `slurm_queue` and
`slurm_environment` (states of jobs, variables of a surrounding job), `upkeep` of the store, and `wandb_sync`.
"""
