"""The stages of the study - pre-training, mid-training, RL, evaluation - with their data and typed configuration."""
