"""The command lines `shaping-run`, `shaping-torchrun`, `shaping-sweeps` and `shaping-data`.

`shaping_sweeps` collects the commands of `shaping-sweeps`; a new one is a function with `@app.command()` in one of the
modules that it imports.
"""
