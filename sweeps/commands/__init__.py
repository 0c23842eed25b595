"""The command lines `shaping-run`, `shaping-torchrun`, `shaping-sweeps` and `shaping-data`.

`sweeps` collects the commands of `shaping-sweeps`; a new one is a function with `@app.command()` in one of its modules.
"""
