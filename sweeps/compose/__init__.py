"""From a command line to typed cells and launcher options, and the wording of mistakes in overrides.

`expansion` turns sweeps into one list of overrides per cell, `composer` and `cells` turn lists into cells.
"""
