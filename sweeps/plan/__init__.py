"""From cells to one graph of stage runs with signatures, and what the graph costs.

`signatures` holds what of a configuration can change a result, `planner` makes the graph, `names` what people read.
"""
