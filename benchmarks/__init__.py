"""Measurements of speed and memory against a peer, one module a subject: `python -m benchmarks.NAME [--json FILE]`.

Each prints a table of rows - name, ours, peer, ratio, bar, holds - and exits with 1 where a bar does not hold. Times
and memory depend on the machine, so they are no tests; README.md beside this file keeps the figures with what they
were measured on, and says what was not run. `comparison` is how all of them measure.
"""
