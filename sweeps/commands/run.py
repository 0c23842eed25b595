"""`shaping-run`: Hydra's multirun as the front door to one graph of stage runs."""

import os
import sys
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from pipelines.errors import UserError, nearest
from pipelines.logs import DEBUG_VARIABLE
from sweeps.commands.exit_codes import exit_codes


def main() -> None:
    """Run the command line; exit codes are those of `sweeps.commands.exit_codes`."""
    if "--debug" in sys.argv:
        os.environ[DEBUG_VARIABLE] = "1"
    arguments = [a for a in sys.argv[1:] if a not in ("--debug", "-m", "--multirun")]
    # Hydra would print its own report of an error and exit with 1; with this set it raises the error.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with exit_codes("shaping-run"):
        # One cell is a grid of one, so -m is always added; it comes first because argparse wants overrides together.
        sys.argv[1:] = arguments if _shows(arguments) else ["--multirun", *arguments]
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(_unreachable)()


def _shows(arguments: list[str]) -> bool:
    """Whether the flags among `arguments` show something and run nothing.

    Raises `UserError` for a flag that there is not, and for those that do not go with others or with us.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print its usage
    found, unknown = parser.parse_known_args(arguments)
    for word in sorted(unknown, key=lambda word: not word.startswith("-")):
        if not word.startswith("-"):
            raise UserError(f"{word}: overrides stand together; write it before or after all flags")
        flag = word.split("=")[0]
        flags = [f for f in parser._option_string_actions if f.startswith("--") and f != "--run"]
        raise UserError(f"{flag}: there is no such flag; {nearest(flag, [*flags, '--debug'])}")
    if found.run:
        raise UserError("--run: shaping-run always plans a graph and runs what is missing; leave it out")
    if found.resolve and not (found.cfg or found.help):
        raise UserError("--resolve: it is for a configuration that is shown; add --cfg=job")
    shown = [f for f in ("cfg", "info", "shell_completion") if getattr(found, f)]
    if len(shown) > 1:
        raise UserError(f"{', '.join('--' + f.replace('_', '-') for f in shown)}: they go one at a time; leave one out")
    return bool(shown or found.help or found.hydra_help)


def _refuse(message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))


def _unreachable(config: DictConfig) -> None:
    raise UserError("hydra.mode=RUN: shaping-run always plans a graph; leave hydra.mode as it is")


if __name__ == "__main__":
    main()
