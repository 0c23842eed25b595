"""Everything that waits for a GPU, in order of worth, in less than ten minutes on one card: `make gpu`."""
