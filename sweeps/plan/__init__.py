"""From cells to one graph of stage runs with signatures, and what the graph costs."""
