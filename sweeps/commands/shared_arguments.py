"""The typer application of `shaping-sweeps`, the arguments that several commands share, and how commands are run."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from pipelines import foreign_text
from pipelines.errors import UserError
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.config_files import without_config_dir
from sweeps.monitor.status import rows
from sweeps.store.stage_runs import Store

app = typer.Typer(
    help="Plan and manage sweeps: costs, progress, logs, retries and the store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def complete_cells(incomplete: str) -> list[str]:
    """Returns the cells in the folder `store` that begin with what is typed, for the shell's completion."""
    try:
        all_rows = rows(Store.open("store"))
    except (UserError, OSError):
        return []
    words = {row.cell for row in all_rows} | {row.title for row in all_rows}
    return sorted(word for word in words if word.startswith(incomplete))


Overrides = Annotated[
    list[str] | None, typer.Argument(help="As for shaping-run: +sweep=nano, objective=ce,precision, store=PATH.")
]
Filters = Annotated[
    list[str] | None,
    typer.Argument(
        help="Which stage runs: globs on CELL or CELL:STAGE ('nano/*/seed1:grpo'), key=value,value (objective, model, "
        "seed, scale, sweep, stage, status), or the first characters of a signature. All must match.",
        autocompletion=complete_cells,
    ),
]
StorePath = Annotated[str, typer.Option("--store", help="Folder of stage runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def console() -> Console:
    """Returns a terminal that prints text unchanged."""
    return foreign_text.console(markup=False)


def run(commands: typer.Typer, program: str) -> None:
    """Run a command line of typer; the exit codes are those of `sweeps.commands.exit_codes`."""
    with exit_codes(program):
        code = commands(without_config_dir(sys.argv[1:]), standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
