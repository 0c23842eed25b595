"""What can be chosen: one Hydra group per folder, values only. The types and checks stand in `pipelines.cell`."""
