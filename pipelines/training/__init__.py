"""Pre-training and mid-training: the Lightning module, its strategies, expert balance, throughput, trainer states."""
