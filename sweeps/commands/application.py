"""What the commands of `shaping-sweeps` share: the application, the arguments that several take, and how a command line
of typer ends."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from pipelines.errors import UserError
from sweeps.commands.exit_codes import exit_codes
from sweeps.monitor.status import rows
from sweeps.store.stage_runs import Store

app = typer.Typer(
    help="Look at sweeps and tend them: what they cost, where they stand, logs, retries, the store.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def cells_beside(incomplete: str) -> list[str]:
    """Cells of the store beside, for the shell's completion."""
    try:
        found = rows(Store.open("store"))
    except (UserError, OSError):
        return []
    words = {row.cell for row in found} | {row.title for row in found}
    return sorted(word for word in words if word.startswith(incomplete))


Overrides = Annotated[
    list[str] | None, typer.Argument(help="As typed to shaping-run: +sweep=nano, objective=ce,precision, store=PATH.")
]
Filters = Annotated[
    list[str] | None,
    typer.Argument(
        help="Which stage runs: globs on CELL or CELL:STAGE ('nano/*/seed1:grpo'), key=value,value (objective, model, "
        "seed, scale, sweep, stage, status), or the beginning of a signature. All must hold.",
        autocompletion=cells_beside,
    ),
]
StorePath = Annotated[str, typer.Option("--store", help="Folder of stage runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def console() -> Console:
    """The terminal, with text as it is."""
    return Console(highlight=False, soft_wrap=True, markup=False)


def run(commands: typer.Typer, program: str) -> None:
    """Run a command line of typer; exit codes are those of `sweeps.commands.exit_codes`."""
    with exit_codes(program):
        code = commands(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
