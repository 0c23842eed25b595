"""What can be chosen: a Hydra group per folder, values only. Types and checks stand in `pipelines.configuration`."""
