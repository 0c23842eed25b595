"""The command lines: `shaping-run`, `shaping-sweeps` and `shaping-data`, and the plugins that Hydra calls."""
