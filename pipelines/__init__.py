"""The stages of the study on real libraries: data, token stages, RL, evaluations, and the typed configuration."""
