"""From command lines to finished stage runs: overrides become cells, cells one graph, and what is missing is executed.

`commands` (the command lines), `compose` (overrides -> cells and launcher options), `plan` (cells -> stage runs with
signatures, and their cost), `store` (stage runs on disk), `execute` (this machine, Slurm and torchrun) and `monitor`
(status, records of launches, upkeep, W&B). Only workers import torch.
"""
