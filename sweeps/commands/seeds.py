"""`shaping-sweeps seeds WHICH`: how many more seeds the undecided claims of a study need, and the commands."""

from importlib import import_module
from typing import Annotated

import typer

from sweeps.commands.shared_arguments import StorePath, app, console


@app.command("seeds")
def seeds(
    which: Annotated[str, typer.Argument(help="Label of the study, which is also its sweep's name: nano, micro, ...")],
    *,
    store: StorePath = "store",
) -> None:
    """Say how many more seeds each undecided claim of a study needs (80 % power), and the commands that run them.

    The level of 5 % holds for seeds that were fixed before looking: new seeds are judged by themselves, or all of them
    at a few fixed numbers, each time at a lower level.
    """
    # Judging is the analysis', which builds on this package; it is loaded by name, as console scripts are.
    terminal = console()
    for line in import_module("analysis.seeds").seeds_lines(which, store):
        terminal.print(line, soft_wrap=True)
