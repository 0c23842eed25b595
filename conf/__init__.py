"""The configuration: one folder per Hydra group, with values only. `pipelines.configuration` has types and checks."""
