"""What happens after a launch: status, records of sweeps, Slurm's queue, upkeep of the store, W&B sync."""
