"""Measuring a checkpoint: held-out text, multiple choice, sampled answers and lm-eval's tasks, and their metrics."""
