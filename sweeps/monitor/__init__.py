"""Looking after what was launched: status, launched sweeps, Slurm's queue, upkeep of the store, W&B sync."""
