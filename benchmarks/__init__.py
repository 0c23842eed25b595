"""Measurements of speed and memory against a peer, one module per subject: `python -m benchmarks.NAME [--json FILE]`.

Each prints a table of rows - name, ours, peer, ratio, bar, holds - and exits with 1 if a bar does not hold. Times and
memory depend on the machine, so they are not tests; benchmarks/README.md has the results with their machines, and what
was not run. `comparison` has the functions for measuring and reporting that all of them use.
"""
